"""Stacks: many runs of one task and one base host, trained in one process on a leading dimension."""

from esper.tolaria.stack._attempt import StackGraftsFactory, StackWiring, train_stack
from esper.tolaria.stack._evaluation import evaluate_stack
from esper.tolaria.stack._journal import MemoryStackJournal, RecordedStackJournal, StackJournal
from esper.tolaria.stack._kafka_journal import KafkaStackJournal, StackDecisions
from esper.tolaria.stack._reexecution import check_recorded_whole, re_execute_stack, weights_of_member
from esper.tolaria.stack._setup import StackSetup, check_alike, prepared_stack
from esper.tolaria.stack._static import StaticStackGrafts
from esper.tolaria.stack._trainer import StackTrainer

__all__ = [
    "KafkaStackJournal",
    "MemoryStackJournal",
    "RecordedStackJournal",
    "StackDecisions",
    "StackGraftsFactory",
    "StackJournal",
    "StackSetup",
    "StackTrainer",
    "StackWiring",
    "StaticStackGrafts",
    "check_alike",
    "check_recorded_whole",
    "evaluate_stack",
    "prepared_stack",
    "re_execute_stack",
    "train_stack",
    "weights_of_member",
]
