"""`esper.grow`: seeds and the log for a training loop of the user's own, over the same Kasmina."""

from esper.weatherlight._grow._entry import grow
from esper.weatherlight._grow._run import GrowRun

__all__ = ["GrowRun", "grow"]
