"""The chain of one producer: the last record that it sent and the last that was acknowledged, per partition."""

from __future__ import annotations

from typing import Final, NamedTuple

from esper.leyline import messages as ly
from esper.oona._cluster import Position


class Link(NamedTuple):
    """One record of a producer on one partition; offset -1: not known yet."""

    sequence: int = 0
    mac: bytes = b""
    offset: int = -1


_NONE: Final = Link()


class Chain:
    """Links of one life of one producer.

    `append` is called in the order of the log under the publisher's lock, `acknowledge` by its delivery thread.
    """

    def __init__(self) -> None:
        self._sent: dict[Position, Link] = {}
        self._acknowledged: dict[Position, Link] = {}

    def last(self, place: Position) -> Link:
        """Return the last record sent to a partition; sequence 0 when there is none."""
        return self._sent.get(place, _NONE)

    def append(self, place: Position, sequence: int, mac: bytes) -> None:
        """Take note of a record that the queue took."""
        self._sent[place] = Link(sequence, mac)

    def acknowledge(self, place: Position, sequence: int, mac: bytes, offset: int) -> None:
        """Take note of an acknowledgement; an idempotent producer gets them in the order of its records."""
        self._acknowledged[place] = Link(sequence, mac, offset)

    def acknowledged(self) -> list[ly.ChainLink]:
        """Return the last acknowledged record of every partition, in order of topic and partition."""
        return [
            ly.ChainLink(topic=topic, partition=partition, sequence=link.sequence, offset=link.offset, mac=link.mac)
            for (topic, partition), link in sorted(self._acknowledged.items())
        ]
