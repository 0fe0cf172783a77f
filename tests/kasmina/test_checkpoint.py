"""Kasmina's part of a checkpoint: nothing that decides the future is left out."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from esper.core.checkpoint import Saved, read_checkpoint, write_checkpoint
from esper.core.errors import IntegrityError
from esper.kasmina import KasminaSeedManager, discover_slots
from esper.kasmina.bed._checkpoint import Counts
from esper.kasmina.testing import InMemoryRuntime
from esper.leyline import messages as ly
from tests.kasmina.support import FACTORIES, RUN_ID, batch, mlp, seed_command, seeded

#: By class: what a checkpoint keeps, and what the request, the kernel, the configuration or the epoch's edge gives
#: again. An attribute of neither list was forgotten: keep it in `_checkpoint.py`, or say here where it comes from.
KEPT = {
    "KasminaSeedManager": {"lifecycle", "_step", "_epoch", "_steps_per_epoch", "_decided_epoch", "_kernels", "_growth"},
    # What of the work is not counted yet is counted when the figure is read.
    "SeedBed": {"live", "_multiply_adds", "last_batch", "monitor"},
    "GraftedSeed": {"role", "_draws", "mode"},  # and its blender, a module of its own
    "SeedTrainer": {"shadow", "gradients", "_steps", "_norm", "optimizer", "rate_share", "rate_factor"},
    "AlphaBlender": {"value", "_schedule", "_step"},
    "IsolationMonitor": {"breaker", "violations", "_epoch", "_last"},
}
GIVEN_AGAIN = {
    "KasminaSeedManager": {
        "_run_id", "_attempt", "_slots", "_descriptors", "_config", "_bed", "_examiner",
        # What of it decides anything is recorded; the rest is measured anew.
        "_house",
        # Empty or zero at every edge, when a checkpoint is taken.
        "_epoch_steps", "_owed", "_prepared", "_return", "_barred", "_work",
    },
    # `_open` and `_repeated` are of the step under way.
    "GraftedSeed": {"_placement", "_channel_dim", "_rng_seed", "_devices", "_focus", "_open", "_repeated"},
    # `_loss_sum`, `_loss_count` and `_norms` are of the epoch under way, and empty at its edge.
    "SeedTrainer": {"parameters", "_config", "_sound", "_ranks", "_loss_sum", "_loss_count", "_norms"},
    "AlphaBlender": set(),
    "IsolationMonitor": {"_registry", "_devices", "_active", "_now"},
}  # fmt: skip


def manager(runtime: InMemoryRuntime) -> KasminaSeedManager:
    model = seeded(mlp)
    slots = discover_slots(model, batch(0)[0])
    return KasminaSeedManager(
        model,
        slots,
        runtime=runtime,
        run_id=RUN_ID,
        seed=5,
        loss_fn=torch.nn.functional.cross_entropy,
        probe=[batch(90)],
    )


def germinated(runtime: InMemoryRuntime) -> KasminaSeedManager:
    made = manager(runtime)
    made.after_step(*batch(1))
    for event in made.end_epoch(1):
        made.fold(event)
    slot = made.slot_states()[0].slot
    command = seed_command(ly.SEED_OP_GERMINATE, epoch=1, slot=slot, blueprint="DROPPING")
    decision = made.handle_command(command, epoch=1, append=list[object]().append)
    assert decision.result == ly.COMMAND_RESULT_APPLIED, decision.reason
    return made


def own_attributes(thing: object) -> set[str]:
    """Return an object's own attributes; what torch keeps for every module is in its state."""
    ignored = set(vars(torch.nn.Module()))
    return set(vars(thing)) - ignored


def test_every_attribute_is_kept_or_given_again() -> None:
    """Goal: no state is added and forgotten. Method: look at every object that holds state, attribute by attribute."""
    made = germinated(InMemoryRuntime(FACTORIES))
    bed = made._bed
    (live,) = bed.live.values()
    assert live.seed.blender is not None
    things: Mapping[str, object] = {
        "KasminaSeedManager": made,
        "GraftedSeed": live.seed,
        "SeedTrainer": live.trainer,
        "AlphaBlender": live.seed.blender,
        "IsolationMonitor": bed.monitor,
    }
    for name, thing in things.items():
        assert own_attributes(thing) == KEPT[name] | GIVEN_AGAIN[name], name
    assert KEPT["SeedBed"] <= own_attributes(bed)


def test_what_is_restored_is_kept_alike() -> None:
    """Goal: a checkpoint of a restored manager is the checkpoint. Method: through bytes, and byte for byte."""
    runtime = InMemoryRuntime(FACTORIES)
    lived, restored = germinated(runtime), manager(runtime)
    for event in lived.end_epoch(2):
        lived.fold(event)
    content = write_checkpoint(lived.checkpoint())
    restored.restore(read_checkpoint(content))
    with torch.no_grad():
        for name, tensor in restored.state().items():
            tensor.copy_(lived.state()[name])
    assert write_checkpoint(restored.checkpoint()) == content
    assert [seed.SerializeToString() for seed in restored.seed_states()] == [
        seed.SerializeToString() for seed in lived.seed_states()
    ]


def test_a_seed_of_another_hosts_slot_is_refused() -> None:
    """Goal: nothing is planted where it does not belong. Method: a checkpoint whose seed names a slot nobody has."""
    runtime = InMemoryRuntime(FACTORIES)
    saved = germinated(runtime).checkpoint()
    seeds = [{**record, "slot": "nowhere"} for record in saved.facts["lifecycle"]["seeds"]]
    elsewhere = Saved({**saved.facts, "lifecycle": {**saved.facts["lifecycle"], "seeds": seeds}}, saved.tensors)
    with pytest.raises(IntegrityError, match="is on the slot 'nowhere', which this host does not have"):
        manager(runtime).restore(elsewhere)
    assert Counts(**saved.facts["counts"]).kernels.keys() == {record["seed_id"] for record in seeds}
