"""Tolaria, the trainer: tasks, the epoch loop, its journal, and the worker that trains what is requested."""

from esper.tolaria._config import TrainingLoopConfig, check_device_name, check_hyperparameters
from esper.tolaria._environment import Elsewhere, Environment, differences
from esper.tolaria._reexecution import Comparison, Restored, check_re_executable, re_execute, state_at
from esper.tolaria._setup import ControllerFactory, TrainingSetup, check_slots, prepared
from esper.tolaria.loop._edge import EpochEdge, outcome_event_id, state_event_id
from esper.tolaria.loop._faults import TrainingDiverged
from esper.tolaria.loop._optimizer_orders import OPTIMIZER_BOUNDS, rate_factor
from esper.tolaria.loop._packet import EpochStats, controller_telemetry
from esper.tolaria.loop._return_rules import ReturnLimits
from esper.tolaria.loop._run_orders import RunOrders
from esper.tolaria.loop._static import StaticController
from esper.tolaria.loop._trainer import TolariaTrainer, TrainingResult
from esper.tolaria.record._checkpoint import (
    Checkpoint,
    CheckpointKeeper,
    Position,
    RunState,
    capture_run,
    digest_in,
    weights_in,
)
from esper.tolaria.record._journal import Answer, MemoryJournal, RunFenced, RunInterrupted, TrainingJournal
from esper.tolaria.record._keepers import CheckpointUnusable, restorable, verified_checkpoint
from esper.tolaria.record._points import ReturnPoints
from esper.tolaria.record._recording import (
    Difference,
    ForkingJournal,
    NotRepeated,
    RecordedJournal,
    Recording,
    ResumingJournal,
)
from esper.tolaria.tasks._evaluation import Evaluation, evaluate, evaluate_batches, multiply_adds_per_sample
from esper.tolaria.tasks._registry import check_task, load_task, task_names, with_host
from esper.tolaria.tasks._tasks import Host, SlotSpec, Split, Task
from esper.tolaria.worker._claims import ClaimBook, Claimed, RunClaim, claim
from esper.tolaria.worker._emergency import EmergencyDesk
from esper.tolaria.worker._inbox import CommandInbox, CommandJudge, CommandSource, DecisionBreaker, JudgeFactory
from esper.tolaria.worker._kafka_journal import KafkaJournal
from esper.tolaria.worker._past import Past, past_of
from esper.tolaria.worker._service import TolariaService, build_service

__all__ = [
    "OPTIMIZER_BOUNDS",
    "Answer",
    "Checkpoint",
    "CheckpointKeeper",
    "CheckpointUnusable",
    "ClaimBook",
    "Claimed",
    "CommandInbox",
    "CommandJudge",
    "CommandSource",
    "Comparison",
    "ControllerFactory",
    "DecisionBreaker",
    "Difference",
    "Elsewhere",
    "EmergencyDesk",
    "Environment",
    "EpochEdge",
    "EpochStats",
    "Evaluation",
    "ForkingJournal",
    "Host",
    "JudgeFactory",
    "KafkaJournal",
    "MemoryJournal",
    "NotRepeated",
    "Past",
    "Position",
    "RecordedJournal",
    "Recording",
    "Restored",
    "ResumingJournal",
    "ReturnLimits",
    "ReturnPoints",
    "RunClaim",
    "RunFenced",
    "RunInterrupted",
    "RunOrders",
    "RunState",
    "SlotSpec",
    "Split",
    "StaticController",
    "Task",
    "TolariaService",
    "TolariaTrainer",
    "TrainingDiverged",
    "TrainingJournal",
    "TrainingLoopConfig",
    "TrainingResult",
    "TrainingSetup",
    "build_service",
    "capture_run",
    "check_device_name",
    "check_hyperparameters",
    "check_re_executable",
    "check_slots",
    "check_task",
    "claim",
    "controller_telemetry",
    "differences",
    "digest_in",
    "evaluate",
    "evaluate_batches",
    "load_task",
    "multiply_adds_per_sample",
    "outcome_event_id",
    "past_of",
    "prepared",
    "rate_factor",
    "re_execute",
    "restorable",
    "state_at",
    "state_event_id",
    "task_names",
    "verified_checkpoint",
    "weights_in",
    "with_host",
]
