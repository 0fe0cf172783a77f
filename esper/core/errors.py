"""The errors Esper raises on purpose.

EsperError
├── UsageError              exit 2: the caller asked for something that does not exist or is malformed
│   └── SettingsError       exit 2: a setting or settings file cannot be used
├── NotReadyError           exit 3: a needed part is away, or this home is not set up
│   ├── BrokerUnavailable   exit 3: no Kafka broker answered within the deadline
│   ├── SecretError         exit 3: the signing secret is missing, too short or not the home's
│   └── Busy                exit 3: another process holds what this one needs
├── IntegrityError          exit 4: a record, artifact or projection is not what it claims to be
└── OperationFailed         exit 1: the work was tried and did not succeed

Each class says whether the same call may be tried again (`retriable`), and which exit code the
command line turns it into (`exit_code`). Fields travel on the exception: `what` failed, `cause`
in words, and the `next_step` for the person who reads it.
"""

from __future__ import annotations

from typing import ClassVar


class EsperError(Exception):
    """Base of every deliberate error; `str()` gives one line: what, why, what to do next."""

    exit_code: ClassVar[int] = 1
    retriable: ClassVar[bool] = False

    def __init__(self, what: str, *, cause: str = "", next_step: str = "") -> None:
        self.what = what
        self.cause = cause
        self.next_step = next_step
        super().__init__(what)

    def __str__(self) -> str:
        text = f"{self.what}: {self.cause}" if self.cause else self.what
        return f"{text}. {self.next_step}" if self.next_step else text


class OperationFailed(EsperError):
    """The work was tried and did not succeed."""


class UsageError(EsperError):
    """The caller named something that does not exist, or gave a malformed value."""

    exit_code = 2


class SettingsError(UsageError):
    """A setting or a settings file cannot be used."""


class NotReadyError(EsperError):
    """A part that this work needs is away or was never set up."""

    exit_code = 3
    retriable = True


class BrokerUnavailable(NotReadyError):
    """No Kafka broker answered within the deadline."""


class SecretError(NotReadyError):
    """The signing secret is missing, too short, or not the one this home was made with."""

    retriable = False


class Busy(NotReadyError):
    """Another live process holds the lock, port or name that this one needs."""


class IntegrityError(EsperError):
    """A record, artifact, checkpoint or projection is not what it claims to be."""

    exit_code = 4
