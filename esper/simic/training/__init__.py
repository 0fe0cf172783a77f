"""From a log and a policy to a candidate that the log can still judge."""

from esper.simic.training._candidate import (
    Candidate,
    CandidateSettings,
    grown,
    registry_of,
    train_candidate,
)
from esper.simic.training._offline import Ended, OfflineSettings, Training, train_offline

__all__ = [
    "Candidate",
    "CandidateSettings",
    "Ended",
    "OfflineSettings",
    "Training",
    "grown",
    "registry_of",
    "train_candidate",
    "train_offline",
]
