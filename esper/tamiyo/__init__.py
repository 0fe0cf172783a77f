"""Tamiyo: the controller. Policies judge a run's state packets; every decision, command and report is an event."""

from esper.core.policy import OBSERVATION_SCHEMA, OPERATIONS
from esper.tamiyo._actions import DEFAULT_OPTIONS, Action, ActionSpace, BlueprintOption, Head, action_space
from esper.tamiyo._decide import Decision, decide
from esper.tamiyo._fixed import FixedPolicy, FixedSchedule
from esper.tamiyo._heuristic import HeuristicPolicy
from esper.tamiyo._heuristic_config import HeuristicConfig
from esper.tamiyo._learned import LEARNED, LearnedPolicy, drawn_digest, is_learned
from esper.tamiyo._noop import NoopPolicy
from esper.tamiyo._observation import Observation, SlotView, observe
from esper.tamiyo._policies import LearnedPolicies, no_learned_policy, shipped_policy
from esper.tamiyo._policy import BadPolicyParameters, DrawingPolicy, NoLearnedPolicy, Policy, Proposal, UnknownPolicy
from esper.tamiyo._random import RandomPolicy
from esper.tamiyo._registry import check_policy, known_policies, make_policy
from esper.tamiyo._service import TamiyoService, build_service
from esper.tamiyo._stack import StackDecider
from esper.tamiyo._state import RunState, fold
from esper.tamiyo._store import FieldReportStore

__all__ = [
    "DEFAULT_OPTIONS",
    "LEARNED",
    "OBSERVATION_SCHEMA",
    "OPERATIONS",
    "Action",
    "ActionSpace",
    "BadPolicyParameters",
    "BlueprintOption",
    "Decision",
    "DrawingPolicy",
    "FieldReportStore",
    "FixedPolicy",
    "FixedSchedule",
    "Head",
    "HeuristicConfig",
    "HeuristicPolicy",
    "LearnedPolicies",
    "LearnedPolicy",
    "NoLearnedPolicy",
    "NoopPolicy",
    "Observation",
    "Policy",
    "Proposal",
    "RandomPolicy",
    "RunState",
    "SlotView",
    "StackDecider",
    "TamiyoService",
    "UnknownPolicy",
    "action_space",
    "build_service",
    "check_policy",
    "decide",
    "drawn_digest",
    "fold",
    "is_learned",
    "known_policies",
    "make_policy",
    "no_learned_policy",
    "observe",
    "shipped_policy",
]
