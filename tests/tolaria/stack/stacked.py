"""A small stack: spirals with few samples, and its members as lone runs."""

from __future__ import annotations

from collections.abc import Sequence

from esper.core.stacks import member_run_id
from esper.leyline import messages as ly

TASK = "tests.tolaria.short:spirals"
STACK = "stack-000000000001"


def requests(
    members: int, *, epochs: int = 3, stack_id: str = STACK, seeds: Sequence[int] | None = None, **fields: object
) -> list[ly.TrainingRunRequested]:
    """Return the requests of a stack whose members have the seeds 1, 2, ..."""
    made = []
    for index in range(members):
        request = ly.TrainingRunRequested(
            run_id=member_run_id(stack_id, index),
            task=TASK,
            host="mlp",
            policy="fixed",
            epochs=epochs,
            seed=seeds[index] if seeds else index + 1,
            device="cpu",
            re_executable=True,
            stack=ly.StackPlace(stack_id=stack_id, index=index, size=members),
        )
        request.meta.event_id = f"{index:032d}"
        request.MergeFrom(ly.TrainingRunRequested(**fields))  # type: ignore[arg-type]
        made.append(request)
    return made


def alone(request: ly.TrainingRunRequested) -> ly.TrainingRunRequested:
    """Return the request of a member as that of a lone run."""
    lone = ly.TrainingRunRequested()
    lone.CopyFrom(request)
    lone.ClearField("stack")
    return lone
