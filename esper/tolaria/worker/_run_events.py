"""The first and the last event of an attempt, of lone runs and of members of a stack alike."""

from __future__ import annotations

from esper.leyline import messages as ly
from esper.tolaria._environment import Environment
from esper.tolaria.loop._trainer import TrainingResult


def started_event(
    request: ly.TrainingRunRequested,
    here: Environment,
    *,
    attempt: int,
    worker: str,
    parameters: int,
    initial_digest: str,
    resumed_epochs: int = 0,
) -> ly.TrainingRunStarted:
    """Return the event that says under what an attempt computes."""
    return ly.TrainingRunStarted(
        run_id=request.run_id,
        attempt=attempt,
        worker=worker,
        numerics=here.numerics,
        code_version=here.code_version,
        dependencies_digest=here.dependencies_digest,
        data_digest=here.data_digest,
        parameters=parameters,
        initial_digest=initial_digest,
        resumed_epochs=resumed_epochs,
    )


def finished_event(run_id: str, result: TrainingResult, *, attempt: int) -> ly.TrainingRunFinished:
    """Return the event that says what a run came to."""
    return ly.TrainingRunFinished(
        run_id=run_id,
        attempt=attempt,
        epochs=result.epochs,
        accuracy=result.test.accuracy,
        loss=result.test.loss,
        parameters=result.parameters,
        multiply_adds=result.multiply_adds,
        multiply_adds_per_sample=result.multiply_adds_per_sample,
        digest=result.digest,
        seeds=result.seeds,
        validation_accuracy=result.validation.accuracy,
        validation_loss=result.validation.loss,
    )
