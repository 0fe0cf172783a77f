"""Where a run stands in a stack, as its request says it."""

from __future__ import annotations

import hashlib

from esper.core.ids import RunId, new_event_id
from esper.leyline import messages as ly

_RUN_HEX = 12


def new_stack_id() -> str:
    """Return a fresh id of a stack."""
    return f"stack-{new_event_id()[:_RUN_HEX]}"


def member_run_id(stack_id: str, index: int) -> RunId:
    """Return the run id of a stack's member: whoever knows one member of a stack can name all."""
    return RunId(f"run-{hashlib.sha256(f'{stack_id}/{index}'.encode()).hexdigest()[:_RUN_HEX]}")


def is_stacked(request: ly.TrainingRunRequested) -> bool:
    """Whether the run is a member of a stack, which only the whole stack can train."""
    return request.HasField("stack")


def stack_of(request: ly.TrainingRunRequested) -> list[RunId]:
    """Return the run ids of all members of a run's stack, in their order; of a run in no stack its own."""
    if not is_stacked(request):
        return [RunId(request.run_id)]
    return [member_run_id(request.stack.stack_id, index) for index in range(request.stack.size)]
