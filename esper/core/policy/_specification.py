"""What a learned policy is beside its weights: the shape of its network, what it sees, what it may order."""

from __future__ import annotations

import hashlib
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from esper.core.errors import IntegrityError
from esper.core.kernel import canonical_json
from esper.core.policy._schema import HEADS, LAYOUT_CODES, OBSERVATION_SCHEMA

#: Changes when the network of the same specification would compute something else.
ARCHITECTURE: Final = "slots-attention.v1"
SPECIFICATION_BYTES_MAX: Final = 256 * 1024
WEIGHTS_BYTES_MAX: Final = 8 * 1024 * 1024


class PolicyRefused(IntegrityError):
    """A policy that is not what its event says it is, or that this version cannot decide with; `reason` is a word."""

    def __init__(self, reason: str, cause: str) -> None:
        super().__init__("the policy is refused", cause=cause, next_step="train it again, or promote another one")
        self.reason = reason


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class OptionEntry(_Strict):
    """A blueprint with its parameters that the policy may germinate: a row of its registry of embeddings."""

    blueprint_id: str = Field(min_length=1, max_length=64)
    parameters: tuple[tuple[str, float], ...] = Field(max_length=16, strict=False)
    #: Layouts of the slots that it was seen to fit.
    layouts: tuple[str, ...] = Field(max_length=16, strict=False)

    @property
    def label(self) -> str:
        """Name of the action, as the blueprint head of a decision has it."""
        inside = ",".join(f"{name}={value:g}" for name, value in self.parameters)
        return f"{self.blueprint_id}({inside})"


class Specification(_Strict):
    """All that decides which network the weights belong to; equal specifications have equal canonical JSON."""

    architecture: Literal["slots-attention.v1"] = ARCHITECTURE
    observation_schema: Literal["tamiyo.observation.v2"] = OBSERVATION_SCHEMA
    heads: tuple[str, ...] = Field(default=HEADS, strict=False)
    width: int = Field(ge=8, le=512)
    options: tuple[OptionEntry, ...] = Field(min_length=1, max_length=256, strict=False)
    #: Numbers of the blueprints whose seeds are told apart; any other one is "unknown".
    blueprints: tuple[int, ...] = Field(max_length=1024, strict=False)
    #: What rewards were multiplied by when the critic learned.
    value_scale: float = Field(gt=0.0, allow_inf_nan=False)
    #: What the rewards were made of, by part.
    reward_weights: dict[str, float] = Field(default_factory=dict, max_length=16)

    @model_validator(mode="after")
    def _sound(self) -> Specification:
        labels = [option.label for option in self.options]
        if len(set(labels)) != len(labels) or len(set(self.blueprints)) != len(self.blueprints):
            raise ValueError("an option or a blueprint stands twice")
        strange = {layout for option in self.options for layout in option.layouts} - set(LAYOUT_CODES)
        if strange or self.heads != HEADS:
            raise ValueError(f"layouts or heads that this version does not know: {sorted(strange)} {self.heads}")
        return self

    def canonical(self) -> str:
        """Return the canonical JSON."""
        return canonical_json(self.model_dump(mode="json")).decode("ascii")


def parse_specification(text: str) -> Specification:
    """Return the specification that `text` says.

    Raises:
        PolicyRefused: too large, not canonical, or not one that this version knows.
    """
    if len(text) > SPECIFICATION_BYTES_MAX:
        raise PolicyRefused("huge", f"its specification has {len(text)} characters, at most {SPECIFICATION_BYTES_MAX}")
    try:
        found = Specification.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "specification"
        raise PolicyRefused("schema", f"{where}: {first['msg']}") from error
    if found.canonical() != text:
        raise PolicyRefused("schema", "its specification is not in canonical form")
    return found


def policy_digest(specification: str, payload: bytes) -> str:
    """Return what `PolicyUpdate.policy_digest` must be: SHA-256 over specification and weights, each after its length.

    64 hexadecimal digits.
    """
    found = hashlib.sha256(b"esper.policy.1\n")
    for part in (specification.encode(), payload):
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.hexdigest()
