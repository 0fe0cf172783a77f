"""What an evaluation compares, stated before anything is run: a file whose digest every run of it names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from esper.core.errors import UsageError
from esper.core.kernel import canonical_json

Rate = Annotated[float, Field(gt=0.0, le=10.0)]
#: Hosts without a controller: what a user has before, and instead of, growing.
STATIC: Final = "static"
STATIC_EQUAL: Final = "static_equal_compute"
SHAPE: Final = "final_shape"
SHAPE_EQUAL: Final = "final_shape_equal_compute"
POPULATION: Final = "pbt"
SEARCH: Final = "search"
LEARNED: Final = "learned"
#: Arms that a policy of Tamiyo decides.
POLICIES: Final = ("random", "fixed", "heuristic", LEARNED)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Cell(_Strict):
    """A task and a host, and whether anything was tuned on it."""

    task: str = Field(min_length=1, pattern=r"^[^/\s]+$")
    #: With its width where it has one: "mlp:8".
    host: str = Field(min_length=1, pattern=r"^[^/\s]+$")
    split: Literal["training", "held_out"] = "held_out"

    @property
    def name(self) -> str:
        """What it is called in reports."""
        return f"{self.task}/{self.host}"


class Seeds(_Strict):
    """Consecutive seeds; every arm has each once."""

    first: int = Field(ge=0, le=2**62)
    count: int = Field(ge=1, le=10_000)

    def __iter__(self) -> Iterator[int]:  # type: ignore[override]  # pydantic's own yields fields, which nobody asks for
        return iter(range(self.first, self.first + self.count))


class NoPolicy(_Strict):
    """An arm without anything to set."""


class PolicyArm(_Strict):
    """An arm that a policy decides; `policy` is the arm's own name where it is not given."""

    policy: str = ""
    parameters: dict[str, float] = {}


class PopulationArm(_Strict):
    """Population based training (Jaderberg et al., 2017) of the learning rate, with the defaults that Ray publishes.

    `first_rate` is what the first member begins with, the task's own; others draw evenly on the scale of logarithms.
    """

    population: int = Field(default=4, ge=2, le=64)
    generations: int = Field(default=4, ge=2, le=64)
    quantile: float = Field(default=0.25, gt=0.0, le=0.5)
    resample: float = Field(default=0.25, ge=0.0, le=1.0)
    factors: tuple[float, float] = (0.8, 1.2)
    first_rate: Rate = 0.003
    rates: tuple[Rate, Rate] = (0.0003, 0.03)


class SearchArm(_Strict):
    """A search of the host's width and learning rate: Optuna's TPE with asynchronous successive halving (ASHA)."""

    widths: tuple[int, int] = (4, 128)
    rates: tuple[Rate, Rate] = (0.0003, 0.03)
    #: A trial's first runs have this share of the epochs, again and again, up to all of them.
    reduction: int = Field(default=3, ge=2, le=10)
    rungs: int = Field(default=3, ge=1, le=6)
    startup_trials: int = Field(default=4, ge=1, le=100)
    trials_max: int = Field(default=200, ge=1, le=10_000)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not 1 <= self.widths[0] <= self.widths[1]:
            raise ValueError("widths must be two numbers from 1 on, the smaller first")
        return self


class Arms(_Strict):
    """The arms of the comparison; each that is named is required."""

    static: NoPolicy | None = None
    static_equal_compute: NoPolicy | None = None
    final_shape: NoPolicy | None = None
    final_shape_equal_compute: NoPolicy | None = None
    random: PolicyArm | None = None
    fixed: PolicyArm | None = None
    heuristic: PolicyArm | None = None
    learned: PolicyArm | None = None
    pbt: PopulationArm | None = None
    search: SearchArm | None = None

    def names(self) -> tuple[str, ...]:
        """Return the arms that are to be run, in their fixed order."""
        return tuple(name for name in Arms.model_fields if getattr(self, name) is not None)


class Cost(_Strict):
    """What a doubling takes from the score, beside the static host of the same pair: in shares of accuracy."""

    multiply_adds: float = Field(default=0.0, ge=0.0, le=1.0)
    parameters: float = Field(default=0.0, ge=0.0, le=1.0)


