"""The rule policy: grow early, graft on shadow evidence, keep what the counterfactual says helps.

Rules, in order; the first that fires decides, at most one move an epoch:

1. A seed on its way is moved on or culled (`_advance`), the one that came furthest first.
2. With no seed on its way a new one is germinated (`_germinate`): the first within a tenth of the run, earlier on
   a plateau; a further one only on a plateau, while the run is long enough to finish it.
3. Otherwise training continues.

Growth before convergence follows AutoGrow (KDD 2020); a TRAINING stage of at most a tenth of the epochs, the
shadow loss at alpha 1 as the gate signal and the preference for bypass slots follow the measurements in the
design's reference (machine-learning 1.2 and 4.3). All inputs come from the recorded observation, so a recorded
decision can be asked again; held-out test figures are not part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property

from esper.leyline import messages as ly
from esper.tamiyo._actions import (
    BLEND_EPOCHS,
    CULL,
    DEFAULT_OPTIONS,
    EVALUATE,
    FOSSILIZE,
    GERMINATE,
    STABILIZE,
    START_GRAFTING,
    Action,
    ActionSpace,
    BlueprintOption,
)
from esper.tamiyo._facts import LIVE_STAGES
from esper.tamiyo._heuristic_config import HeuristicConfig
from esper.tamiyo._observation import Observation, SlotView
from esper.tamiyo._policy import Proposal, canonical_digest

_Move = tuple[Action, str]


class HeuristicPolicy:
    """Plateau and steady-state rules over validation loss and the seeds' own evidence; deterministic."""

    name = "heuristic"
    version = "heuristic-1"

    def __init__(
        self, config: HeuristicConfig | None = None, options: tuple[BlueprintOption, ...] = DEFAULT_OPTIONS
    ) -> None:
        self.config = config or HeuristicConfig()
        self.options = options

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, float]) -> HeuristicPolicy:
        """Return the policy whose configuration is the default with a request's parameters put over it.

        Raises:
            BadPolicyParameters: a name is not a field of HeuristicConfig, or a value is out of its range.
        """
        return cls(HeuristicConfig.from_parameters(parameters))

    @cached_property
    def digest(self) -> str:
        options = [option.label for option in self.options]
        return canonical_digest(self.name, self.version, {"config": asdict(self.config), "options": options})

    def propose(self, observation: Observation, space: ActionSpace) -> Proposal:
        """Return the first move that a rule asks for and the lifecycle allows."""
        action, reason = self._first_move(observation, space)
        return Proposal(action, space.certain_heads(action), (reason,))

    def _first_move(self, observation: Observation, space: ActionSpace) -> _Move:
        live = [slot for slot in observation.slots if slot.stage in LIVE_STAGES]
        waits: list[str] = []
        for slot in sorted(live, key=lambda slot: (-slot.stage, slot.slot)):
            operation, reason = self._advance(observation, slot)
            if operation:
                action = Action(operation, slot.slot, parameters=self._parameters(observation, operation))
                if space.allows(action):
                    return action, f"{slot.slot}: {reason}"
            waits.append(f"{slot.slot}: {reason}")
        if waits:
            return Action(), "; ".join(waits)
        return self._germinate(observation, space)

    def _parameters(self, observation: Observation, operation: str) -> tuple[tuple[str, float], ...]:
        """Return what the order says besides its seed: how many epochs alpha takes to rise."""
        if operation != START_GRAFTING:
            return ()
        return ((BLEND_EPOCHS, float(self.config.blending_epochs(self._planned(observation)))),)

    # Seeds on their way

    def _advance(self, observation: Observation, slot: SlotView) -> tuple[str, str]:
        """Return the operation that the seed in `slot` is ripe for ("" to wait), and why."""
        planned = self._planned(observation)
        match slot.stage:
            case ly.SEED_STAGE_TRAINING:
                return self._training(slot, planned)
            case ly.SEED_STAGE_BLENDING:
                return self._blending(slot, planned)
            case ly.SEED_STAGE_SHADOWING:
                return self._shadowing(slot, planned)
            case ly.SEED_STAGE_PROBATIONARY:
                return self._probation(observation, slot, planned)
            case _:  # GERMINATED: a seed passes it within one edge, or something is wrong with it
                return self._overdue(slot, self.config.patience_epochs(planned), "seed was germinated, never trained")

    def _training(self, slot: SlotView, planned: int) -> tuple[str, str]:
        limit = self.config.training_epochs_max(planned)
        gain = held_out_gain(slot)
        ripe = slot["stage_epochs"] >= self.config.training_epochs_min
        if gain is not None and ripe and gain >= self.config.graft_gain_min:
            return START_GRAFTING, f"at alpha 1 the seed would lower the loss by {gain:.1%}"
        if gain is not None and slot["stage_epochs"] >= limit and gain >= self.config.graft_gain_late:
            return START_GRAFTING, f"after {limit} epochs the seed would do no harm ({gain:+.1%})"
        return self._overdue(slot, limit + self.config.patience_epochs(planned), "the seed would not help")

    def _blending(self, slot: SlotView, planned: int) -> tuple[str, str]:
        if (slot.known("alpha") or 0.0) >= 1.0:
            return STABILIZE, "alpha is 1"
        limit = self.config.blending_epochs(planned) + self.config.patience_epochs(planned)
        return self._overdue(slot, limit, "alpha has not reached 1")

    def _shadowing(self, slot: SlotView, planned: int) -> tuple[str, str]:
        gain = held_out_gain(slot)
        if gain is None:
            return EVALUATE, "the gate is to measure what the seed does"
        if gain >= self.config.keep_gain_min:
            return EVALUATE, f"the seed lowers the held-out loss by {gain:.1%}"
        return self._overdue(slot, self.config.patience_epochs(planned), f"the seed does not help ({gain:+.1%})")

    def _probation(self, observation: Observation, slot: SlotView, planned: int) -> tuple[str, str]:
        last = bool(observation["epochs_planned"]) and observation["epoch"] >= observation["epochs_planned"]
        gain = held_out_gain(slot)
        if gain is not None and gain >= self.config.keep_gain_min:
            if last or slot["stage_epochs"] >= self.config.probation_epochs:
                return FOSSILIZE, f"the seed lowers the held-out loss by {gain:.1%}"
            return "", "the seed helps; probation goes on"
        shown = "is not measured" if gain is None else f"is {gain:+.1%}"
        if last and gain is not None:
            return CULL, f"the run ends and the seed's gain {shown}"
        return self._overdue(slot, self.config.patience_epochs(planned), f"the seed's gain {shown}")

    @staticmethod
    def _overdue(slot: SlotView, limit: int, reason: str) -> tuple[str, str]:
        stayed = int(slot["stage_epochs"])
        return (CULL, f"{reason} after {stayed} epochs") if stayed >= limit else ("", f"waits: {reason} yet")

    # New seeds

    def _germinate(self, observation: Observation, space: ActionSpace) -> _Move:
        chosen = self._slot_and_option(observation, space)
        if chosen is None:
            return Action(), "no free slot takes a blueprint of this policy"
        refusal = self._too_much(observation) or self._too_soon(observation)
        if refusal:
            return Action(), refusal
        slot, option = chosen
        why = "growth pays most early" if not observation["seeds_seen"] else "the loss has reached a plateau"
        return Action(GERMINATE, slot, option), f"{slot}: {why}"

    def candidates(self, observation: Observation, space: ActionSpace) -> list[Action]:
        """Return the germination that would be proposed now if one were due; none where no further seed may start."""
        chosen = self._slot_and_option(observation, space)
        if chosen is None or self._too_much(observation):
            return []
        return [Action(GERMINATE, *chosen)]

    def _too_soon(self, observation: Observation) -> str:
        """Return why no seed is due yet, or nothing."""
        epoch, planned = observation["epoch"], self._planned(observation)
        improvement = observation.known("improvement_per_epoch")
        plateau = improvement is not None and improvement < self.config.plateau_improvement_per_epoch
        if observation["seeds_seen"] == 0:
            earliest, latest = self.config.germination_epochs(planned)
            due = epoch >= latest or (epoch >= earliest and plateau)
            return "" if due else f"the host learns by itself until epoch {latest} or a plateau"
        return "" if plateau else "the loss still falls"

    def _too_much(self, observation: Observation) -> str:
        """Return why no further seed may start, or nothing."""
        if observation["seeds_fossilized"] >= self.config.seeds_kept_max:
            return "the run has the seeds it may keep"
        if observation["seeds_seen"] >= self.config.seeds_tried_max:
            return "the run has tried the seeds it may try"
        left = observation["epochs_planned"] - observation["epoch"]
        if observation["epochs_planned"] and left < self.config.epochs_to_grow(self._planned(observation)):
            return f"{left:g} epochs are too few to grow a seed up"
        return ""

    def _slot_and_option(self, observation: Observation, space: ActionSpace) -> tuple[str, BlueprintOption] | None:
        """Return where to germinate what.

        Slots: fewest orders so far; bypasses before residuals; where the host narrows most, because there a bypass
        restores most; the shallowest; by name. Options: in order of preference, the next after every
        `tries_per_option` orders that led to no seed.
        """
        free = [slot for slot in observation.slots if slot.slot in space.targets[GERMINATE]]
        if not free:
            return None
        slot = min(free, key=_slot_rank)
        fitting = space.fitting[slot.slot]
        turn = int(slot["germinations_ordered"]) // self.config.tries_per_option
        return slot.slot, fitting[turn % len(fitting)]

    def _planned(self, observation: Observation) -> int:
        return int(observation["epochs_planned"]) or self.config.epochs_assumed


def _slot_rank(slot: SlotView) -> tuple[float, float, float, float, str]:
    narrowing = slot["in_features"] / max(1.0, slot["out_features"])
    return slot["germinations_ordered"], -slot["branch"], -narrowing, slot["layer_depth"], slot.slot


def held_out_gain(slot: SlotView) -> float | None:
    """Return the share by which the seed lowers the held-out loss (positive: it helps); None when not measured.

    In TRAINING "on" is the shadow forward at alpha 1; later it is the network as it is, and "off" leaves the seed out.
    """
    off, on = slot.known("loss_seed_off"), slot.known("loss_seed_on")
    return None if off is None or on is None or off <= 0.0 else 1.0 - on / off
