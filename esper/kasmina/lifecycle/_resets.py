"""What becomes of culled seeds whose embargo is over: reset, and their slots free again, if G5 passes; pure.

The verdicts go into the outcome of the epoch's edge, as "SEED_GATE_G5_RESET:SEED_ID": whether memory is gone is a
fact about a process, which a re-execution cannot measure again. It takes them from the record, so that a run is a
function of its request and its outcomes. One that was recorded before there was a reset names none and has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from esper.core.errors import IntegrityError
from esper.core.ports import EdgeDecision
from esper.kasmina.lifecycle._decide import Edge, EdgeEvents
from esper.kasmina.lifecycle._lifecycle import BARRED_STAGES, RESET_PATH, KasminaLifecycle, SeedRecord, gate_name
from esper.leyline import messages as ly

_GATE: Final = gate_name(ly.SEED_GATE_G5_RESET)
_SEPARATOR: Final = ":"
#: Why a seed is reset, as its moves say it.
EMBARGO_OVER: Final = "embargo_over"


def with_resets(
    edge: Edge, decision: EdgeDecision, resets: Sequence[tuple[SeedRecord, ly.GateEvaluated]]
) -> EdgeDecision:
    """Return `decision` with the resets of the same edge after it: their events and their verdicts."""
    collected = EdgeEvents(replace(edge, first_index=edge.first_index + len(decision.events)))
    for record, gate in resets:
        _add_reset(collected, record, gate)
    verdicts = {_verdict_name(record.seed_id): gate.passed for record, gate in resets}
    return replace(
        decision,
        events=[*decision.events, *collected.events],
        gate_verdicts={**decision.gate_verdicts, **verdicts},
    )


def recorded_resets(recorded: ly.CommandOutcome, lifecycle: KasminaLifecycle) -> Mapping[str, bool]:
    """Return the recorded verdict on each reset of an edge, by seed id.

    Raises:
        IntegrityError: the record resets a seed that is not under embargo.
    """
    named = [name.split(_SEPARATOR, 1) for name in sorted(recorded.gate_verdicts)]
    seed_ids = [rest[0] for gate, *rest in named if gate == _GATE and rest]
    for seed_id in seed_ids:
        if lifecycle.stage_of(seed_id) not in BARRED_STAGES:
            raise IntegrityError(
                f"epoch {recorded.epoch} of run {recorded.run_id!r} does not re-execute as recorded",
                cause=f"its outcome resets seed {seed_id!r}, which is not under embargo now",
                next_step="`esper runs verify` names the first difference",
            )
    return {seed_id: recorded.gate_verdicts[_verdict_name(seed_id)] for seed_id in seed_ids}


def _verdict_name(seed_id: str) -> str:
    return _GATE + _SEPARATOR + seed_id


def _add_reset(collected: EdgeEvents, record: SeedRecord, gate: ly.GateEvaluated) -> None:
    """Add the gate's event and the moves; after a failed gate the seed stays RESETTING, and the refusal is said."""
    event = ly.GateEvaluated()
    event.CopyFrom(gate)
    event.seed_id = record.seed_id
    resetting, dormant = RESET_PATH
    if record.stage != resetting:
        collected.add(_move(record, record.stage, resetting))
    gate_id = collected.add(event)
    if gate.passed:
        move = _move(record, resetting, dormant)
        move.gate_event_ids.append(gate_id)
        collected.add(move)
        return
    collected.add(
        ly.SeedMoveRejected(
            seed_id=record.seed_id,
            from_stage=resetting,
            to_stage=dormant,
            reason=f"gate:{_GATE}",
            gate_event_ids=[gate_id],
        )
    )


def _move(record: SeedRecord, before: ly.SeedLifecycleStage, after: ly.SeedLifecycleStage) -> ly.SeedStageChanged:
    return ly.SeedStageChanged(
        seed_id=record.seed_id,
        slot=record.slot,
        blueprint_id=record.blueprint_id,
        from_stage=before,
        to_stage=after,
        reason=EMBARGO_OVER,
    )
