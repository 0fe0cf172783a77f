"""Refuses what cannot be trained before anything is started or written."""

from __future__ import annotations

from esper.weatherlight._training import TrainingRequest


def check_request(request: TrainingRequest) -> None:
    """Raise when the request names something that does not exist.

    A device is checked for its name alone: the worker may stand on another machine.

    Raises:
        UsageError: unknown task, host, policy or slot, or a number out of its range.
    """
    # Tasks are made of tensors: only a command that trains pays for importing torch.
    from esper.tamiyo import check_policy

    check_policy(request.policy, request.policy_parameters)
    from esper.tolaria import check_device_name, check_hyperparameters, check_slots, check_task

    check_hyperparameters(request.hyperparameters)
    check_device_name(request.device)
    check_task(request.task, request.host)
    if request.slots:
        check_slots(request.task, request.host, request.slots)
