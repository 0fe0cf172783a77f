"""Seeds on a stack of hosts: measured, trained and grafted together, each as it would be on a host of its own."""

from esper.kasmina.stack._manager import UNSUPPORTED, StackedSeedManager

__all__ = ["UNSUPPORTED", "StackedSeedManager"]
