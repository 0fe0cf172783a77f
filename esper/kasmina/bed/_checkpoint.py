"""Kasmina's part of a checkpoint: every seed with its place on the host, and the counts from which all else follows.

What is kept is what no kernel, no request and no host gives again: the lifecycle, alpha, the seeds' optimisers, the
figures that gates look at. Bodies are built from the kernels that the log names; their tensors are filled in by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from esper.core.checkpoint import Saved, copy_into, named, refused, transient_buffers
from esper.kasmina.bed._bed import SeedBed
from esper.kasmina.bed._bench import HeldOutLosses, LiveSeed
from esper.kasmina.grafting._seed import GraftedSeed, Role
from esper.kasmina.grafting._slots import SlotSpec
from esper.kasmina.lifecycle._lifecycle import BARRED_STAGES, KasminaLifecycle
from esper.kasmina.lifecycle._return import lifecycle_in

#: Builds the body of a seed again from the digest of its kernel.
BodyOf = Callable[[str], nn.Module]


@dataclass(frozen=True)
class Counts:
    """Where a seed manager stands in its run; `kernels` are digests by seed."""

    step: int
    steps_per_epoch: int
    epoch: int
    decided_epoch: int
    kernels: Mapping[str, str]


def capture(lifecycle: KasminaLifecycle, bed: SeedBed, counts: Counts) -> Saved:
    """Return the state of every live seed and of the lifecycle; the tensors are the seeds' own, not copies."""
    tensors: dict[str, Tensor] = {}
    seeds = []
    for seed_id, live in bed.live.items():
        trained = live.trainer.checkpoint(_names(live.seed))
        tensors |= named(f"{seed_id}/trainer/", trained.tensors)
        if live.seed.role is Role.ISOLATED:
            tensors |= named(f"{seed_id}/transient/", transient_buffers(live.seed))
        seeds.append({"seed_id": seed_id, "seed": live.seed.facts(), "trainer": trained.facts, "held_out": _held(live)})
    if bed.probe is None and bed.last_batch is not None:
        # It stands in for the probe; where there is one, nobody looks at it. A run that is computed again trains on
        # plain tensors; in a loop of the user's own the next step brings another batch.
        inputs, targets = bed.last_batch
        if isinstance(inputs, Tensor) and isinstance(targets, Tensor):
            tensors["last_batch/inputs"], tensors["last_batch/targets"] = inputs, targets
    facts = {
        "counts": {**asdict(counts), "kernels": {seed_id: counts.kernels[seed_id] for seed_id in bed.live}},
        "multiply_adds": bed.multiply_adds,
        "isolation": bed.monitor.facts(),
        "lifecycle": {"events": lifecycle.events, "seeds": [asdict(record) for record in lifecycle.seeds.values()]},
        "seeds": seeds,
    }
    return Saved(facts, tensors)


def rebuild(
    saved: Saved, bed: SeedBed, slots: Mapping[str, SlotSpec], body_of: BodyOf
) -> tuple[KasminaLifecycle, Counts]:
    """Put the seeds of `saved` on a bed that has none, oldest first, and return the lifecycle and the counts.

    Weights and buffers that `KasminaSeedManager.state` or the host hold are left for whoever keeps those.

    Raises:
        IntegrityError: a seed is of a slot that this host does not have, or does not fit.
    """
    assert not bed.live, "only a fresh bed is planted from a checkpoint"
    lifecycle = lifecycle_in(saved)
    counts = Counts(**saved.facts["counts"])
    for facts in saved.facts["seeds"]:
        record = lifecycle.seeds[facts["seed_id"]]
        if record.slot not in slots:
            raise refused(f"seed {record.seed_id} is on the slot {record.slot!r}, which this host does not have")
        _plant(saved, facts, bed, slots[record.slot], body_of(counts.kernels[record.seed_id]))
    bed.monitor.restore(saved.facts["isolation"])
    for record in lifecycle.in_stages(BARRED_STAGES):
        if record.slot in slots:
            bed.never_here(record.seed_id, slots[record.slot])
    # Planting and trying out cost nothing: the work was counted when it was done.
    bed.multiply_adds = int(saved.facts["multiply_adds"])
    if "last_batch/inputs" in saved.tensors:
        bed.last_batch = saved.tensors["last_batch/inputs"], saved.tensors["last_batch/targets"]
    return lifecycle, counts


def _plant(saved: Saved, facts: Mapping[str, Any], bed: SeedBed, spec: SlotSpec, body: nn.Module) -> None:
    """Give one seed its place, its role and its figures, as they were."""
    seed_id = facts["seed_id"]
    bed.plant(seed_id, spec, bed.prepare(spec, body))
    live = bed.live[seed_id]
    role = Role(facts["seed"]["role"])
    if role is not Role.ISOLATED:
        bed.blend(seed_id, steps=1)  # The rise that follows from it is replaced by the one that was under way.
    if role is Role.FOSSIL:
        bed.fossilize(seed_id)
    live.seed.restore(facts["seed"])
    live.trainer.restore(Saved(facts["trainer"], saved.under(f"{seed_id}/trainer/")), _names(live.seed))
    live.held_out = None if facts["held_out"] is None else HeldOutLosses(**facts["held_out"])
    if role is Role.ISOLATED:
        copy_into(transient_buffers(live.seed), saved.under(f"{seed_id}/transient/"), what=f"buffers of seed {seed_id}")


def _names(seed: GraftedSeed) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in seed.named_parameters()}


def _held(live: LiveSeed) -> dict[str, Any] | None:
    return None if live.held_out is None else asdict(live.held_out)
