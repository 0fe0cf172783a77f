"""Computing a recorded run again, from its request and outcomes alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from esper.core.errors import IntegrityError, UsageError
from esper.leyline import messages as ly
from esper.tolaria._recording import Difference, NotRepeated, RecordedJournal, Recording, RecordingEnded
from esper.tolaria._setup import ControllerFactory, prepared
from esper.tolaria._trainer import TolariaTrainer, TrainingResult


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


def re_execute(
    request: ly.TrainingRunRequested,
    outcomes: Iterable[ly.CommandOutcome],
    packets: Iterable[ly.SystemStatePacket],
    controller_factory: ControllerFactory,
    *,
    finished: ly.TrainingRunFinished | None = None,
    on_epoch: Callable[[int], None] | None = None,
) -> Comparison:
    """Train `request` again with the recorded outcomes and compare every packet, in silence.

    Same code as the live run, with a journal that appends nothing. A run that was cut off is compared as
    far as it was recorded; with `finished`, the end's digest, accuracy and loss are compared too.
    `on_epoch` is told of each epoch that agrees.

    Raises:
        UsageError: the run cannot be computed here: its loop was the user's own, or its task is not here.
        IntegrityError: the record lacks an epoch.
        KernelUnavailable: no store holds a kernel that was grafted.
    """
    if not request.re_executable:
        raise UsageError(
            f"run {request.run_id} cannot be computed again",
            cause="its loop was the user's own; Esper recorded it but cannot repeat it",
            next_step="`esper runs show` lists what was recorded",
        )
    recording = Recording.of(packets, outcomes)
    with prepared(request) as setup:
        trainer = TolariaTrainer(setup, controller_factory(setup), RecordedJournal(recording))
        difference = _repeat(trainer, recording, on_epoch)
        if difference is None and finished is not None:
            difference = _end_difference(trainer.result(), finished)
        return Comparison(request.run_id, trainer.epochs_finished, difference)


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


def _end_difference(result: TrainingResult, finished: ly.TrainingRunFinished) -> Difference | None:
    pairs = (
        ("digest", finished.digest, result.digest),
        ("accuracy", finished.accuracy, result.test.accuracy),
        ("loss", finished.loss, result.test.loss),
    )
    for name, expected, found in pairs:
        if repr(expected) != repr(found):
            return Difference(result.epochs, name, repr(expected), repr(found))
    return None
