"""Weatherlight: the composition root. Wires subsystems together and keeps their processes alive."""

from esper.weatherlight._cancel import cancel_run
from esper.weatherlight._collect import KERNEL_MAKERS, check_collection, collect
from esper.weatherlight._collecting import Collection
from esper.weatherlight._compiling import MAKERS, Compiled, compile_kernels
from esper.weatherlight._doctor import Check, examine
from esper.weatherlight._evaluate import check_evaluation, evaluate, evaluation_runs, report_evaluation
from esper.weatherlight._export_runs import export_run
from esper.weatherlight._fleet import Fleet, FleetRun, fleet_members, grid, train_fleet
from esper.weatherlight._fork_runs import ForkRequest, compare_runs, fork_request
from esper.weatherlight._learned import check_learned
from esper.weatherlight._members import (
    SUBSYSTEMS,
    Member,
    check_subsystem,
    interrupt_on_sigterm,
    run_member,
    stop_on_signals,
)
from esper.weatherlight._orders import Ordered, RunOrder, await_outcome, order_run
from esper.weatherlight._pipeline import BlueprintPipeline
from esper.weatherlight._policies import (
    PolicyTraining,
    Validation,
    policy_curves,
    policy_diff,
    policy_list,
    policy_show,
    promote_policy,
    roll_back_policy,
    train_again,
    train_policy,
    validate_policy,
)
from esper.weatherlight._readiness import READY_SECONDS, absent
from esper.weatherlight._replicates import check_replicates, replicate
from esper.weatherlight._requests import check_request
from esper.weatherlight._restore_outlook import restore_outlook
from esper.weatherlight._run_record import OtherEnvironment
from esper.weatherlight._supervisor import Supervisor, missing_members
from esper.weatherlight._training import (
    RunFailed,
    TrainingRequest,
    members_for_a_while,
    train,
)
from esper.weatherlight._trial_log import positions_of
from esper.weatherlight._trial_pedigree import cells_learned_from
from esper.weatherlight._unfit import unfit
from esper.weatherlight._verify_runs import Verified, restore_run, verify_run

__all__ = [
    "KERNEL_MAKERS",
    "MAKERS",
    "READY_SECONDS",
    "SUBSYSTEMS",
    "BlueprintPipeline",
    "Check",
    "Collection",
    "Compiled",
    "Fleet",
    "FleetRun",
    "ForkRequest",
    "Member",
    "Ordered",
    "OtherEnvironment",
    "PolicyTraining",
    "RunFailed",
    "RunOrder",
    "Supervisor",
    "TrainingRequest",
    "Validation",
    "Verified",
    "absent",
    "await_outcome",
    "cancel_run",
    "cells_learned_from",
    "check_collection",
    "check_evaluation",
    "check_learned",
    "check_replicates",
    "check_request",
    "check_subsystem",
    "collect",
    "compare_runs",
    "compile_kernels",
    "evaluate",
    "evaluation_runs",
    "examine",
    "export_run",
    "fleet_members",
    "fork_request",
    "grid",
    "interrupt_on_sigterm",
    "members_for_a_while",
    "missing_members",
    "order_run",
    "policy_curves",
    "policy_diff",
    "policy_list",
    "policy_show",
    "positions_of",
    "promote_policy",
    "replicate",
    "report_evaluation",
    "restore_outlook",
    "restore_run",
    "roll_back_policy",
    "run_member",
    "stop_on_signals",
    "train",
    "train_again",
    "train_fleet",
    "train_policy",
    "unfit",
    "validate_policy",
    "verify_run",
]
