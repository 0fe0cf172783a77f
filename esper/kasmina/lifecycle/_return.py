"""A run that returns to a checkpoint: what becomes of its seeds, and what no return takes back; pure.

The network and everything that trains it stand as they stood. What was said stays said: ids of events and of seeds are
not used again, work that was done stays counted, and what holds growth back goes on holding it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from esper.core.checkpoint import Saved
from esper.kasmina.lifecycle._decide import Edge, EdgeEvents
from esper.kasmina.lifecycle._lifecycle import RETURN_REASON, KasminaLifecycle, SeedRecord
from esper.leyline import messages as ly
from esper.leyline.registry import EventMessage


def lifecycle_in(saved: Saved) -> KasminaLifecycle:
    """Return the lifecycle that a checkpoint holds."""
    facts: Mapping[str, Any] = saved.facts["lifecycle"]
    records = [SeedRecord(**one) for one in facts["seeds"]]
    return KasminaLifecycle({record.seed_id: record for record in records}, facts["events"])


def moves_back(edge: Edge, now: KasminaLifecycle, then: KasminaLifecycle, *, to_epoch: int) -> list[EventMessage]:
    """Return the moves by which seeds come to the stages that they had; one that was not yet born is DORMANT.

    No gate guards them and the table of transitions does not bind them: nothing is grown, something is restored.
    """
    collected = EdgeEvents(edge)
    for record in now.seeds.values():
        stage = then.seeds[record.seed_id].stage if record.seed_id in then.seeds else ly.SEED_STAGE_DORMANT
        if stage != record.stage:
            collected.add(
                ly.SeedStageChanged(
                    seed_id=record.seed_id,
                    slot=record.slot,
                    blueprint_id=record.blueprint_id,
                    from_stage=record.stage,
                    to_stage=stage,
                    reason=f"{RETURN_REASON}{to_epoch}",
                )
            )
    return collected.events


def returned(now: KasminaLifecycle, then: KasminaLifecycle, *, epoch: int, to_epoch: int) -> KasminaLifecycle:
    """Return the lifecycle after a return at the edge after `epoch` to the end of `to_epoch`.

    Ages, fine-tunings and embargoes go on from what they were there, so epochs of records move along. Seeds that were
    not yet born stay known, so that their ids are not given again. The moves of `moves_back` are counted in `now`.
    """
    shift = epoch - to_epoch
    seeds = {
        seed_id: replace(
            record,
            germinated_epoch=record.germinated_epoch + shift,
            stage_epoch=record.stage_epoch + shift,
            tuned_until=record.tuned_until + shift if record.tuned_until else 0,
        )
        for seed_id, record in then.seeds.items()
    }
    unborn = {
        seed_id: replace(record, stage=ly.SEED_STAGE_DORMANT, stage_epoch=epoch, tuned_until=0, folded=False)
        for seed_id, record in now.seeds.items()
        if seed_id not in seeds
    }
    return KasminaLifecycle({**seeds, **unborn}, now.events)
