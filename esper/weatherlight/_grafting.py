"""Gives each run its own Kasmina: kernels through Urza, commands judged by a fold of the run's outcomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

from esper.core.kernel import DirectoryBlobStore
from esper.core.ports import BlueprintRuntime
from esper.core.settings import Settings
from esper.karn import catalogue
from esper.kasmina import (
    KasminaConfig,
    KasminaSeedManager,
    LatencyBudgets,
    RunCommandVerifier,
    SlotSpec,
    discover_slots,
)
from esper.leyline import messages as ly
from esper.oona import Fabric
from esper.tolaria import ControllerFactory, JudgeFactory, TrainingSetup
from esper.tolaria import SlotSpec as HostSlot
from esper.urza import UrzaRuntime

_TRACED_SAMPLES = 2
_PROBE_BATCH = 256


@cache
def descriptors() -> Mapping[str, ly.BlueprintDescriptor]:
    """Return the descriptor of every blueprint that Karn offers, by id."""
    return {blueprint_id: blueprint.descriptor() for blueprint_id, blueprint in catalogue().items()}


def kernel_runtime(fabric: Fabric) -> UrzaRuntime:
    """Return a runtime that fetches kernels for the model of this process and asks for them as Kasmina."""
    return UrzaRuntime(fabric, store=DirectoryBlobStore(fabric.home.blobs), publisher=fabric.publisher("kasmina"))


def judge_factory(fabric: Fabric) -> JudgeFactory:
    """Return what makes the judge of one run."""
    window = fabric.settings.command_window_seconds
    return lambda run_id: RunCommandVerifier(run_id, window_seconds=window)


def slot_specs(setup: TrainingSetup, wanted: tuple[HostSlot, ...]) -> list[SlotSpec]:
    """Return the wanted slots of a run's host as Kasmina knows them."""
    if not wanted:
        return []
    asked = {f"{slot.module}:{slot.placement}": slot.name for slot in wanted}
    found = discover_slots(setup.model, setup.train.inputs[:_TRACED_SAMPLES], list(asked))
    return [replace(spec, slot=asked[spec.slot]) for spec in found]


def kasmina_config(settings: Settings, *, kernel_wait_seconds: float) -> KasminaConfig:
    """Return how Kasmina works under these settings.

    Raises:
        UsageError: the latency budgets cannot be read.
    """
    return KasminaConfig(
        kernel_wait_seconds=kernel_wait_seconds,
        cache_bytes_max=settings.kernel_device_bytes,
        cache_epochs_max=settings.kernel_device_epochs,
        memory_share_max=settings.memory_share_max,
        collect_every_epochs=settings.collect_every_epochs,
        latency_budgets=LatencyBudgets.of(settings.latency_budgets),
        enforce_latency=settings.enforce_latency,
    )


def controller(
    setup: TrainingSetup, runtime: BlueprintRuntime, config: KasminaConfig | None = None
) -> KasminaSeedManager:
    """Return the Kasmina of one attempt at one run."""
    probe = setup.probe
    batches = [
        (probe.inputs[at : at + _PROBE_BATCH], probe.targets[at : at + _PROBE_BATCH])
        for at in range(0, len(probe), _PROBE_BATCH)
    ]
    return KasminaSeedManager(
        setup.model,
        slot_specs(setup, setup.slots),
        runtime=runtime,
        run_id=setup.request.run_id,
        attempt=setup.attempt,
        seed=setup.request.seed,
        loss_fn=setup.loss,
        probe=batches,
        optimizer=setup.optimizer,
        descriptors=descriptors(),
        config=config or KasminaConfig(kernel_wait_seconds=setup.config.kernel_wait_seconds),
    )


def controller_factory(fabric: Fabric) -> ControllerFactory:
    """Return what makes the controller of one attempt; all attempts of a worker share one runtime."""
    runtime, settings = kernel_runtime(fabric), fabric.settings
    LatencyBudgets.of(settings.latency_budgets)  # A worker that cannot read its settings takes no run.
    return lambda setup: controller(
        setup, runtime, kasmina_config(settings, kernel_wait_seconds=setup.config.kernel_wait_seconds)
    )
