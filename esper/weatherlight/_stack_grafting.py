"""Gives a stack its Kasmina."""

from __future__ import annotations

from esper.core.ports import BlueprintRuntime
from esper.kasmina import KasminaConfig
from esper.kasmina.stack import StackedSeedManager
from esper.tolaria.stack import StackSetup
from esper.weatherlight._grafting import descriptors, slot_specs


def stacked_controller(setup: StackSetup, runtime: BlueprintRuntime) -> StackedSeedManager:
    """Return the Kasmina of a stack: slots are the same modules in every member."""
    first = setup.first
    return StackedSeedManager(
        setup.host,
        slot_specs(first, first.slots),
        runtime=runtime,
        run_ids=[member.request.run_id for member in setup.members],
        probe=(first.probe.inputs, first.probe.targets),
        descriptors=descriptors(),
        config=KasminaConfig(kernel_wait_seconds=first.config.kernel_wait_seconds),
    )
