"""From a log and a policy to a candidate that the log can still judge."""

from esper.simic.training._offline import Ended, OfflineSettings, Training, train_offline

__all__ = ["Ended", "OfflineSettings", "Training", "train_offline"]
