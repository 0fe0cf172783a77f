"""Stacks: many runs of one task and one base host, trained in one process on a leading dimension."""

from esper.tolaria.stack._evaluation import evaluate_stack
from esper.tolaria.stack._journal import MemoryStackJournal, RecordedStackJournal, StackJournal
from esper.tolaria.stack._setup import StackSetup, check_alike, prepared_stack
from esper.tolaria.stack._static import StaticStackGrafts
from esper.tolaria.stack._trainer import StackTrainer

__all__ = [
    "MemoryStackJournal",
    "RecordedStackJournal",
    "StackJournal",
    "StackSetup",
    "StackTrainer",
    "StaticStackGrafts",
    "check_alike",
    "evaluate_stack",
    "prepared_stack",
]
