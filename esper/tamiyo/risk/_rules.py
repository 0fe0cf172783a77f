"""The rules of the risk gate, one function each: pure, without a clock, each says why or nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Final

from esper.core.approvals import QUARANTINE_ONLY
from esper.leyline import messages as ly
from esper.tamiyo._facts import LIVE_STAGES, DecisionFacts, PacketFacts, SeedFacts
from esper.tamiyo.risk._limits import RiskLimits
from esper.tamiyo.risk._surroundings import Surroundings

STALE: Final = "stale_state"
LOSS_SPIKE: Final = "loss_spike"
CONSERVATIVE: Final = "conservative_mode"
QUARANTINED: Final = "blueprint_quarantine"
BLUEPRINT_RISK: Final = "blueprint_risk"
CATALOGUE_UNREAD: Final = "catalogue_unread"
PARAMETER_BUDGET: Final = "parameter_budget"
COMPUTE_BUDGET: Final = "compute_budget"

#: Packets whose median a loss is held against, and how many of them there must be. A single packet before it would
#: make every noisy epoch of a small validation set a spike, and the one after it a recovery.
WINDOW: Final = 5
_EVIDENCE_MIN: Final = 3
#: A rise of less than this share of the run's first loss is no spike, whatever it is of the last ones: where a host
#: has all but learned its task, a few samples move its loss by a half of itself.
_RISE_OF_FIRST_MIN: Final = 0.02
#: Risks come as float32: 0.8 as a catalogue writes it is a little more or less than the limit's 0.8.
_RISK_ERROR: Final = 1e-6

#: Orders by which a blueprint comes nearer to the host.
_GRAFTING: Final = frozenset({ly.SEED_OP_GERMINATE, ly.SEED_OP_START_GRAFTING})


@dataclass(frozen=True, slots=True)
class Trip:
    """One rule that a proposal or its run met: its word, the figures, and whether seeds should stand still for it."""

    rule: str
    why: str
    pauses: bool = False
    #: The signals behind it, for rules that heed one for so many epochs.
    signals: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """What is judged: a proposal, at a packet with its history, under limits, in its surroundings."""

    proposed: ly.AdaptationCommand
    history: Sequence[PacketFacts]
    earlier: Sequence[DecisionFacts]
    limits: RiskLimits
    surroundings: Surroundings
    run_id: str
    #: Whether the run can let its seeds stand still; the members of a stack cannot.
    can_pause: bool = True

    @property
    def packet(self) -> PacketFacts:
        """The packet that is decided."""
        return self.history[-1]

    @property
    def operation(self) -> ly.SeedOperation:
        """What is ordered of a seed, UNKNOWN where nothing is."""
        return self.proposed.seed_operation.operation

    @property
    def blueprint_id(self) -> str:
        """The blueprint that the proposal would bring nearer to the host; empty where there is none."""
        if self.operation == ly.SEED_OP_GERMINATE:
            return self.proposed.seed_operation.blueprint_id
        seed = self.target
        return seed.blueprint_id if seed is not None and self.operation in _GRAFTING else ""

    @property
    def target(self) -> SeedFacts | None:
        """The seed that the proposal names."""
        return self.packet.seed(self.proposed.target_seed_id) if self.proposed.target_seed_id else None


def live(packet: PacketFacts) -> list[SeedFacts]:
    """Return the seeds on their way."""
    return [seed for seed in packet.seeds if seed.stage in LIVE_STAGES]


def heard(packet: PacketFacts) -> list[SeedFacts]:
    """Return the seeds on their way that the host already hears: only they can have moved its loss."""
    return [seed for seed in live(packet) if seed.alpha > 0.0]


# Stale state


def stale(case: Case) -> Trip | None:
    """Return why the packet does not show how the run stands: a newer one, a fenced attempt, epochs that are missing.

    Missing epochs count while they lie among those that trends are taken over, and no longer.
    """
    if case.surroundings.superseded:
        return Trip(STALE, case.surroundings.superseded)
    attempt = max(packet.attempt for packet in case.history)
    if attempt > case.packet.attempt:
        return Trip(STALE, f"the packet is of attempt {case.packet.attempt}, an earlier epoch is of attempt {attempt}")
    recent = case.history[-WINDOW - 1 :]
    for before, after in pairwise(recent):
        if not after.follows_epoch and after.epoch != before.epoch + 1:
            return Trip(STALE, f"the log has no packet between epochs {before.epoch} and {after.epoch}")
    return None


# The loss


def rise(history: Sequence[PacketFacts], limit: float) -> float | None:
    """Return by what share the last loss lies above the median of those before it, if that is a spike; else None.

    A spike lies above each of them as well, so that noise which stays within its band is none. A loss that is no
    number is an infinite rise. Fewer than three losses to compare with are no evidence.
    """
    if limit <= 0.0 or not history:
        return None
    now = history[-1].validation_loss
    before = [packet.validation_loss for packet in history[-WINDOW - 1 : -1]]
    finite = [loss for loss in before if math.isfinite(loss)]
    if len(finite) < _EVIDENCE_MIN:
        return None
    if not math.isfinite(now):
        return math.inf
    usual = median(finite)
    least = _RISE_OF_FIRST_MIN * abs(first_loss(history))
    if usual <= 0.0 or now <= max(finite) or now - usual <= max(limit * usual, least):
        return None
    return now / usual - 1.0


def first_loss(history: Sequence[PacketFacts]) -> float:
    """Return the run's first loss that is a number, 0.0 where there is none."""
    return next((packet.validation_loss for packet in history if math.isfinite(packet.validation_loss)), 0.0)


