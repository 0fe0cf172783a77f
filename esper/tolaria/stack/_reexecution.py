"""Computing a recorded stack again, from the requests and outcomes of all its members alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from esper.core.errors import IntegrityError
from esper.core.ids import Digest
from esper.leyline import messages as ly
from esper.tolaria._reexecution import Comparison, end_difference
from esper.tolaria.record._recording import NotRepeated, RecordingEnded
from esper.tolaria.stack._attempt import StackGraftsFactory
from esper.tolaria.stack._journal import RecordedStackJournal
from esper.tolaria.stack._setup import prepared_stack
from esper.tolaria.stack._trainer import StackTrainer
from esper.tolaria.worker._past import Past


def re_execute_stack(
    requests: Sequence[ly.TrainingRunRequested],
    pasts: Sequence[Past],
    grafts_factory: StackGraftsFactory,
    *,
    member: int,
    on_epoch: Callable[[int], None] | None = None,
) -> Comparison:
    """Train a stack again with all recorded outcomes, in silence; return how the member `member` compares.

    The whole stack is computed, and every member's packets are compared: what differs first, in whatever member, ends
    the comparison. A stack that was cut off is compared as far as all of it was recorded.

    Raises:
        UsageError: the stack cannot be computed here.
        IntegrityError: another member does not repeat, which says nothing of this one after that.
        KernelUnavailable: no store holds a kernel that was grafted.
    """
    run_id = requests[member].run_id
    with prepared_stack(requests) as setup:
        journal = RecordedStackJournal([past.recording for past in pasts])
        trainer = StackTrainer(setup, grafts_factory(setup), journal)
        try:
            for epoch in range(1, setup.first.config.epochs + 1):
                if not any(trainer.live):
                    break
                trainer.run_epoch(epoch)
                if on_epoch is not None:
                    on_epoch(epoch)
        except RecordingEnded:
            return Comparison(run_id, trainer.epochs_finished)
        except NotRepeated as error:
            if error.run_id != run_id:
                raise
            return Comparison(run_id, trainer.epochs_finished, error.difference)
        finished, result = pasts[member].finished, trainer.results()[member]
        if finished is None or result is None:
            return Comparison(run_id, trainer.epochs_finished)
        return Comparison(run_id, trainer.epochs_finished, end_difference(result, finished))


def weights_of_member(
    requests: Sequence[ly.TrainingRunRequested],
    pasts: Sequence[Past],
    epoch: int,
    grafts_factory: StackGraftsFactory,
    *,
    member: int,
    on_epoch: Callable[[int], None] | None = None,
) -> tuple[Mapping[str, Tensor], Digest]:
    """Return a member's network at the end of `epoch`, before that epoch's command, and its digest; computed again.

    Raises:
        UsageError: the stack cannot be computed here.
        NotRepeated: computed again, a member leaves its record.
        KernelUnavailable: no store holds a kernel that was grafted.
    """
    with prepared_stack(requests) as setup:
        journal = RecordedStackJournal([past.recording for past in pasts])
        trainer = StackTrainer(setup, grafts_factory(setup), journal)
        for following in range(1, epoch):
            trainer.run_epoch(following)
            if on_epoch is not None:
                on_epoch(following)
        journal.append_states(trainer.train_epoch(epoch))
        weights = trainer.weights()[member]
        return {name: tensor.clone() for name, tensor in weights.items()}, trainer.digests()[member]


def check_recorded_whole(requests: Mapping[int, ly.TrainingRunRequested], stack: ly.StackPlace) -> None:
    """Raise IntegrityError where the log lacks the request of a member."""
    missing = sorted(set(range(stack.size)) - requests.keys())
    if missing:
        raise IntegrityError(
            f"the stack {stack.stack_id} cannot be computed again",
            cause=f"the log lacks the request of its member {missing[0]}",
            next_step="`esper verify` shows what was lost",
        )
