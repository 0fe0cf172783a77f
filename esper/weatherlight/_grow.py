"""`esper.grow`: seeds and the log for a training loop of the user's own, over the same Kasmina."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from esper.core.digest import module_state, state_digest
from esper.core.errors import UsageError
from esper.core.ids import RunId, derive_id, new_run_id
from esper.core.numerics import TRAINING_DISTRIBUTIONS, code_version, dependencies_digest, numerics_fingerprint
from esper.core.settings import Settings, load_settings
from esper.kasmina import KasminaConfig, KasminaSeedManager, discover_slots
from esper.leyline import messages as ly
from esper.oona import Fabric
from esper.tamiyo import check_policy
from esper.tolaria import (
    ClaimBook,
    Claimed,
    CommandInbox,
    EpochEdge,
    Evaluation,
    KafkaJournal,
    Split,
    claim,
    evaluate,
    multiply_adds_per_sample,
    outcome_event_id,
    state_event_id,
)
from esper.weatherlight._grafting import descriptors, judge_factory, kernel_runtime
from esper.weatherlight._readiness import await_answering
from esper.weatherlight._training import members_for_a_while

_log = logging.getLogger("esper.grow")

Batch = tuple[Tensor, Tensor]
LossFunction = Callable[[Tensor, Tensor], Tensor]

#: A loop of the user's own trains itself: of the members it needs those that decide and those that make kernels.
_MEMBERS = ("karn", "tezzeret", "urza", "tamiyo")
_TRACED_SAMPLES = 2


@dataclass(frozen=True)
class _Wishes:
    """What the caller of `grow` gave."""

    slots: Sequence[str] | Literal["auto"]
    optimizer: torch.optim.Optimizer | None
    loss_fn: LossFunction | None
    probe: Sequence[Batch] | None
    policy: str
    epochs: int
    seed: int
    name: str


@dataclass
class _Tally:
    """What was trained since the run began."""

    epoch: int = 0
    steps: int = 0
    samples: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


class GrowRun:
    """A run of a loop of the user's own: recorded and steered, not re-executable.

    Per batch call `step` after the optimiser's step; per epoch call `end_epoch`. Seeds in TRAINING never touch
    the model. One thread; the model may be used freely between the calls.
    """

    def __init__(self, model: nn.Module, wishes: _Wishes, fabric: Fabric) -> None:
        self.run_id: RunId = new_run_id()
        self._model = model
        self._wishes = wishes
        self._fabric = fabric
        self._tally = _Tally()
        self._probe = _joined(wishes.probe)
        self._publisher = fabric.publisher("tolaria")
        self._claimed = self._claim()
        self._host_parameters = sum(parameter.numel() for parameter in model.parameters())
        self._multiply_adds_per_sample = 0
        self._controller: KasminaSeedManager | None = None
        self._edge: EpochEdge | None = None
        if self._probe is not None:
            self._plant(self._probe.inputs)

    @property
    def epoch(self) -> int:
        """Epochs ended so far."""
        return self._tally.epoch

    @property
    def seeds(self) -> list[ly.SeedSummary]:
        """Every seed of the run with its last stage."""
        return self._controller.summaries() if self._controller is not None else []

    def step(self, batch: Batch) -> None:
        """Train the seeds on `batch`, (inputs [B, ...], targets [B, ...]), after the optimiser's own step."""
        inputs, targets = batch
        if self._controller is None:
            self._plant(inputs)
        assert self._controller is not None, "planted by now"
        self._controller.after_step(inputs, targets)
        self._controller.before_step()
        self._tally.steps += 1
        self._tally.samples += len(targets)

    def end_epoch(self, metrics: Mapping[str, float]) -> ly.CommandOutcome:
        """Append the epoch's state, wait for its command, apply it, and return its outcome.

        `metrics` holds "loss" (mean training loss of the epoch) and, unless `probe` and `loss_fn` were given to
        `grow`, "val_loss"; "val_accuracy" in 0..1 where there is one; more is recorded as it is.

        Raises:
            UsageError: a needed metric is missing, or nothing was trained yet.
            BrokerUnavailable: the broker was away for longer than `broker_retry_seconds`.
        """
        if self._controller is None or self._edge is None:
            raise UsageError("the epoch cannot end", cause="no step was taken", next_step="call run.step(batch)")
        self._tally.epoch += 1
        self._tally.metrics = dict(metrics)
        self._edge.settle_faults(self._tally.epoch)
        return self._edge.close(self._packet(self._controller))

    def _claim(self) -> Claimed:
        wishes = self._wishes
        request = ly.TrainingRunRequested(
            run_id=self.run_id,
            task="own",
            host=type(self._model).__name__,
            policy=wishes.policy,
            epochs=wishes.epochs,
            seed=wishes.seed,
            experiment_name=wishes.name,
            re_executable=False,
            slots=[] if wishes.slots == "auto" else list(wishes.slots),
            digest_every_epochs=1,
        )
        with contextlib.closing(self._fabric.publisher("grow")) as requests:
            requests.publish(request, key=self.run_id)
        book = ClaimBook(self._fabric)
        try:
            claimed = claim(book, self._publisher, request, worker=f"grow-{self.run_id}", attempt=1)
        finally:
            book.close()
        assert claimed is not None, "nobody else knows this run"
        return claimed

    def _plant(self, inputs: Tensor) -> None:
        """Find the slots, now that there is a batch to trace, and say in the log that the run starts."""
        sample = inputs[:_TRACED_SAMPLES]
        wishes = self._wishes
        self._multiply_adds_per_sample = multiply_adds_per_sample(self._model, sample)
        self._controller = KasminaSeedManager(
            self._model,
            discover_slots(self._model, sample, wishes.slots),
            runtime=kernel_runtime(self._fabric),
            run_id=self.run_id,
            seed=wishes.seed,
            loss_fn=wishes.loss_fn,
            probe=wishes.probe,
            optimizer=wishes.optimizer,
            descriptors=descriptors(),
            config=KasminaConfig(kernel_wait_seconds=self._fabric.settings.kernel_wait_seconds),
        )
        self._controller.before_step()
        self._edge = EpochEdge(run_id=self.run_id, attempt=1, controller=self._controller, journal=self._journal())
        started = ly.TrainingRunStarted(
            run_id=self.run_id,
            attempt=1,
            worker=f"grow-{self.run_id}",
            numerics=numerics_fingerprint(inputs.device),
            code_version=code_version(),
            dependencies_digest=dependencies_digest(TRAINING_DISTRIBUTIONS),
            parameters=self._host_parameters,
            initial_digest=self._digest(self._controller),
        )
        self._publisher.publish(started, key=self.run_id)

    def _journal(self) -> KafkaJournal:
        fabric, claimed = self._fabric, self._claimed
        commands = ("adaptation-commands", fabric.partition_of("adaptation-commands", self.run_id))
        inbox = CommandInbox(
            run_id=self.run_id,
            attempt=1,
            source=fabric.reader({commands: "end", ("runs", claimed.partition): claimed.offset + 1}),
            judge=judge_factory(fabric)(self.run_id),
            wait_seconds=fabric.settings.decision_wait_seconds,
            stop=threading.Event(),
        )
        return KafkaJournal(
            run_id=self.run_id,
            attempt=1,
            publisher=self._publisher,
            seed_publisher=fabric.publisher("kasmina"),
            inbox=inbox,
        )

    def _digest(self, controller: KasminaSeedManager) -> str:
        return state_digest({**module_state(self._model), **controller.state()})

    def _validation(self) -> Evaluation:
        metrics, wishes = self._tally.metrics, self._wishes
        if self._probe is not None and wishes.loss_fn is not None and "val_loss" not in metrics:
            return evaluate(self._model, self._probe, wishes.loss_fn)
        if "val_loss" not in metrics:
            raise UsageError(
                "end_epoch needs a validation loss",
                cause="metrics has no 'val_loss', and grow() was given no probe and loss_fn to measure it with",
                next_step="pass end_epoch({'loss': ..., 'val_loss': ...}) or grow(..., probe=batches, loss_fn=loss)",
            )
        return Evaluation(loss=metrics["val_loss"], accuracy=metrics.get("val_accuracy", 0.0))

    def _packet(self, controller: KasminaSeedManager) -> ly.SystemStatePacket:
        tally, wishes, epoch = self._tally, self._wishes, self._tally.epoch
        if "loss" not in tally.metrics:
            raise UsageError("end_epoch needs the training loss", next_step="pass end_epoch({'loss': ...})")
        validation = self._validation()
        packet = ly.SystemStatePacket(
            version=1,
            training_run_id=self.run_id,
            experiment_name=wishes.name,
            attempt=1,
            current_epoch=epoch,
            epochs_planned=wishes.epochs,
            global_step=tally.steps,
            training_loss=tally.metrics["loss"],
            validation_loss=validation.loss,
            validation_accuracy=validation.accuracy,
            training_metrics=tally.metrics,
            seed_states=controller.seed_states(),
            slots=controller.slot_states(),
            weights_digest=self._digest(controller),
            policy=wishes.policy,
            parameters=self._host_parameters + controller.parameters(),
            multiply_adds=self._multiply_adds(controller),
            multiply_adds_per_sample=self._multiply_adds_per_sample + controller.multiply_adds_per_sample(),
            task="own",
            host=type(self._model).__name__,
            seed=wishes.seed,
        )
        packet.meta.event_id = state_event_id(self.run_id, epoch)
        if epoch > 1:
            packet.meta.causation_id = outcome_event_id(self.run_id, epoch - 1)
        return packet

    def _multiply_adds(self, controller: KasminaSeedManager) -> int:
        return 3 * self._multiply_adds_per_sample * self._tally.samples + controller.multiply_adds

    def finish(self) -> None:
        """Append the end of the run; `grow` does it when its block ends."""
        controller = self._controller
        if controller is None:
            self.fail("no step was taken")
            return
        validation = self._validation() if self._tally.epoch else Evaluation(loss=0.0, accuracy=0.0)
        finished = ly.TrainingRunFinished(
            run_id=self.run_id,
            attempt=1,
            epochs=self._tally.epoch,
            accuracy=validation.accuracy,
            loss=validation.loss,
            parameters=self._host_parameters + controller.parameters(),
            multiply_adds=self._multiply_adds(controller),
            multiply_adds_per_sample=self._multiply_adds_per_sample + controller.multiply_adds_per_sample(),
            digest=self._digest(controller),
            seeds=controller.summaries(),
            validation_accuracy=validation.accuracy,
            validation_loss=validation.loss,
        )
        self._publisher.publish(finished, key=self.run_id, event_id=derive_id(self.run_id, "finished", 1))

    def fail(self, detail: str) -> None:
        """Append that the loop did not come to its end."""
        failed = ly.TrainingRunFailed(
            run_id=self.run_id, attempt=1, reason="loop_failed", detail=detail, epochs=self._tally.epoch
        )
        self._publisher.publish(failed, key=self.run_id, event_id=derive_id(self.run_id, "failed", 1))