def loss_spike(case: Case) -> Trip | None:
    """Return how far the loss leapt up, now or, where nothing can be paused, within the epochs of a pause.

    Seeds are to stand still only where the host hears one, and no sooner after a pause than a window's epochs: the
    loss must have had the time to speak for itself, and a run whose loss stays up is not paused for ever.
    """
    now = rise(case.history, case.limits.loss_rise_max)
    if now is not None:
        rested = case.packet.epoch - _last_pause(case.earlier) >= case.limits.pause_epochs + WINDOW
        return Trip(LOSS_SPIKE, f"the validation loss rose by {now:.0%}", pauses=rested and bool(heard(case.packet)))
    if not case.can_pause:
        for back in range(1, case.limits.pause_epochs):
            then = rise(case.history[:-back], case.limits.loss_rise_max)
            if then is not None:
                return Trip(LOSS_SPIKE, f"the validation loss rose by {then:.0%} {back} packets ago")
    return None


def _last_pause(earlier: Iterable[DecisionFacts]) -> float:
    return max((each.epoch for each in earlier if LOSS_SPIKE in each.tripped and each.paused), default=-math.inf)


# Conservative mode


def conservative(case: Case) -> Trip | None:
    """Return why the run is in conservative mode: its request, Kasmina's breaker, or an emergency; None: it is not.

    Nothing latches. The breaker closes by Kasmina's own rules; a signal ends with its time or its origin's all-clear,
    and holds one run back for `conservative_epochs` at most.
    """
    if case.limits.conservative:
        return Trip(CONSERVATIVE, "the run was requested conservative", pauses=True)
    if case.packet.breaker_open:
        return Trip(CONSERVATIVE, "Kasmina's breaker is open", pauses=True)
    alarms = [alarm for alarm in case.surroundings.alarms if alarm.run_id in ("", case.run_id)]
    standing = [alarm for alarm in alarms if not _spent(case, alarm.event_id)]
    if not standing:
        return None
    said = "; ".join(f"{alarm.origin}: {alarm.reason}" for alarm in standing)
    return Trip(CONSERVATIVE, f"emergency by {said}", pauses=True, signals=tuple(each.event_id for each in standing))


