"""What the log remembers, as tensors to learn from: whole episodes at an explicit offset vector."""

from esper.simic.experience._episodes import Part, Retention, part_of
from esper.simic.experience._reading import TOPICS, Reading, Recorded, ranges_until_now, read_experience
from esper.simic.experience._registry import Registry
from esper.simic.experience._rewards import RewardWeights

__all__ = [
    "TOPICS",
    "Part",
    "Reading",
    "Recorded",
    "Registry",
    "Retention",
    "RewardWeights",
    "part_of",
    "ranges_until_now",
    "read_experience",
]
