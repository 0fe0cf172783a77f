"""Computing a recorded run again, from its request and outcomes alone."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from esper.core.errors import IntegrityError, UsageError
from esper.core.kernel import BlobStore
from esper.leyline import messages as ly
from esper.tolaria._setup import ControllerFactory, prepared
from esper.tolaria.loop._trainer import TolariaTrainer, TrainingResult
from esper.tolaria.record._checkpoint import Checkpoint
from esper.tolaria.record._keepers import (
    CheckpointUnusable,
    ComparedCheckpoints,
    HeldCheckpoints,
    restorable,
    unusable_unless_whole,
    verified_checkpoint,
)
from esper.tolaria.record._points import ReturnPoints
from esper.tolaria.record._recording import Difference, NotRepeated, RecordedJournal, Recording, RecordingEnded
from esper.tolaria.worker._past import Past

_log = logging.getLogger("esper.tolaria.reexecution")


@dataclass(frozen=True)
class Comparison:
    """What a re-execution came to: `epochs` were computed and agree, and where it first differed, if it did."""

    run_id: str
    epochs: int
    first_difference: Difference | None = None

    @property
    def equal(self) -> bool:
        """Whether everything that was recorded came out again."""
        return self.first_difference is None


@dataclass(frozen=True)
class Restored:
    """The state at the end of an epoch, and the epoch of the checkpoint that it was computed from; 0: from nothing."""

    checkpoint: Checkpoint
    from_epoch: int


def re_execute(
    request: ly.TrainingRunRequested,
    outcomes: Iterable[ly.CommandOutcome],
    packets: Iterable[ly.SystemStatePacket],
    controller_factory: ControllerFactory,
    *,
    finished: ly.TrainingRunFinished | None = None,
    checkpoints: Iterable[ly.CheckpointSaved] = (),
    on_epoch: Callable[[int], None] | None = None,
) -> Comparison:
    """Train `request` again with the recorded outcomes and compare every packet, in silence.

    Same code as the live run, with a journal that appends nothing. A run that was cut off is compared as
    far as it was recorded; with `finished`, the end's digest, accuracy and loss are compared too, and with
    `checkpoints` the bytes of each: the state of optimisers and random streams as well as the weights.
    `on_epoch` is told of each epoch that agrees.

    Raises:
        UsageError: the run cannot be computed here: its loop was the user's own, or its task is not here.
        IntegrityError: the record lacks an epoch.
        KernelUnavailable: no store holds a kernel that was grafted.
    """
    check_re_executable(request)
    recording = Recording.of(packets, outcomes)
    with prepared(request) as setup:
        compared = ComparedCheckpoints(request.run_id, checkpoints)
        trainer = TolariaTrainer(
            setup,
            controller_factory(setup),
            RecordedJournal(recording),
            checkpoints=compared,
            points=ReturnPoints(recorded=recording.returns(), repeated_epochs=recording.epochs),
        )
        with contextlib.closing(trainer):
            difference = _repeat(trainer, recording, on_epoch)
            if difference is None and finished is not None:
                difference = end_difference(trainer.result(), finished)
        return Comparison(request.run_id, trainer.epochs_finished, difference)


def check_re_executable(request: ly.TrainingRunRequested) -> None:
    """Raise UsageError where a run cannot be computed again."""
    if not request.re_executable:
        raise UsageError(
            f"run {request.run_id} cannot be computed again",
            cause="its loop was the user's own; Esper recorded it but cannot repeat it",
            next_step="`esper runs show` lists what was recorded",
        )


def state_at(
    request: ly.TrainingRunRequested,
    past: Past,
    epoch: int,
    controller_factory: ControllerFactory,
    *,
    store: BlobStore,
    on_epoch: Callable[[int], None] | None = None,
) -> Restored:
    """Return the checkpoint of `epoch`: a kept one, or computed again from the nearest before it, or from the start.

    Whatever way it was come by, it is what the log says: each epoch computed on the way is compared, and the weights
    have the digest of the epoch's packet. Checkpoints that are missing or damaged are passed over.

    Raises:
        UsageError: the run cannot be computed here.
        NotRepeated: computed again, the run leaves the record.
        KernelUnavailable: no store holds a kernel that was grafted.
    """
    check_re_executable(request)
    for start in (*restorable(past.checkpoints, past.recording.outcomes, until=epoch), None):
        try:
            return _reached(request, past, epoch, controller_factory, start=start, store=store, on_epoch=on_epoch)
        except CheckpointUnusable as error:
            _log.warning("run %s: a checkpoint is not used: %s", request.run_id, error)
    raise AssertionError("the run's beginning needs no checkpoint")


def _reached(
    request: ly.TrainingRunRequested,
    past: Past,
    epoch: int,
    controller_factory: ControllerFactory,
    *,
    start: ly.CheckpointSaved | None,
    store: BlobStore,
    on_epoch: Callable[[int], None] | None,
) -> Restored:
    packets, content = past.recording.packets, b""
    if start is not None:
        with unusable_unless_whole():
            content = verified_checkpoint(store, start, packets[start.epoch])
        if start.epoch == epoch:
            return Restored(Checkpoint(epoch, content, start.weights_digest), start.epoch)
    held = HeldCheckpoints(frozenset({epoch}))
    points = ReturnPoints(
        store=store,
        kept=past.checkpoints,
        recorded=past.recording.returns(),
        repeated_epochs=past.recording.epochs,
    )
    with prepared(request) as setup:
        journal = RecordedJournal(past.recording)
        trainer = TolariaTrainer(setup, controller_factory(setup), journal, checkpoints=held, points=points)
        with contextlib.closing(trainer):
            if start is not None:
                with unusable_unless_whole():
                    trainer.resume(content, packets[start.epoch], past=past.recording)
            for following in range(trainer.epochs_finished + 1, epoch + 1):
                trainer.run_epoch(following)
                if on_epoch is not None:
                    on_epoch(following)
    return Restored(held.held[epoch], 0 if start is None else start.epoch)


def _repeat(trainer: TolariaTrainer, recording: Recording, on_epoch: Callable[[int], None] | None) -> Difference | None:
    """Compute every recorded epoch; return the first difference."""
    for epoch in recording.packets:
        try:
            trainer.run_epoch(epoch)
        except RecordingEnded:
            # The run was cut off between a packet and its outcome; the packet agreed.
            return None
        except NotRepeated as error:
            return error.difference
        except IntegrityError as error:
            return Difference(epoch, "gates", "the recorded verdicts", str(error))
        if on_epoch is not None:
            on_epoch(epoch)
    return None


def end_difference(result: TrainingResult, finished: ly.TrainingRunFinished) -> Difference | None:
    """Return in what an end that was computed again differs from the recorded one; None where it does not."""
    pairs = (
        ("digest", finished.digest, result.digest),
        ("accuracy", finished.accuracy, result.test.accuracy),
        ("loss", finished.loss, result.test.loss),
    )
    for name, expected, found in pairs:
        if repr(expected) != repr(found):
            return Difference(result.epochs, name, repr(expected), repr(found))
    return None