def _spent(case: Case, signal: str) -> bool:
    heeded = [each.epoch for each in case.earlier if signal in each.signals]
    return bool(heeded) and case.packet.epoch - min(heeded) >= case.limits.conservative_epochs


# Blueprints


def blueprint(case: Case) -> Trip | None:
    """Return why the proposal's blueprint may not come nearer to the host; what nobody registered may."""
    name = case.blueprint_id
    if not name:
        return None
    if not case.surroundings.catalogue_known:
        if case.operation != ly.SEED_OP_GERMINATE:
            return None
        return Trip(CATALOGUE_UNREAD, f"the catalogue could not be read: nothing is known of {name}")
    facts = case.surroundings.blueprints.get(name)
    if facts is None:
        return None
    if facts.refusal == QUARANTINE_ONLY:
        return Trip(QUARANTINED, f"{name} runs in quarantine only")
    if facts.refusal:
        return Trip(BLUEPRINT_RISK, f"{name} is refused: {facts.refusal}")
    limit = case.limits.blueprint_max
    if limit <= 0.0 or facts.risk < limit - _RISK_ERROR:
        return None
    return Trip(BLUEPRINT_RISK, f"{name} has risk {facts.risk:.2g}, below {limit:g} allowed")


# Budgets


def parameter_budget(case: Case) -> Trip | None:
    """Return how the proposal would leave the run with more parameters than it may have."""
    limit, first = case.limits.parameters_ratio_max, case.history[0].parameters
    if limit <= 0.0 or case.operation not in _GRAFTING or first <= 0:
        return None
    ratio = parameters_after(case) / first
    reached = ratio >= limit if case.operation == ly.SEED_OP_GERMINATE else ratio > limit
    return (
        Trip(PARAMETER_BUDGET, f"{ratio:.2f} times the run's first parameters, {limit:g} allowed") if reached else None
    )


def parameters_after(case: Case) -> float:
    """Return the parameters that the run comes to: its own, and those of the seeds that are to join it.

    What a germination adds is not known before its kernel is there; the seeds that wait already count.
    """
    waiting = [seed for seed in live(case.packet) if seed.alpha <= 0.0 and not _counted(seed)]
    joining = waiting if case.operation == ly.SEED_OP_GERMINATE else [seed for seed in waiting if seed == case.target]
    return case.packet.parameters + sum(seed.metric("parameters") or 0.0 for seed in joining)


def _counted(seed: SeedFacts) -> bool:
    """Whether the packet's parameters have the seed's among them: from BLENDING on."""
    return seed.stage not in (ly.SEED_STAGE_GERMINATED, ly.SEED_STAGE_TRAINING)


def compute_budget(case: Case) -> Trip | None:
    """Return how a further seed would be one too many: the run already comes to more compute than it may.

    Only germinations wait for it: a seed that is kept from the host would cost its shadow passes on top.
    """
    limit = case.limits.multiply_adds_ratio_max
    if limit <= 0.0 or case.operation != ly.SEED_OP_GERMINATE:
        return None
    ratio = compute_ratio(case.history)
    if ratio is None or ratio < limit:
        return None
    return Trip(COMPUTE_BUDGET, f"the run comes to {ratio:.2f} times its first price in compute, {limit:g} allowed")


def compute_ratio(history: Sequence[PacketFacts]) -> float | None:
    """Return the multiply-adds that the run comes to at its present price, as a multiple of those at its first."""
    first, now = history[0], history[-1]
    planned = max(now.epochs_planned, now.epoch)
    at_first_price = first.multiply_adds / max(1, first.epoch) * planned
    if at_first_price <= 0.0:
        return None
    before = history[-2] if len(history) > 1 else None
    epochs = now.epoch - before.epoch if before is not None and not now.follows_epoch else 0
    spent = now.multiply_adds - before.multiply_adds if before is not None else 0
    price = spent / epochs if epochs > 0 else now.multiply_adds / max(1, now.epoch)
    return (now.multiply_adds + price * (planned - now.epoch)) / at_first_price
