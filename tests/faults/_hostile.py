"""What hostile records are made of: golden content, and a genuine record of a place under attack."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast

from google.protobuf.message import Message

from esper.leyline import EVENT_TYPES, EventMessage, KeyRing, Record
from esper.leyline.v1.meta_pb2 import AnyEvent, EventMeta
from esper.oona import TopicSpec
from tests.histories.record_messages import fill
from tests.oona.hostile import Target

#: Types whose golden fields would steer who hears them; they are published empty.
_PLAIN_TYPES = {"operations": "ProducerStarted", "dead-letters": "DeadLetter", "emergency": "EmergencySignal"}
_GOLDEN = Path(__file__).resolve().parent.parent / "histories" / "v0.1.0" / "messages.json"


@dataclass(frozen=True)
class Hostile:
    """One hostile record, not appended yet."""

    kind: str
    record: Record
    #: Words of the contract without their prefix, or DEDUPLICATED.
    reasons: frozenset[str]
    #: Whether a header gets a name that no client library writes.
    raw_header: bool = False


@dataclass(frozen=True)
class Scene:
    """What hostile records of one target are made of."""

    target: Target
    #: Genuine records elsewhere: of other topics, and of other keys of the same one.
    others: Sequence[Record]
    rng: random.Random
    #: The home's former key, which was revoked, and a record of the target's topic that it signed before.
    revoked: KeyRing
    old: Record

    @property
    def genuine(self) -> Record:
        """The target's latest genuine record."""
        return self.target.genuine

    @property
    def value(self) -> bytes:
        """Its value."""
        return self.genuine.value or b""

    @property
    def meta(self) -> EventMeta:
        """Its meta."""
        return AnyEvent.FromString(self.value).meta

    def chance(self, probability: float) -> bool:
        """Return True so often."""
        return self.rng.random() < probability


@cache
def golden_values() -> dict[str, bytes]:
    """Return the recorded bytes of a message of every type."""
    return {name: bytes.fromhex(one["bytes"]) for name, one in json.loads(_GOLDEN.read_text()).items()}


def golden_message(spec: TopicSpec, rng: random.Random) -> EventMessage:
    """Return a message of the topic with golden content, or as it would be recorded next, its meta empty."""
    golden = golden_values()
    plain = _PLAIN_TYPES.get(spec.name)
    if plain is not None:
        return cast("EventMessage", EVENT_TYPES[next(name for name in sorted(spec.types) if name.endswith(plain))]())
    name = rng.choice([name for name in sorted(spec.types) if name in golden] or sorted(spec.types))
    message = cast("EventMessage", EVENT_TYPES[name].FromString(golden.get(name, b"")))
    if name not in golden:
        fill(cast("Message", message), EVENT_TYPES[name].DESCRIPTOR)
    message.meta.Clear()
    return message
