"""From a log and a policy to a candidate that the log can still judge."""

from esper.simic.training._candidate import (
    Candidate,
    CandidateSettings,
    grown,
    registry_of,
    spoken_in,
    train_candidate,
)
from esper.simic.training._offline import Ended, OfflineSettings, Training, train_offline
from esper.simic.training._plots import draw_training

__all__ = [
    "Candidate",
    "CandidateSettings",
    "Ended",
    "OfflineSettings",
    "Training",
    "draw_training",
    "grown",
    "registry_of",
    "spoken_in",
    "train_candidate",
    "train_offline",
]