class Claim(_Strict):
    """What is claimed of an arm: better than some, and at most `margin` worse than others."""

    superior_to: tuple[str, ...]
    not_inferior_to: tuple[str, ...] = ()
    margin: float = Field(default=0.01, ge=0.0, le=0.03)
    metric: Literal["accuracy", "score"] = "accuracy"


class Claims(_Strict):
    """That growing pays, and that the learned policy does; one that is null is not made."""

    growth: Claim | None = Claim(
        superior_to=(STATIC, STATIC_EQUAL), not_inferior_to=(SHAPE, SHAPE_EQUAL, SEARCH), margin=0.01
    )
    policy: Claim | None = Claim(
        superior_to=(STATIC, "random", "fixed"), not_inferior_to=("heuristic", POPULATION), margin=0.005
    )


class Bounds(_Strict):
    """What a claim takes; a plan may ask for more than this, and not for less."""

    seeds_min: int = Field(default=20, ge=20)
    held_out_cells_min: int = Field(default=4, ge=4)
    improvement_min: float = Field(default=0.75, ge=0.75, le=1.0)
    #: Two-sided level of the intervals, and family-wise level of the tests over a claim's rivals.
    level: float = Field(default=0.05, gt=0.0, le=0.05)
    resamples: int = Field(default=10_000, ge=1_000, le=1_000_000)


class Plan(_Strict):
    """An evaluation: arms over cells and seeds, and what is to be claimed of them.

    The figure that counts is the accuracy on the task's test part, which no policy, gate or choice ever sees: a run
    looks at it once, at its end. Everything that chooses (gates, PBT, the search) looks at the validation part.
    """

    format: Literal[1]
    name: str = Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9._ -]+$")
    epochs: int = Field(ge=1, le=10_000)
    seeds: Seeds
    cells: tuple[Cell, ...] = Field(min_length=1)
    arms: Arms
    #: Whose runs say what "equal compute" and "final shape" mean, and of whom the claim of growth is made.
    grown: Literal["random", "fixed", "heuristic", "learned"] = "learned"
    device: str = "cpu"
    cost: Cost = Cost()
    claims: Claims = Claims()
    bounds: Bounds = Bounds()

    @model_validator(mode="after")
    def _whole(self) -> Self:
        names = [cell.name for cell in self.cells]
        if len(set(names)) != len(names):
            raise ValueError("a cell stands in it twice")
        arms = self.arms.names()
        if STATIC not in arms or self.grown not in arms:
            raise ValueError(f"arms must hold {STATIC} and {self.grown}, the grown arm: everything is measured by them")
        return self

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what the plan says, however its file is written."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json"))).hexdigest()

    def policy_of(self, arm: str) -> tuple[str, dict[str, float]]:
        """Return the policy of an arm, and its parameters; "noop" for arms that nothing decides."""
        chosen = getattr(self.arms, arm)
        return (chosen.policy or arm, dict(chosen.parameters)) if isinstance(chosen, PolicyArm) else ("noop", {})


@dataclass(frozen=True)
class Pair:
    """A cell and a seed: in it every arm begins with the same weights and reads its data in the same order."""

    cell: Cell
    seed: int


def load_plan(path: Path) -> Plan:
    """Return the plan of a YAML file.

    Raises:
        UsageError: the file cannot be read, or is no plan; the message names the first thing that is wrong.
    """
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"the plan {path} cannot be read", cause=str(error), next_step="Give a YAML file") from error
    return plan_of(content, what=f"the plan {path}")


def plan_of(content: object, *, what: str = "the plan") -> Plan:
    """Return the plan that `content`, as YAML or JSON gives it, states.

    Raises:
        UsageError: it is none.
    """
    try:
        # JSON knows no tuples; strict Python does not take lists for them.
        return Plan.model_validate_json(canonical_json(content))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise UsageError(
            f"{what} cannot be used", cause=f"{place}: {first['msg']}", next_step="Correct it; docs/evaluation.md"
        ) from error
