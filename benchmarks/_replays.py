"""One stack trained twice in this process, its steps replayed and one by one: the same bits, and what it saves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from esper.core.clock import SYSTEM_CLOCK
from esper.core.ports import BlueprintRuntime
from esper.core.stacking import Recorder, recorder_for
from esper.leyline import messages as ly
from esper.oona import Fabric
from esper.tamiyo import RunState, decide, fold
from esper.tolaria.stack import MemoryStackJournal, StackTrainer, prepared_stack
from esper.weatherlight import Collection
from esper.weatherlight._collecting import combined_digest, stack_requests
from esper.weatherlight._grafting import kernel_runtime
from esper.weatherlight._stack_grafting import stacked_controller


class _Tamiyo:
    """Decides by each run's own policy, without a log."""

    def __init__(self, requests: Sequence[ly.TrainingRunRequested]) -> None:
        self._states = {request.run_id: fold(RunState(request.run_id), request) for request in requests}

    def __call__(self, packet: ly.SystemStatePacket) -> ly.AdaptationCommand:
        run_id = packet.training_run_id
        state = fold(self._states[run_id], packet)
        decision = decide(state, state.packets[packet.current_epoch])
        self._states[run_id] = fold(state, decision.made)
        decision.command.meta.event_id = decision.command.command_id
        return decision.command


def compared(fabric: Fabric, collection: Collection) -> dict[str, Any]:
    """Return how replays compare with steps taken one by one, over one stack of `collection`."""
    requests = stack_requests(collection, collection.stacks()[0], fabric.settings)
    for request in requests:
        request.meta.event_id = request.meta.subject = request.run_id
    runtime = kernel_runtime(fabric)
    device = torch.device(collection.first.device)
    # The first is also what warms the device up.
    again, eager, replayed = (
        _trained(requests, runtime, each) for each in (recorder_for(device), None, recorder_for(device))
    )
    differing = next(
        (place for place, (one, other) in enumerate(zip(eager["each"], replayed["each"], strict=True)) if one != other),
        None,
    )
    shown = {"eager": eager, "replayed": replayed}
    return {
        "members": len(requests),
        "epochs": collection.first.epochs,
        "equal": differing is None,
        "first_difference": None if differing is None else {"member": differing % len(requests), "packet": differing},
        "repeats": replayed["each"] == again["each"],
        **{name: {key: value for key, value in arm.items() if key != "each"} for name, arm in shown.items()},
    }


def _trained(
    requests: Sequence[ly.TrainingRunRequested], runtime: BlueprintRuntime, recorder: Recorder | None
) -> dict[str, Any]:
    journal = MemoryStackJournal(_Tamiyo(requests))
    with prepared_stack(requests) as setup:
        trainer = StackTrainer(setup, stacked_controller(setup, runtime), journal, recorder=recorder)
        began = SYSTEM_CLOCK.monotonic()
        results = trainer.run()
        seconds = SYSTEM_CLOCK.monotonic() - began
    digests = [result.digest for result in results if result is not None]
    return {
        "seconds": seconds,
        "steps": vars(trainer.step_counts),
        "digest": combined_digest(digests),
        "each": [packet.weights_digest for packet in journal.packets] + digests,
    }
