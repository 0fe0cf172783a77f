"""What every policy sees: a named vector of finite floats, made from state packets and own earlier decisions.

Nothing in it comes from a clock, so the same run gives the same observations on any machine. A figure that is
missing or not finite is 0.0 with a companion `..._known` of 0.0: a policy can tell "zero" from "not measured".
The vector has one block for the run and one block per slot, so a policy that decides from it alone can be
asked again from the log and must give the same answer; for that reason the last epochs' figures are in it too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from esper.core.policy import LAYOUT_CODES, PAST_EPOCHS, PAST_FIGURES, blueprint_code
from esper.leyline import messages as ly
from esper.tamiyo._facts import DecisionFacts, PacketFacts, SeedFacts, SlotFacts

#: Epochs over which progress is judged: long enough to smooth the validation noise of one epoch, short enough
#: to see a plateau within the first tenth of a run of 40 to 200 epochs.
WINDOW_EPOCHS = 5
_EVIDENCE = ("shadow_loss_first", "shadow_loss", "host_loss", "loss_seed_on", "loss_seed_off")


@dataclass(frozen=True)
class SlotView:
    """One slot's block of an observation by name."""

    slot: str
    values: Mapping[str, float]

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    @property
    def stage(self) -> int:
        """Stage of the seed in the slot, a SeedLifecycleStage value; DORMANT where the slot is free."""
        return int(self.values["stage"])

    def known(self, name: str) -> float | None:
        """Return the figure `name`, or None where it was not measured."""
        return self.values[name] if self.values[f"{name}_known"] else None


@dataclass(frozen=True)
class Observation:
    """Names and values in order, exactly as DecisionMade records them."""

    names: tuple[str, ...]
    values: tuple[float, ...]

    @cached_property
    def _by_name(self) -> dict[str, float]:
        return dict(zip(self.names, self.values, strict=True))

    def __getitem__(self, name: str) -> float:
        return self._by_name[name]

    def known(self, name: str) -> float | None:
        """Return the figure `name`, or None where it was not measured."""
        return self[name] if self[f"{name}_known"] else None

    @cached_property
    def slots(self) -> tuple[SlotView, ...]:
        """The slots' blocks in the order of the vector, which is by name."""
        blocks: dict[str, dict[str, float]] = {}
        for name, value in self._by_name.items():
            if name.startswith("slot/"):
                slot, _, figure = name.removeprefix("slot/").rpartition("/")
                blocks.setdefault(slot, {})[figure] = value
        return tuple(SlotView(slot, values) for slot, values in blocks.items())


def observe(
    history: Sequence[PacketFacts], decisions: Iterable[DecisionFacts], *, forked_epochs: int = 0
) -> Observation:
    """Return the observation at the last packet of `history`.

    Args:
        history: The run's packets up to the one that is judged, oldest first, at least one.
        decisions: The run's earlier decisions; how often a slot was germinated is counted from them.
        forked_epochs: Epochs that a fork took from another run, whose decisions are not its own: germinations in
            them are counted from the seeds that they left.
    """
    pairs = [*_run_block(history), *_past_block(history)]
    earlier = [decision for decision in decisions if decision.epoch < history[-1].epoch]
    taken = _germinated_until(history, forked_epochs)
    for slot in history[-1].slots:
        block = _slot_block(slot, history[-1], earlier, ordered_before=taken.count(slot.slot))
        pairs += ((f"slot/{slot.slot}/{name}", value) for name, value in block)
    return Observation(names=tuple(name for name, _ in pairs), values=tuple(value for _, value in pairs))


def _germinated_until(history: Sequence[PacketFacts], epoch: int) -> list[str]:
    """Return the slot of each seed that was germinated at the edge of `epoch` or before."""
    if not epoch:
        return []
    found = {
        seed.seed_id: seed.slot
        for packet in history
        for seed in packet.seeds
        if packet.epoch - seed.age_epochs <= epoch
    }
    return list(found.values())


def _measured(name: str, value: float | None) -> tuple[tuple[str, float], tuple[str, float]]:
    """Return a figure and whether it was measured."""
    if value is None or not math.isfinite(value):
        return ((name, 0.0), (f"{name}_known", 0.0))
    return ((name, value), (f"{name}_known", 1.0))


