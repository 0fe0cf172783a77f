"""Bytes that are not what they were said to be: which part of a kernel, why, and the event that tells of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from esper.core.errors import EsperError, IntegrityError
from esper.leyline import messages as ly

_logger = logging.getLogger("esper.kernel")

#: What of a kernel can be wrong.
MANIFEST: Final = "manifest"
SPEC: Final = "spec"
WEIGHTS: Final = "weights"
COMPILED_PART: Final = "compiled part"
CATALOGUE_ENTRY: Final = "catalogue entry"

_REASON_CHARACTERS_MAX: Final = 1000


class ArtifactRefused(IntegrityError):
    """Stored bytes are not what they were said to be; nothing of them was built. `part` names which."""

    def __init__(self, what: str, *, part: str, cause: str = "", next_step: str = "") -> None:
        super().__init__(what, cause=cause, next_step=next_step)
        self.part = part


@contextmanager
def refused_as(part: str) -> Iterator[None]:
    """Say of an IntegrityError raised inside that this part of a kernel is the wrong one.

    Raises:
        ArtifactRefused: in place of the IntegrityError.
    """
    try:
        yield
    except ArtifactRefused:
        raise
    except IntegrityError as error:
        raise ArtifactRefused(error.what, part=part, cause=error.cause, next_step=error.next_step) from error


def part_of(error: BaseException) -> str:
    """Return which part of a kernel an error is about; the manifest, of which all others hang, where it says none."""
    return error.part if isinstance(error, ArtifactRefused) else MANIFEST


class RefusalTeller:
    """Tells the log that stored bytes were refused: each artifact, part and cause once in the life of this process.

    `publish` appends one event under the key given; None: nobody is told but the process's own log.
    """

    def __init__(self, publish: Callable[[ly.KernelIntegrityFailed, str], object] | None) -> None:
        self._publish = publish
        self._told: set[tuple[str, str, str, str]] = set()
        self.count = 0

    def tell(self, kernel_id: str, artifact_ref: str, error: EsperError, *, part: str = "") -> bool:
        """Append the event of this refusal unless it was told before; return whether it was news."""
        self.count += 1
        kernel_id, artifact_ref = _sayable(kernel_id), _sayable(artifact_ref)
        reason = _sayable(f"{error.what}: {error.cause}" if error.cause else error.what)
        event = ly.KernelIntegrityFailed(
            kernel_id=kernel_id,
            artifact_ref=artifact_ref,
            part=part or part_of(error),
            reason=reason[:_REASON_CHARACTERS_MAX],
        )
        told = (kernel_id, artifact_ref, event.part, event.reason)
        if told in self._told:
            return False
        _logger.error("kernel %s, artifact %s: its %s is refused: %s", kernel_id, artifact_ref, event.part, reason)
        if self._publish is not None:
            self._publish(event, kernel_id or artifact_ref)
        self._told.add(told)
        return True


def _sayable(text: str) -> str:
    """Return `text` with half characters escaped: who refuses hostile bytes must be able to say so in UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
