"""The chains of one partition: every producer's records, each naming the one before by its MAC.

A record is judged by its sequence and `previous_mac` alone, so memory grows with the number of producers that are
remembered, never with the number of records.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Final

from esper.leyline import messages as ly
from esper.oona.proof._findings import Finding, Kind

#: Lives of producers that one partition remembers; beyond, the one that was silent longest is forgotten.
_LIVES_MAX: Final = 10_000
#: A record that returns this soon after it was first there is told apart from one that contradicts it.
_RECENT_MACS: Final = 32
_MISSING_MAX: Final = 16


@dataclass
class _Rival:
    """A record that stands in the chain's next place without naming its end: one of the two is foreign."""

    sequence: int
    mac: bytes
    finding: Finding


@dataclass
class _Missing:
    """Sequences that were skipped, and the finding that says so."""

    first: int
    last: int
    finding: Finding


@dataclass(slots=True)
class _Life:
    """One producer on one partition, as far as it was read."""

    sequence: int
    mac: bytes
    offset: int
    recent: deque[bytes]
    missing: list[_Missing] = field(default_factory=list)
    rival: _Rival | None = None

    def accept(self, sequence: int, mac: bytes, offset: int) -> None:
        self.sequence, self.mac, self.offset = sequence, mac, offset
        self.recent.append(mac)

    def mac_of(self, sequence: int) -> bytes | None:
        """Return the MAC of a recent record, if it is still remembered."""
        back = self.sequence - sequence
        return self.recent[-1 - back] if 0 <= back < len(self.recent) else None


class Chains:
    """All chains of one partition, read in order of offsets."""

    def __init__(self, topic: str, partition: int, *, from_first_record: bool) -> None:
        self._topic = topic
        self._partition = partition
        #: Whether a chain that does not begin with sequence 1 has lost its beginning.
        self._complete = from_first_record
        self._lives: OrderedDict[str, _Life] = OrderedDict()
        #: Producers whose earlier records were not read, so that their first link is taken as it is.
        self.taken_on_trust = 0

    def judge(self, meta: ly.EventMeta, mac: bytes, offset: int) -> Finding | None:
        """Return what is wrong with the next authentic record's place in its chain, or None."""
        producer, sequence = meta.producer_id, meta.sequence
        life = self._lives.get(producer)
        if life is None:
            return self._first_of(producer, meta, mac, offset)
        if sequence == life.sequence + 1 and meta.previous_mac == life.mac:
            life.accept(sequence, mac, offset)
            life.rival = None
            return None
        return self._misplaced(life, meta, mac, offset)

    def _first_of(self, producer: str, meta: ly.EventMeta, mac: bytes, offset: int) -> Finding | None:
        self._remember(producer, _Life(meta.sequence, mac, offset, deque((mac,), maxlen=_RECENT_MACS)))
        if meta.sequence == 1:
            if not meta.previous_mac:
                return None
            return self._finding(offset, Kind.FOREIGN, f"sequence 1 of {producer} names a record before it")
        if not self._complete:
            self.taken_on_trust += 1
            return None
        missing = f"records 1 to {meta.sequence - 1} of {producer} are not there"
        return self._skipped(self._lives[producer], 1, meta.sequence - 1, offset, missing)

    def _remember(self, producer: str, life: _Life) -> None:
        self._lives[producer] = life
        if len(self._lives) > _LIVES_MAX:
            # In order of first appearance, which is good enough: a life that still writes is rarely the oldest.
            self._lives.popitem(last=False)
            self._complete = False

    def _misplaced(self, life: _Life, meta: ly.EventMeta, mac: bytes, offset: int) -> Finding | None:
        """Judge a record that is not the plain next one of a known life."""
        sequence, producer = meta.sequence, meta.producer_id
        rival = life.rival
        if rival is not None and sequence == rival.sequence + 1 and meta.previous_mac == rival.mac:
            _settle_rival(life, rival, meta, mac, offset)
            return None
        if sequence == life.sequence + 1:
            what = f"sequence {sequence} of {producer} does not name the record at offset {life.offset} before it"
            finding = self._finding(offset, Kind.FOREIGN, what)
            life.rival = _Rival(sequence, mac, finding)
            return finding
        if sequence > life.sequence + 1:
            first, last = life.sequence + 1, sequence - 1
            what = f"records {first} to {last} of {producer} are missing after offset {life.offset}"
            life.recent.clear()
            life.accept(sequence, mac, offset)
            return self._skipped(life, first, last, offset, what)
        return self._returned(life, meta, mac, offset)

    def _returned(self, life: _Life, meta: ly.EventMeta, mac: bytes, offset: int) -> Finding:
        """Judge a record whose sequence is not above the highest one."""
        sequence, producer = meta.sequence, meta.producer_id
        for missing in life.missing:
            if missing.first <= sequence <= missing.last:
                missing.finding.kind = Kind.REORDER
                what = f"sequence {sequence} of {producer} stands after sequence {life.sequence}"
                return self._finding(offset, Kind.REORDER, what)
        known = life.mac_of(sequence)
        if known is not None and known != mac:
            what = f"sequence {sequence} of {producer} was another record before"
            return self._finding(offset, Kind.FOREIGN, what)
        return self._finding(offset, Kind.DUPLICATE, f"sequence {sequence} of {producer} was there before")

    def _skipped(self, life: _Life, first: int, last: int, offset: int, what: str) -> Finding:
        finding = self._finding(offset, Kind.GAP, what)
        life.missing.append(_Missing(first, last, finding))
        del life.missing[:-_MISSING_MAX]
        return finding

    def _finding(self, offset: int, kind: Kind, detail: str) -> Finding:
        return Finding(self._topic, self._partition, offset, kind, detail)


def _settle_rival(life: _Life, rival: _Rival, meta: ly.EventMeta, mac: bytes, offset: int) -> None:
    """Let the chain go on from the rival, whose successor this is: what stood before the rival was the foreign one."""
    finding = rival.finding
    finding.detail = f"the record of {meta.producer_id} here is not the one that its successors name"
    finding.offset = life.offset
    life.recent.clear()
    life.accept(rival.sequence, rival.mac, offset)
    life.accept(meta.sequence, mac, offset)
    life.rival = None
