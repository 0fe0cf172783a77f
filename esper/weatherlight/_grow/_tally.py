"""What a loop of the user's own trained since its run began."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Tally:
    """Counts of one run; `edge_steps` are those taken before its last edge, `samples_of_all` those of all ranks."""

    epoch: int = 0
    steps: int = 0
    samples: int = 0
    samples_of_all: int = 0
    edge_steps: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
