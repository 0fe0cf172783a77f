"""The life of a seed as data: which stage may follow which, what guards the step, and the fold that keeps count.

The transitions are those of the contract. A slot begins DORMANT without an event; every later stage is
reached by exactly one `SeedStageChanged`, and a run's lifecycle is the fold of these events.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from esper.core.errors import IntegrityError
from esper.leyline import messages as ly
from esper.leyline.registry import EventMessage

#: From each stage, the stages that may follow it.
TRANSITIONS: Final[Mapping[ly.SeedLifecycleStage, frozenset[ly.SeedLifecycleStage]]] = {
    ly.SEED_STAGE_UNKNOWN: frozenset({ly.SEED_STAGE_DORMANT}),
    ly.SEED_STAGE_DORMANT: frozenset({ly.SEED_STAGE_GERMINATED, ly.SEED_STAGE_TERMINATED}),
    ly.SEED_STAGE_GERMINATED: frozenset({ly.SEED_STAGE_TRAINING, ly.SEED_STAGE_CULLED}),
    ly.SEED_STAGE_TRAINING: frozenset({ly.SEED_STAGE_BLENDING, ly.SEED_STAGE_CULLED}),
    ly.SEED_STAGE_BLENDING: frozenset({ly.SEED_STAGE_SHADOWING, ly.SEED_STAGE_CULLED}),
    ly.SEED_STAGE_SHADOWING: frozenset({ly.SEED_STAGE_PROBATIONARY, ly.SEED_STAGE_CULLED}),
    ly.SEED_STAGE_PROBATIONARY: frozenset({ly.SEED_STAGE_FOSSILIZED, ly.SEED_STAGE_CULLED}),
    ly.SEED_STAGE_FOSSILIZED: frozenset({ly.SEED_STAGE_TERMINATED}),
    ly.SEED_STAGE_CULLED: frozenset({ly.SEED_STAGE_EMBARGOED}),
    ly.SEED_STAGE_EMBARGOED: frozenset({ly.SEED_STAGE_RESETTING}),
    ly.SEED_STAGE_RESETTING: frozenset({ly.SEED_STAGE_DORMANT}),
    ly.SEED_STAGE_TERMINATED: frozenset(),
}

#: The gates that guard entry to a stage. BLENDING asks for G1 once more: entry to TRAINING knows a rehearsal only,
#: and here the gradients of a whole epoch are known.
GUARDS: Final[Mapping[ly.SeedLifecycleStage, tuple[ly.SeedLifecycleGate, ...]]] = {
    ly.SEED_STAGE_GERMINATED: (ly.SEED_GATE_G0_SANITY,),
    ly.SEED_STAGE_TRAINING: (ly.SEED_GATE_G1_GRADIENT_HEALTH,),
    ly.SEED_STAGE_BLENDING: (ly.SEED_GATE_G1_GRADIENT_HEALTH, ly.SEED_GATE_G2_STABILITY),
    ly.SEED_STAGE_SHADOWING: (ly.SEED_GATE_G3_INTERFACE,),
    ly.SEED_STAGE_PROBATIONARY: (ly.SEED_GATE_G4_SYSTEM_IMPACT,),
    ly.SEED_STAGE_FOSSILIZED: (ly.SEED_GATE_G4_SYSTEM_IMPACT,),
    ly.SEED_STAGE_TERMINATED: (ly.SEED_GATE_G4_SYSTEM_IMPACT,),
    ly.SEED_STAGE_DORMANT: (ly.SEED_GATE_G5_RESET,),
}

#: Gates with a sensor: all of them. A move names a gate as not measured only where a run is computed again that was
#: recorded before the gate had its sensor.
MEASURED_GATES: Final = frozenset(gate for gates in GUARDS.values() for gate in gates)

#: The stages that each operation leads through, in order, within one epoch's edge; FINE_TUNE moves nothing. A seed
#: that is heard is not EMBARGOED at once: it stays CULLED while alpha falls. A germination may be told to stop at
#: GERMINATED, and CANCEL to end a fine-tuning only.
PATHS: Final[Mapping[ly.SeedOperation, tuple[ly.SeedLifecycleStage, ...]]] = {
    ly.SEED_OP_GERMINATE: (ly.SEED_STAGE_GERMINATED, ly.SEED_STAGE_TRAINING),
    ly.SEED_OP_START_TRAINING: (ly.SEED_STAGE_TRAINING,),
    ly.SEED_OP_START_GRAFTING: (ly.SEED_STAGE_BLENDING,),
    ly.SEED_OP_STABILIZE: (ly.SEED_STAGE_SHADOWING,),
    ly.SEED_OP_EVALUATE: (ly.SEED_STAGE_PROBATIONARY,),
    ly.SEED_OP_FINE_TUNE: (),
    ly.SEED_OP_FOSSILIZE: (ly.SEED_STAGE_FOSSILIZED,),
    ly.SEED_OP_CULL: (ly.SEED_STAGE_CULLED, ly.SEED_STAGE_EMBARGOED),
    ly.SEED_OP_CANCEL: (ly.SEED_STAGE_CULLED, ly.SEED_STAGE_EMBARGOED),
}

#: Metric of a move to FOSSILIZED, and name of the choice in its outcome: 1.0 where the seed was folded.
FOLDED: Final = "folded"
#: Metric of a move to CULLED, and name of the choice: the steps in which alpha falls to 0.
FALL_STEPS: Final = "fall_steps"

#: Where a culled seed goes once its embargo is over, within one epoch's edge; the last step is guarded by G5.
RESET_PATH: Final = (ly.SEED_STAGE_RESETTING, ly.SEED_STAGE_DORMANT)
#: Begins the reason of a move by which a run returned to a checkpoint: it restores a stage, whatever the table says.
RETURN_REASON: Final = "rollback:"
#: Stages whose seed is off the host and bars its slot until it is reset.
BARRED_STAGES: Final = frozenset({ly.SEED_STAGE_EMBARGOED, ly.SEED_STAGE_RESETTING})

#: Stages whose seed has a module that Kasmina trains and answers for.
GROWING_STAGES: Final = frozenset(
    {
        ly.SEED_STAGE_GERMINATED,
        ly.SEED_STAGE_TRAINING,
        ly.SEED_STAGE_BLENDING,
        ly.SEED_STAGE_SHADOWING,
        ly.SEED_STAGE_PROBATIONARY,
    },
)
#: Stages whose seed takes part in the real forward.
JOINT_STAGES: Final = frozenset({ly.SEED_STAGE_BLENDING, ly.SEED_STAGE_SHADOWING, ly.SEED_STAGE_PROBATIONARY})
#: Stages whose seed is on its way off the host: it is heard less with each step, and learns nothing more.
FALLING_STAGES: Final = frozenset({ly.SEED_STAGE_CULLED})
#: Stages whose seed is on the host, as a module or, folded, in its weights.
ATTACHED_STAGES: Final = GROWING_STAGES | FALLING_STAGES | {ly.SEED_STAGE_FOSSILIZED}


def stage_name(stage: ly.SeedLifecycleStage) -> str:
    """Return the contract's word for a stage, "SEED_STAGE_TRAINING"."""
    return ly.SeedLifecycleStage.Name(stage)


