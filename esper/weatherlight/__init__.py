"""Weatherlight: the composition root. Wires subsystems together and keeps their processes alive."""

from esper.weatherlight._cancel import cancel_run
from esper.weatherlight._compiling import MAKERS, Compiled, compile_kernels
from esper.weatherlight._doctor import Check, examine
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
from esper.weatherlight._readiness import absent
from esper.weatherlight._requests import check_request
from esper.weatherlight._supervisor import Supervisor, missing_members
from esper.weatherlight._training import (
    RunFailed,
    TrainingRequest,
    members_for_a_while,
    train,
)

__all__ = [
    "MAKERS",
    "SUBSYSTEMS",
    "BlueprintPipeline",
    "Check",
    "Compiled",
    "Member",
    "Ordered",
    "RunFailed",
    "RunOrder",
    "Supervisor",
    "TrainingRequest",
    "absent",
    "await_outcome",
    "cancel_run",
    "check_request",
    "check_subsystem",
    "compile_kernels",
    "examine",
    "interrupt_on_sigterm",
    "members_for_a_while",
    "missing_members",
    "order_run",
    "run_member",
    "stop_on_signals",
    "train",
]