def _run_block(history: Sequence[PacketFacts]) -> Iterable[tuple[str, float]]:
    now, first = history[-1], history[0]
    yield "epoch", float(now.epoch)
    yield "epochs_planned", float(now.epochs_planned)
    yield "packets_seen", float(len(history))
    yield from _measured("training_loss", now.training_loss)
    yield from _measured("validation_loss", now.validation_loss)
    yield from _measured("validation_accuracy", now.validation_accuracy)
    yield from _measured("validation_loss_delta", loss_delta(history))
    yield from _measured("improvement_per_epoch", improvement_per_epoch(history))
    yield from _measured("generalisation_gap", now.validation_loss - now.training_loss)
    yield "parameters_ratio", now.parameters / max(1, first.parameters)
    yield "seeds_seen", float(len({seed.seed_id for packet in history for seed in packet.seeds}))
    yield "seeds_fossilized", float(sum(seed.stage == ly.SEED_STAGE_FOSSILIZED for seed in now.seeds))


def _past_block(history: Sequence[PacketFacts]) -> Iterable[tuple[str, float]]:
    """Yield the figures of the packets before the last, the nearest first; one with a figure not finite is unknown."""
    for back in range(1, PAST_EPOCHS + 1):
        packet = history[-1 - back] if back < len(history) else None
        figures = [0.0 if packet is None else float(getattr(packet, name)) for name in PAST_FIGURES]
        known = packet is not None and all(math.isfinite(figure) for figure in figures)
        for name, figure in zip(PAST_FIGURES, figures, strict=True):
            yield f"past/{back}/{name}", figure if known else 0.0
        yield f"past/{back}/known", float(known)


def loss_delta(history: Sequence[PacketFacts]) -> float | None:
    """Return validation loss now minus one packet ago (positive: worse), or None at the first packet."""
    return history[-1].validation_loss - history[-2].validation_loss if len(history) > 1 else None


def improvement_per_epoch(history: Sequence[PacketFacts]) -> float | None:
    """Return the mean relative fall of the validation loss per epoch over the last WINDOW_EPOCHS epochs."""
    window = history[-WINDOW_EPOCHS - 1 :]
    begin, end = window[0], window[-1]
    epochs = sum(1 if later.follows_epoch else later.epoch - earlier.epoch for earlier, later in pairwise(window))
    if epochs <= 0 or not begin.validation_loss > 0.0:
        return None
    return (1.0 - end.validation_loss / begin.validation_loss) / epochs


def _slot_block(
    slot: SlotFacts, packet: PacketFacts, earlier: Sequence[DecisionFacts], *, ordered_before: int
) -> Iterable[tuple[str, float]]:
    seed = packet.occupant(slot)
    yield "free", float(seed is None and not slot.seed_id)
    yield "branch", float(slot.placement == "branch")
    yield "layout", LAYOUT_CODES.get(slot.layout, 0.0)
    yield "in_features", float(slot.in_features)
    yield "out_features", float(slot.out_features)
    yield "layer_depth", float(slot.layer_depth)
    ordered = sum(decision.operation == ly.SEED_OP_GERMINATE and decision.slot == slot.slot for decision in earlier)
    yield "germinations_ordered", float(ordered_before + ordered)
    yield from _seed_block(seed)


def _seed_block(seed: SeedFacts | None) -> Iterable[tuple[str, float]]:
    yield "stage", float(ly.SEED_STAGE_DORMANT if seed is None else seed.stage)
    yield "blueprint", float(0 if seed is None else blueprint_code(seed.blueprint_id))
    yield "stage_epochs", float(0 if seed is None else seed.stage_epochs)
    yield "age_epochs", float(0 if seed is None else seed.age_epochs)
    yield from _measured("alpha", None if seed is None else seed.alpha)
    yield from _measured("gradient_norm", None if seed is None else seed.gradient_norm)
    for name in _EVIDENCE:
        yield from _measured(name, None if seed is None else seed.metric(name))
