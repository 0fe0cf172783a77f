"""Where a run stands in a stack, as its request says it."""

from __future__ import annotations

import hashlib
from typing import Final

from esper.core.errors import UsageError
from esper.core.ids import RunId, new_event_id
from esper.leyline import messages as ly

#: Why the runs of a stack end that nobody computes any more: none of them can be gone on with by itself.
STACK_LOST: Final = "stack_lost"
#: How the names of members begin that train stacks.
COLLECTOR: Final = "collector-"
_RUN_HEX: Final = 12


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


def check_alone(request: ly.TrainingRunRequested, what: str) -> None:
    """Raise UsageError for a member of a stack: `what` says what only a lone run can be."""
    if is_stacked(request):
        place = request.stack
        raise UsageError(
            what,
            cause=f"it was computed as member {place.index} of the stack {place.stack_id} of {place.size}",
            next_step="Ask for a lone run with the same task, host, policy and seed",
        )
