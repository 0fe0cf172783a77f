"""What Tamiyo keeps of each event: small immutable facts, so that a run's whole history fits in memory."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from esper.leyline import messages as ly

#: Stages in which a seed is on its way: it trains, blends or is judged, and can still be culled.
LIVE_STAGES = frozenset(
    {
        ly.SEED_STAGE_GERMINATED,
        ly.SEED_STAGE_TRAINING,
        ly.SEED_STAGE_BLENDING,
        ly.SEED_STAGE_SHADOWING,
        ly.SEED_STAGE_PROBATIONARY,
    }
)
#: Stages in which a seed holds nothing: its slot may be used again.
VACANT_STAGES = frozenset({ly.SEED_STAGE_DORMANT, ly.SEED_STAGE_TERMINATED})
#: Stages that end the story which a GERMINATE began.
SETTLED_STAGES = frozenset(
    {
        ly.SEED_STAGE_FOSSILIZED,
        ly.SEED_STAGE_CULLED,
        ly.SEED_STAGE_EMBARGOED,
        ly.SEED_STAGE_RESETTING,
        ly.SEED_STAGE_DORMANT,
        ly.SEED_STAGE_TERMINATED,
    }
)

#: Annotations of a command that the risk gate put in the place of another: its rules, the signals that it heeded.
RULES_ANNOTATION = "risk.rules"
SIGNALS_ANNOTATION = "risk.signals"

_SIZE_MAX = 2**63


@dataclass(frozen=True, slots=True)
class SeedFacts:
    """One seed as a state packet showed it; a stage of a newer contract keeps its number."""

    seed_id: str
    slot: str
    stage: ly.SeedLifecycleStage
    blueprint_id: str
    alpha: float
    stage_epochs: int
    age_epochs: int
    gradient_norm: float | None
    metrics: tuple[tuple[str, float], ...]

    def metric(self, name: str) -> float | None:
        """Return the metric `name`, or None where it is absent or not finite."""
        for key, value in self.metrics:
            if key == name:
                return value if math.isfinite(value) else None
        return None


@dataclass(frozen=True, slots=True)
class SlotFacts:
    """One slot as a state packet showed it; sizes are the products of the shapes."""

    slot: str
    placement: str
    layout: str
    in_features: int
    out_features: int
    layer_depth: int
    seed_id: str


@dataclass(frozen=True, slots=True)
class PacketFacts:
    """One SystemStatePacket without its clock-derived parts (latencies, hardware, times)."""

    event_id: str
    attempt: int
    epoch: int
    epochs_planned: int
    policy: str
    random_seed: int
    training_loss: float
    validation_loss: float
    validation_accuracy: float
    parameters: int
    multiply_adds: int
    seeds: tuple[SeedFacts, ...]
    slots: tuple[SlotFacts, ...]
    #: Growth stands still by order: whatever is asked for but a cull would be refused.
    held: bool = False
    #: Kasmina's breaker is open, by order or not: nothing germinates.
    breaker_open: bool = False
    #: Epoch that the run had returned to before it trained this one; 0: it goes on from the epoch before.
    follows_epoch: int = 0

    def seed(self, seed_id: str) -> SeedFacts | None:
        """Return the seed called `seed_id`, or None."""
        return next((seed for seed in self.seeds if seed.seed_id == seed_id), None)

    def occupant(self, slot: SlotFacts) -> SeedFacts | None:
        """Return the seed that holds `slot`: the one the slot names, else the first that names the slot."""
        named = self.seed(slot.seed_id) if slot.seed_id else None
        if named is not None:
            return named
        held = (seed for seed in self.seeds if seed.slot == slot.slot and seed.stage not in VACANT_STAGES)
        return next(held, None)


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """What a TrainingRunRequested says to the controller."""

    policy: str
    parameters: tuple[tuple[str, float], ...]
    #: Epochs that a fork takes from another run, decisions and all; nobody decides them again.
    forked_epochs: int = 0
    #: Whether the run is a member of a stack, which is decided where the stack is trained.
    stacked: bool = False


@dataclass(frozen=True, slots=True)
class DecisionFacts:
    """A DecisionMade as it stands in the log; `proposed` is the serialised AdaptationCommand without meta.

    What was ordered, of which seed and with which blueprint, is the proposal's, whatever the risk gate made of it.
    """

    decision_id: str
    command_id: str
    state_event_id: str
    epoch: int
    policy_version: str
    command_type: ly.CommandType
    operation: ly.SeedOperation
    slot: str
    seed_id: str
    blueprint_id: str
    proposed: bytes
    #: The serialised command that the run is sent: the proposed one, unless the risk gate put another in its place.
    executed: bytes
    policy_digest: str = ""
    policy_event_id: str = ""
    #: Whether it did, and why.
    overridden: bool = False
    override_reason: str = ""
    #: The gate's rules that asked for it, and the emergency signals that it heeded.
    tripped: tuple[str, ...] = ()
    signals: tuple[str, ...] = ()
    #: Whether the command that it put there is a pause.
    paused: bool = False


@dataclass(frozen=True, slots=True)
class OutcomeFacts:
    """What became of the command of one epoch."""

    epoch: int
    result: ly.CommandResult
    reason: str
    seed_id: str


@dataclass(frozen=True, slots=True)
class EndFacts:
    """How a run ended, and after how many epochs."""

    finished: bool
    attempt: int
    epochs: int


def packet_facts(packet: ly.SystemStatePacket) -> PacketFacts:
    """Extract the facts of a state packet; nothing that a clock made is read."""
    return PacketFacts(
        event_id=packet.meta.event_id,
        attempt=packet.attempt,
        epoch=packet.current_epoch,
        epochs_planned=packet.epochs_planned,
        policy=packet.policy,
        random_seed=packet.seed,
        training_loss=packet.training_loss,
        validation_loss=packet.validation_loss,
        validation_accuracy=packet.validation_accuracy,
        parameters=packet.parameters,
        multiply_adds=packet.multiply_adds,
        seeds=tuple(_seed_facts(seed) for seed in packet.seed_states),
        slots=_slot_facts(packet),
        held=packet.growth.paused or packet.growth.halted or packet.growth.breaker_held,
        breaker_open=packet.growth.breaker == ly.CIRCUIT_STATE_OPEN,
        follows_epoch=packet.follows_epoch,
    )


def _seed_facts(seed: ly.SeedState) -> SeedFacts:
    return SeedFacts(
        seed_id=seed.seed_id,
        slot=seed.slot,
        stage=seed.stage,
        blueprint_id=seed.blueprint_id,
        alpha=seed.alpha,
        stage_epochs=seed.stage_epochs,
        age_epochs=seed.age_epochs,
        gradient_norm=seed.gradient_norm if seed.HasField("gradient_norm") else None,
        metrics=tuple(sorted(seed.metrics.items())),
    )


def _slot_facts(packet: ly.SystemStatePacket) -> tuple[SlotFacts, ...]:
    """Return the slots by name, sorted; a nameless slot cannot be ordered into, of two alike the first counts."""
    by_name: dict[str, SlotFacts] = {}
    for slot in packet.slots:
        if slot.slot and slot.slot not in by_name:
            by_name[slot.slot] = SlotFacts(
                slot=slot.slot,
                placement=slot.placement,
                layout=slot.layout,
                in_features=_size(slot.in_shape),
                out_features=_size(slot.out_shape),
                layer_depth=slot.layer_depth,
                seed_id=slot.seed_id,
            )
    return tuple(by_name[name] for name in sorted(by_name))


def _size(shape: Iterable[int]) -> int:
    """Return the product of a shape, capped where a float could no longer hold it."""
    return min(math.prod(shape), _SIZE_MAX)


def request_facts(request: ly.TrainingRunRequested) -> RequestFacts:
    """Extract the policy, its parameters, and where it begins to decide."""
    return RequestFacts(
        policy=request.policy,
        parameters=tuple(sorted(request.policy_parameters.items())),
        forked_epochs=request.forked_epochs,
        stacked=request.HasField("stack"),
    )


def decision_facts(decision: ly.DecisionMade) -> DecisionFacts:
    """Extract what a later command or report needs of a decision."""
    command = decision.proposed
    operation = command.seed_operation
    proposed = command.SerializeToString(deterministic=True)
    instead = decision.executed if decision.HasField("executed") else None
    return DecisionFacts(
        decision_id=decision.meta.event_id,
        command_id=decision.command_id,
        state_event_id=decision.state_event_id,
        epoch=decision.epoch,
        policy_version=decision.policy_version,
        command_type=command.command_type,
        operation=operation.operation,
        slot=operation.slot,
        seed_id=command.target_seed_id,
        blueprint_id=operation.blueprint_id,
        proposed=proposed,
        policy_digest=decision.policy_digest,
        policy_event_id=decision.policy_event_id,
        executed=proposed if instead is None else instead.SerializeToString(deterministic=True),
        overridden=decision.overridden,
        override_reason=decision.override_reason,
        tripped=_listed(instead, RULES_ANNOTATION),
        signals=_listed(instead, SIGNALS_ANNOTATION),
        paused=instead is not None and instead.command_type == ly.COMMAND_PAUSE,
    )


def _listed(command: ly.AdaptationCommand | None, name: str) -> tuple[str, ...]:
    """Return what an annotation lists, nothing where it is absent."""
    words = command.annotations[name] if command is not None and name in command.annotations else ""
    return tuple(words.split(",")) if words else ()


def outcome_facts(outcome: ly.CommandOutcome) -> OutcomeFacts:
    """Extract the result of an epoch's command."""
    return OutcomeFacts(epoch=outcome.epoch, result=outcome.result, reason=outcome.reason, seed_id=outcome.seed_id)
