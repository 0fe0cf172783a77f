"""How a run says which place of which plan it fills: the name of its experiment."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_PREFIX: Final = "evaluation/"
_LABEL: Final = re.compile(
    r"evaluation/(?P<digest>[0-9a-f]{64})/(?P<task>[^/\s]+)/(?P<host>[^/\s]+)/(?P<arm>[a-z_]+)/(?P<part>[a-z0-9]+)"
)
#: The part of an arm that is one run.
WHOLE: Final = "run"


@dataclass(frozen=True)
class Place:
    """One run's place in a plan: cell, seed, arm, and which of the arm's runs it is."""

    task: str
    host: str
    seed: int
    arm: str
    part: str = WHOLE

    def label(self, digest: str) -> str:
        """Return the name of the experiment; the seed stands in the request itself."""
        return f"{_PREFIX}{digest}/{self.task}/{self.host}/{self.arm}/{self.part}"

    def __str__(self) -> str:
        part = "" if self.part == WHOLE else f", {self.part}"
        return f"{self.arm} of {self.task}/{self.host} with seed {self.seed}{part}"


def place_of(experiment: str, seed: int, digest: str) -> Place | None:
    """Return the place that a run's experiment and seed name in the plan of this digest; None where it names none."""
    found = _LABEL.fullmatch(experiment)
    if found is None or found["digest"] != digest:
        return None
    return Place(found["task"], found["host"], seed, found["arm"], found["part"])
