"""What can go wrong with a compilation, and which of it may pass."""

from __future__ import annotations

import errno
import re
from typing import Final

from esper.core.approvals import Refusal
from esper.core.errors import IntegrityError, NotReadyError, OperationFailed, UsageError

#: A full disk is emptied, a quota raised, a device answers again; a folder that is a file stays one.
_PASSING_ERRNOS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EAGAIN, errno.ENOMEM, errno.EMFILE})

#: The word by which a subprocess reports `NotZeroAtBirth`.
NOT_ZERO: Final = "not_zero"


class CompilerFault(OperationFailed):
    """The compiler subprocess did not do its work; the same work may succeed in a new one."""

    def __init__(self, cause: str) -> None:
        super().__init__("the compiler subprocess failed", cause=cause)


class CompileTimeout(CompilerFault):
    """It did not answer in time and was killed."""


class CompilerOutOfMemory(CompilerFault):
    """It, or a program that it started, took more memory than it may, or got none."""


class CompilerDied(CompilerFault):
    """It ended, or said something that is no answer."""


class CompileRefused(OperationFailed):
    """The work failed in a way that repeating it does not mend."""

    def __init__(self, cause: str) -> None:
        super().__init__("the kernel cannot be compiled", cause=cause, next_step="`esper events cat` shows the request")


class NoPart(UsageError):
    """The kernel is one that no compiled part can stand for; nothing is wrong with it, and it runs eagerly."""


class NotZeroAtBirth(CompileRefused):
    """The kernel's first output is not exactly zero: it would change its host before it has learnt anything."""


class CompilerStopped(NotReadyError):
    """The member is stopping; what it was at is left to its next life."""


class BlueprintRefused(UsageError):
    """The blueprint may not be compiled; `refusal` says why, its first word being the reason's."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(
            f"blueprint {refusal.blueprint_id} is not compiled", cause=str(refusal), next_step=refusal.next_step
        )
        self.refusal = refusal


def passes(error: BaseException) -> bool:
    """Return whether the same work may succeed if it is tried again."""
    return isinstance(error, CompilerFault | MemoryError) or (
        isinstance(error, OSError) and error.errno in _PASSING_ERRNOS
    )


def reason_of(error: BaseException) -> str:
    """Return why a compilation failed: a word made of the error's name, a colon, and the error in words."""
    if isinstance(error, BlueprintRefused):
        return f"{error.refusal}. {error.refusal.next_step}"[:1000]
    if isinstance(error, NoPart):
        return str(error)
    word = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(error).__name__).lower()
    return f"{word}: {error}"[:1000]


def fault_of(kind: str, cause: str) -> Exception:
    """Return the error that a subprocess reported by the kind that `kind_of` gave it."""
    if kind == "memory":
        return CompilerOutOfMemory(cause)
    if kind == NOT_ZERO:
        return NotZeroAtBirth(cause)
    if kind == "passing":
        return CompilerDied(cause)
    if kind == "no_part":
        return NoPart(cause.removeprefix(f"{NoPart.__name__}: "))
    if kind in ("usage", "integrity"):
        error = UsageError if kind == "usage" else IntegrityError
        return error("kernel cannot be compiled", cause=cause, next_step="correct the request or its blueprint")
    return CompileRefused(cause)


def kind_of(error: BaseException) -> str:
    """Return the word by which a subprocess reports an error."""
    # torch reports what it cannot allocate as RuntimeError, in these words on a CPU and on a GPU.
    if isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error).lower():
        return "memory"
    if isinstance(error, IntegrityError):
        return "integrity"
    if isinstance(error, NoPart):
        return "no_part"
    if isinstance(error, UsageError):
        return "usage"
    return "passing" if passes(error) else "refused"
