"""The context manager that users call."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch
from torch import nn

from esper.core.errors import BrokerUnavailable
from esper.core.inputs import Batch
from esper.core.ranks import RankLost, Ranks
from esper.core.settings import Settings, load_settings
from esper.oona import Fabric
from esper.tamiyo import check_policy
from esper.weatherlight._grow._probe import held_out
from esper.weatherlight._grow._ranks import bare, ended_by_torchrun, ranks_of, starting
from esper.weatherlight._grow._run import GrowRun
from esper.weatherlight._grow._side import ListeningSide, Side, SpeakingSide
from esper.weatherlight._grow._wishes import (
    RECORD,
    STOP,
    LogLoss,
    LossFunction,
    LossScaler,
    RateSchedule,
    Wishes,
    check_alone,
    check_digests,
    check_helpers,
    returns_on,
)
from esper.weatherlight._learned import check_learned
from esper.weatherlight._readiness import await_answering
from esper.weatherlight._training import members_for_a_while

_log = logging.getLogger("esper.grow")

#: A loop of the user's own trains itself: of the members it needs those that decide and those that make kernels.
_MEMBERS = ("karn", "tezzeret", "urza", "tamiyo")


@contextlib.contextmanager
def grow(
    model: nn.Module,
    *,
    slots: Sequence[str] | Literal["auto"] = "auto",
    optimizer: torch.optim.Optimizer | None = None,
    loss_fn: LossFunction | None = None,
    probe: Iterable[Batch] | None = None,
    scaler: LossScaler | None = None,
    scheduler: RateSchedule | None = None,
    policy: str = "heuristic",
    epochs: int = 0,
    seed: int = 0,
    name: str = "",
    on_log_loss: str = STOP,
    digest_every_epochs: int = 1,
    on_fault: str = RECORD,
    members: bool = True,
    settings: Settings | None = None,
) -> Iterator[GrowRun]:
    """Grow `model` while a loop of your own trains it; every epoch is recorded in the log.

    `slots` are module names (":residual" may follow one), or "auto". `optimizer` takes over the seeds that stay;
    `loss_fn(outputs, targets)` trains seeds in shadow; `probe`, held-out batches of (inputs, targets), lets gates
    measure: a list, or a DataLoader, which is gone through once. Inputs are one tensor, or a tuple or mapping of what
    the model is called with; outputs are whatever it returns. What is not given disables the gates that need it, and
    the refusal names them: without `loss_fn` nothing germinates (G1), without `probe` G2 and G4 cannot pass. `scaler`,
    the one that scales the loop's loss, lets seeds take the scale out of their gradients and skip the steps that
    overflow; with `scheduler` seeds slow down as the host does. `epochs` is how many are planned (0: unknown).
    `members` starts those members that are missing for the time of the block. `digest_every_epochs`: at which edges
    the weights are hashed into the log, which for a large model takes as long as reading it from its device and
    hashing it (some 0.4 s for 270 MB).

    `on_log_loss` says what to do when no broker answers: "stop" raises after `broker_retry_seconds`,
    "hold:SECONDS" after a while of its own, and "degrade" trains on without growth and records the epochs of the
    gap, marked as such, when a broker answers again.

    Under torchrun give the `DistributedDataParallel` wrapper, on every rank alike: the first rank speaks with the log,
    the gradients of seeds are averaged over all, and weights that differ between ranks end the run. `loss` of the first
    rank is recorded.

    `on_fault` says what to do when the held-out loss is no number or leaps up: "record" records it; "rollback" takes
    model, optimiser, loss scale and random streams back, in place, to the state that was kept last (every
    `checkpoint_every_epochs` edges, in memory), and goes on with half the learning rate; it needs `optimizer`. The
    outcome that `end_epoch` returns says so in `rolled_back`. After three such returns the next fault raises
    TrainingDiverged. The schedule and the order of the data stay the loop's. Not under torchrun.

    A model that `torch.compile` wrapped is trained compiled; seeds, gates and figures use the module within.

    The run is labelled recorded, not re-executable: only your own loop can train it again. When the block ends
    `TrainingRunFinished` is appended, or `TrainingRunFailed` when it raises.

    Raises:
        UsageError: no such policy or slot, or an argument that cannot be used.
        NotReadyError: there is no home, no broker, or no topics.
        RankLost: another rank is gone, or did not come within `rank_wait_seconds`.
        IntegrityError: the ranks do not have one network.
    """
    check_policy(policy)
    check_helpers(optimizer, scaler, scheduler)
    check_digests(digest_every_epochs)
    loss, returns = LogLoss.of(on_log_loss), returns_on(on_fault, optimizer)
    wishes = Wishes(
        slots,
        optimizer,
        loss_fn,
        held_out(probe),
        scaler,
        scheduler,
        policy,
        epochs,
        seed,
        name,
        loss,
        digest_every_epochs,
        returns,
    )
    current = settings or load_settings()
    if loss.hold_seconds is not None:
        current = current.model_copy(update={"broker_retry_seconds": loss.hold_seconds})
    ranks = ranks_of(model, wait_seconds=current.rank_wait_seconds)
    check_alone(wishes, ranks=ranks.size)
    with ended_by_torchrun(ranks), contextlib.ExitStack() as stack:
        if ranks.leads:
            with starting(ranks):
                side: Side = _speaking(stack, current, wishes, ranks, host=type(bare(model)).__name__, members=members)
        else:
            side = ListeningSide(current, ranks)
        run = GrowRun(model, wishes, side)
        stack.callback(run.close)
        _log.info("run %s is recorded, not re-executable", run.run_id)
        try:
            yield run
        except BaseException as error:
            # A log that is away does not hear of it; what ended the loop is what its caller is to see.
            with contextlib.suppress(BrokerUnavailable):
                run.fail(_why(error))
            raise
        run.finish()


def _speaking(
    stack: contextlib.ExitStack, settings: Settings, wishes: Wishes, ranks: Ranks, *, host: str, members: bool
) -> SpeakingSide:
    """Open the log and see that somebody answers; what is opened closes with `stack`."""
    fabric = stack.enter_context(Fabric.open(settings, member="grow"))
    check_learned(fabric, wishes.policy, {})
    supervisor = stack.enter_context(members_for_a_while(settings, wanted=_MEMBERS if members else ()))
    await_answering(fabric, supervisor)
    return SpeakingSide(fabric, wishes, ranks, host=host)


def _why(error: BaseException) -> str:
    """Return what the log is to say of a loop that did not come to its end."""
    return f"{type(error).__name__}: {error.cause}" if isinstance(error, RankLost) else type(error).__name__