def gate_name(gate: ly.SeedLifecycleGate) -> str:
    """Return the contract's word for a gate, "SEED_GATE_G2_STABILITY"."""
    return ly.SeedLifecycleGate.Name(gate)


def gate_label(gate: ly.SeedLifecycleGate) -> str:
    """Return the gate's short name, "G2"."""
    return gate_name(gate).split("_")[2]


def is_allowed(from_stage: ly.SeedLifecycleStage, to_stage: ly.SeedLifecycleStage) -> bool:
    """Whether the contract lets a seed move from one stage to the other."""
    return to_stage in TRANSITIONS[from_stage]


def illegal_step(
    start: ly.SeedLifecycleStage, path: Sequence[ly.SeedLifecycleStage]
) -> tuple[ly.SeedLifecycleStage, ly.SeedLifecycleStage] | None:
    """Return the first step of `path` from `start` that the contract forbids; None when all are allowed."""
    stages = (start, *path)
    for before, after in itertools.pairwise(stages):
        if not is_allowed(before, after):
            return before, after
    return None


def shortens(event: ly.SeedStageChanged) -> bool:
    """Whether the event gives a falling seed a shorter fall: it stays in its stage, whatever the table says."""
    falls_on = event.from_stage == event.to_stage and event.to_stage in FALLING_STAGES
    return falls_on and event.metrics.get(FALL_STEPS, 0.0) > 0


@dataclass(frozen=True)
class SeedRecord:
    """One seed as the events so far tell it; epochs are those of its germination and of its last move.

    `tuned_until` is the last epoch in which it learns with another rate than its own; `folded` says that it is no
    module of its own any more.
    """

    seed_id: str
    slot: str
    blueprint_id: str
    stage: ly.SeedLifecycleStage
    germinated_epoch: int
    stage_epoch: int
    tuned_until: int = 0
    folded: bool = False


