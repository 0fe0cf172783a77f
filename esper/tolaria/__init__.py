"""Tolaria, the trainer: tasks, the epoch loop, its journal, and the worker that trains what is requested."""

from esper.tolaria._checkpoint import (
    Checkpoint,
    CheckpointKeeper,
    Position,
    RunState,
    capture_run,
    digest_in,
    weights_in,
)
from esper.tolaria._checkpoint_keepers import CheckpointUnusable, restorable, verified_checkpoint
from esper.tolaria._claims import ClaimBook, Claimed, RunClaim, claim
from esper.tolaria._config import TrainingLoopConfig, check_device_name, check_hyperparameters
from esper.tolaria._edge import EpochEdge, outcome_event_id, state_event_id
from esper.tolaria._emergency import EmergencyDesk
from esper.tolaria._environment import Elsewhere, Environment, differences
from esper.tolaria._evaluation import Evaluation, evaluate, evaluate_batches, multiply_adds_per_sample
from esper.tolaria._faults import TrainingDiverged
from esper.tolaria._inbox import CommandInbox, CommandJudge, CommandSource, DecisionBreaker, JudgeFactory
from esper.tolaria._journal import Answer, MemoryJournal, RunFenced, RunInterrupted, TrainingJournal
from esper.tolaria._kafka_journal import KafkaJournal
from esper.tolaria._optimizer_orders import OPTIMIZER_BOUNDS, rate_factor
from esper.tolaria._packet import EpochStats, controller_telemetry
from esper.tolaria._past import Past, past_of
from esper.tolaria._points import ReturnPoints
from esper.tolaria._recording import (
    Difference,
    ForkingJournal,
    NotRepeated,
    RecordedJournal,
    Recording,
    ResumingJournal,
)
from esper.tolaria._reexecution import Comparison, Restored, check_re_executable, re_execute, state_at
from esper.tolaria._registry import check_task, load_task, task_names, with_host
from esper.tolaria._return_rules import ReturnLimits
from esper.tolaria._run_orders import RunOrders
from esper.tolaria._service import TolariaService, build_service
from esper.tolaria._setup import ControllerFactory, TrainingSetup, check_slots, prepared
from esper.tolaria._static import StaticController
from esper.tolaria._tasks import Host, SlotSpec, Split, Task
from esper.tolaria._trainer import TolariaTrainer, TrainingResult

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
