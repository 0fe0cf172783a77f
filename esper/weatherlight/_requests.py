"""Refuses what cannot be trained before anything is started or written."""

from __future__ import annotations

from esper.tamiyo import check_policy
from esper.weatherlight._training import TrainingRequest


def check_request(request: TrainingRequest) -> None:
    """Raise when the request names something that does not exist.

    Raises:
        UsageError: unknown task, host, policy, device or a number out of its range.
    """
    check_policy(request.policy)
    # Tasks are made of tensors: only a command that trains pays for importing torch.
    from esper.tolaria import check_task

    check_task(request.task, request.host)