@dataclass(frozen=True)
class KasminaLifecycle:
    """Every seed of a run, folded from the run's seed events.

    `events` counts all of them (moves, tunings, gates, rejections, quarantines): event ids are derived from it.
    """

    seeds: Mapping[str, SeedRecord] = field(default_factory=dict)
    events: int = 0

    def stage_of(self, seed_id: str) -> ly.SeedLifecycleStage:
        """Return the seed's stage; UNKNOWN when the run has no such seed."""
        record = self.seeds.get(seed_id)
        return ly.SEED_STAGE_UNKNOWN if record is None else record.stage

    def holder(self, slot: str) -> SeedRecord | None:
        """Return the seed that holds `slot`, a culled one that embargoes it included; None when it is free."""
        held = [record for record in self.seeds.values() if record.slot == slot and record.stage not in _FREE]
        return held[-1] if held else None

    def next_seed_id(self, slot: str) -> str:
        """Return the id that the next seed germinated in `slot` gets: the slot and a count from 1."""
        return f"{slot}.{1 + sum(record.slot == slot for record in self.seeds.values())}"

    def in_stages(self, stages: frozenset[ly.SeedLifecycleStage]) -> list[SeedRecord]:
        """Return the seeds that are in one of `stages`, oldest first."""
        return [record for record in self.seeds.values() if record.stage in stages]

    def due_for_reset(self, epoch: int, *, embargo_epochs: int) -> list[SeedRecord]:
        """Return the seeds to reset after `epoch`, oldest first: `embargo_epochs` are over, or over once more.

        A seed whose reset failed stays RESETTING, and is tried again each time that many epochs have passed.
        """
        waited = [(record, epoch - record.stage_epoch) for record in self.in_stages(BARRED_STAGES)]
        return [record for record, epochs in waited if epochs > 0 and epochs % embargo_epochs == 0]

    def fold(self, event: EventMessage) -> KasminaLifecycle:
        """Return the lifecycle after `event`; pure.

        Raises:
            IntegrityError: the event does not follow from this state, or is no seed event.
        """
        if isinstance(event, ly.SeedStageChanged):
            moved = {**self.seeds, event.seed_id: _moved(self.seeds.get(event.seed_id), event)}
            return replace(self, seeds=moved, events=self.events + 1)
        if isinstance(event, ly.SeedTuned):
            tuned = {**self.seeds, event.seed_id: _tuned(self.seeds.get(event.seed_id), event)}
            return replace(self, seeds=tuned, events=self.events + 1)
        if isinstance(event, ly.GateEvaluated | ly.SeedMoveRejected | ly.KernelQuarantined):
            return replace(self, events=self.events + 1)
        raise IntegrityError(
            f"a {type(event).__name__} was folded into the seeds' lifecycle",
            cause="only SeedStageChanged, SeedTuned, GateEvaluated, SeedMoveRejected, KernelQuarantined belong there",
            next_step="fold the events that decide and end_epoch returned, in their order",
        )


#: A seed that was reset or terminated before it grew leaves its slot free.
_FREE: Final = frozenset({ly.SEED_STAGE_UNKNOWN, ly.SEED_STAGE_DORMANT, ly.SEED_STAGE_TERMINATED})


def _moved(record: SeedRecord | None, event: ly.SeedStageChanged) -> SeedRecord:
    stage = ly.SEED_STAGE_DORMANT if record is None else record.stage
    allowed = event.reason.startswith(RETURN_REASON) or shortens(event) or is_allowed(event.from_stage, event.to_stage)
    if event.from_stage != stage or not allowed:
        raise IntegrityError(
            f"the move of seed {event.seed_id!r} to {stage_name(event.to_stage)} cannot be folded",
            cause=f"the event leaves {stage_name(event.from_stage)}, the seed is in {stage_name(stage)}",
            next_step="the log holds a move out of order; `esper verify` names the records",
        )
    if record is None:
        return SeedRecord(
            event.seed_id, event.slot, event.blueprint_id, event.to_stage, int(event.epoch), int(event.epoch)
        )
    folded = event.to_stage == ly.SEED_STAGE_FOSSILIZED and bool(event.metrics.get(FOLDED, 0.0))
    if shortens(event):
        return record
    return replace(record, stage=event.to_stage, stage_epoch=int(event.epoch), tuned_until=0, folded=folded)


def _tuned(record: SeedRecord | None, event: ly.SeedTuned) -> SeedRecord:
    if record is None or record.stage != event.stage:
        raise IntegrityError(
            f"the fine-tuning of seed {event.seed_id!r} cannot be folded",
            cause=f"the event finds it in {stage_name(event.stage)}, where it is not",
            next_step="the log holds an event out of order; `esper verify` names the records",
        )
    return replace(record, tuned_until=int(event.epoch) + int(event.epochs) if event.epochs else 0)
