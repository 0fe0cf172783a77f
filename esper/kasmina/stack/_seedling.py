"""One seed of one member of a stack: what of it is no tensor."""

from __future__ import annotations

from dataclasses import dataclass

from esper.kasmina._config import KasminaConfig
from esper.kasmina.bed._bench import HeldOutLosses
from esper.kasmina.bed._report import seed_metrics
from esper.kasmina.bed._seed_training import ShadowRecord
from esper.kasmina.gates._gradients import NO_GRADIENTS, GradientRecord
from esper.kasmina.grafting._alpha import AlphaCurve, AlphaSchedule
from esper.kasmina.grafting._seed import Role
from esper.kasmina.grafting._slots import SlotSpec
from esper.kasmina.isolation._monitor import NO_LEAKS, Leaks
from esper.kasmina.lifecycle._lifecycle import SeedRecord
from esper.leyline import messages as ly


@dataclass
class Seedling:
    """A seed that is on its member's host; its tensors are a row of the group that it is in.

    `steps` counts those of the seed's own optimiser; `age` also those that the host's took for it once it was
    fossilised, as Adam's own count does.
    """

    member: int
    seed_id: str
    spec: SlotSpec
    kernel_digest: str
    parameters: int
    multiply_adds_per_sample: int
    role: Role = Role.ISOLATED
    schedule: AlphaSchedule | None = None
    blend_step: int = 0
    #: Whether alpha falls: the seed was culled while its host heard it, and learns nothing more.
    falling: bool = False
    steps: int = 0
    age: int = 0
    epoch_losses: tuple[float, ...] = ()
    shadow_steps: int = 0
    gradients: GradientRecord = NO_GRADIENTS
    gradient_norm: float | None = None
    held_out: HeldOutLosses | None = None
    sound: bool = True
    leaks: Leaks = NO_LEAKS

    @property
    def alpha(self) -> float:
        """Share of the seed that its host hears."""
        if self.role is Role.FOSSIL:
            return 1.0
        return 0.0 if self.schedule is None else self.schedule.at(self.blend_step)

    @property
    def steps_left(self) -> int:
        """Steps until alpha stands where its schedule ends; 0 without a schedule."""
        return 0 if self.schedule is None else self.schedule.steps - self.blend_step

    @property
    def heard(self) -> bool:
        """Whether the host's own forward now runs the seed."""
        return self.role is Role.FOSSIL or (self.role is Role.BLENDED and self.alpha > 0.0)

    @property
    def joint(self) -> bool:
        """Whether the seed takes part in the host's forward, be it with alpha 0."""
        return self.role is not Role.ISOLATED

    def learning_rate(self, config: KasminaConfig, *, after: int = 0) -> float:
        """Return the rate of the seed's next step, or of that `after` so many more."""
        share = min(1.0, (self.steps + after + 1) / config.warmup_steps) if config.warmup_steps else 1.0
        return config.learning_rate * share

    def fall(self, curve: AlphaCurve, *, steps: int) -> None:
        """Let alpha fall to 0 over `steps` steps, from where it is."""
        start = self.alpha
        self.schedule = AlphaSchedule(self.schedule.curve if self.schedule else curve, steps, start=start, end=0.0)
        self.blend_step, self.falling, self.held_out = 0, True, None

    def close_epoch(self, *, steps: int, norms: GradientRecord, last_norm: float | None, sound: bool) -> None:
        """Take note of an epoch of own steps."""
        self.steps += steps
        self.age += steps
        self.gradients = norms
        self.gradient_norm = self.gradient_norm if last_norm is None else last_norm
        self.sound = self.sound and sound


def seed_state(record: SeedRecord, seed: Seedling, *, epoch: int, risk: float, config: KasminaConfig) -> ly.SeedState:
    """Return the seed's state after `epoch`, as a lone run's packet would show it."""
    state = ly.SeedState(
        seed_id=record.seed_id,
        stage=record.stage,
        learning_rate=0.0 if seed.role is Role.FOSSIL else seed.learning_rate(config),
        layer_depth=seed.spec.depth,
        metrics=seed_metrics(
            parameters=seed.parameters,
            multiply_adds_per_sample=seed.multiply_adds_per_sample,
            steps=seed.steps,
            shadow=ShadowRecord(seed.epoch_losses, seed.shadow_steps),
            held_out=seed.held_out,
        ),
        age_epochs=epoch - record.germinated_epoch,
        risk_score=risk,
        slot=record.slot,
        blueprint_id=record.blueprint_id,
        alpha=seed.alpha,
        stage_epochs=epoch - record.stage_epoch,
    )
    if seed.gradient_norm is not None:
        state.gradient_norm = seed.gradient_norm
    return state