def _joined(probe: Sequence[Batch] | None) -> Split | None:
    if not probe:
        return None
    return Split(torch.cat([inputs for inputs, _ in probe]), torch.cat([targets for _, targets in probe]))


def _refuse_unbuilt(**given: object) -> None:
    for name, value in given.items():
        if value is not None:
            raise UsageError(f"grow({name}=...) is not built yet", next_step="leave it out")


@contextlib.contextmanager
def grow(
    model: nn.Module,
    *,
    slots: Sequence[str] | Literal["auto"] = "auto",
    optimizer: torch.optim.Optimizer | None = None,
    loss_fn: LossFunction | None = None,
    probe: Sequence[Batch] | None = None,
    scaler: object | None = None,
    scheduler: object | None = None,
    policy: str = "heuristic",
    epochs: int = 0,
    seed: int = 0,
    name: str = "",
    on_log_loss: str | None = None,
    members: bool = True,
    settings: Settings | None = None,
) -> Iterator[GrowRun]:
    """Grow `model` while a loop of your own trains it; every epoch is recorded in the log.

    `slots` are module names (":residual" may follow one), or "auto". `optimizer` takes over the seeds that stay;
    `loss_fn(outputs, targets)` trains seeds in shadow; `probe`, held-out batches of (inputs, targets), lets gates
    measure. What is not given disables the gates that need it, and the refusal names them: without `loss_fn`
    seeds do not train and G2, G4 cannot pass; without `probe` neither can. `epochs` is how many are planned
    (0: unknown). `members` starts those members that are missing for the time of the block.

    The run is labelled recorded, not re-executable: only your own loop can train it again. When the block ends
    `TrainingRunFinished` is appended, or `TrainingRunFailed` when it raises.

    Raises:
        UsageError: no such policy or slot, or an argument that is not built yet.
        NotReadyError: there is no home, no broker, or no topics.
    """
    _refuse_unbuilt(scaler=scaler, scheduler=scheduler, on_log_loss=on_log_loss)
    check_policy(policy)
    current = settings or load_settings()
    with Fabric.open(current, member="grow") as fabric, contextlib.ExitStack() as stack:
        supervisor = stack.enter_context(members_for_a_while(current, wanted=_MEMBERS if members else ()))
        await_answering(fabric, supervisor)
        wishes = _Wishes(slots, optimizer, loss_fn, probe, policy, epochs, seed, name)
        run = GrowRun(model, wishes, fabric)
        _log.info("run %s is recorded, not re-executable", run.run_id)
        try:
            yield run
        except BaseException as error:
            run.fail(type(error).__name__)
            raise
        run.finish()
