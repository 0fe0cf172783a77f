"""How a run ends that did not come to its end: the words for why, and the event."""

from __future__ import annotations

from typing import Final

from esper.core.errors import EsperError, IntegrityError, UsageError
from esper.core.ids import derive_id
from esper.core.ports import KernelUnavailable
from esper.leyline import messages as ly
from esper.oona import Publisher
from esper.tolaria.loop._faults import TrainingDiverged

#: A detail is for people; a library's error text may be pages.
_DETAIL_CHARACTERS_MAX: Final = 2000


def publish_failure(
    publisher: Publisher, *, run_id: str, attempt: int, reason: str, detail: str, epochs: int
) -> ly.TrainingRunFailed:
    """Append the end of a run that did not come to its end, and return the event."""
    failed = ly.TrainingRunFailed(
        run_id=run_id,
        attempt=attempt,
        reason=reason,
        detail=detail[:_DETAIL_CHARACTERS_MAX],
        epochs=epochs,
    )
    publisher.publish(failed, key=run_id, event_id=derive_id(run_id, "failed", attempt))
    return failed


def reason_of(error: EsperError) -> str:
    """Return the word for an error that ended a run."""
    """Return the word for what ended a run."""
    if isinstance(error, UsageError):
        return "task_unusable"
    if isinstance(error, TrainingDiverged):
        return "diverged"
    if isinstance(error, IntegrityError):
        return "digest_mismatch"
    if isinstance(error, KernelUnavailable):
        return "kernel_unavailable"
    return "failed"
