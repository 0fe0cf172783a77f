"""What a computation depends on besides its request, as a run recorded it and as it is here."""

from __future__ import annotations

from dataclasses import dataclass

from esper.core.numerics import (
    TRAINING_DISTRIBUTIONS,
    code_version,
    data_digest,
    dependencies_digest,
    numerics_fingerprint,
)
from esper.leyline import messages as ly
from esper.tolaria._setup import TrainingSetup

#: In the order in which a difference is most telling.
_OTHERS = ("data_digest", "code_version", "dependencies_digest")


@dataclass(frozen=True)
class Environment:
    """Numerics, code, dependencies and data of one computation."""

    numerics: ly.NumericsFingerprint
    code_version: str
    dependencies_digest: str
    data_digest: str

    @classmethod
    def here(cls, setup: TrainingSetup) -> Environment:
        """Return that of this process; to be called inside the `prepared` block."""
        return cls(
            numerics=numerics_fingerprint(setup.config.device),
            code_version=code_version(),
            dependencies_digest=dependencies_digest((*TRAINING_DISTRIBUTIONS, *setup.task.distributions)),
            data_digest=data_digest(setup.task.arrays()),
        )

    @classmethod
    def of(cls, started: ly.TrainingRunStarted) -> Environment:
        """Return that of a recorded attempt."""
        return cls(started.numerics, started.code_version, started.dependencies_digest, started.data_digest)

    def facts(self) -> dict[str, str]:
        """Return every part by its name."""
        numerics = {
            f"numerics.{field.name}": str(getattr(self.numerics, field.name))
            for field in ly.NumericsFingerprint.DESCRIPTOR.fields
        }
        return {name: getattr(self, name) for name in _OTHERS} | numerics


@dataclass(frozen=True)
class Elsewhere:
    """One thing that a recorded attempt had otherwise than this process."""

    attempt: int
    name: str
    recorded: str
    here: str

    def __str__(self) -> str:
        return f"{self.name} was {self.recorded} in attempt {self.attempt} and is {self.here} here"


def differences(starts: tuple[ly.TrainingRunStarted, ...], here: Environment) -> tuple[Elsewhere, ...]:
    """Return what the recorded attempts had otherwise; pure."""
    now = here.facts()
    return tuple(
        Elsewhere(started.attempt, name, recorded, now[name])
        for started in starts
        for name, recorded in Environment.of(started).facts().items()
        if recorded != now[name]
    )
