"""Every order in which the partitions of a log may be read gives the same tables, in every shipped projection."""

from __future__ import annotations

import os
import random
import shutil
from collections import defaultdict, deque
from collections.abc import Callable, Mapping

import pytest

from esper.core.rng import derive_seed
from esper.leyline import NO_RECORDS, Record, RecordColumns
from esper.oona import Position
from esper.projection.files._contents import Contents
from tests.campaigns import WHOLE
from tests.projection.conftest import OpenWorkbench, Workbench
from tests.projection.every_event import every_event
from tests.projection.log import Log

INTERLEAVINGS = 100 if WHOLE else 6
EVENTS_OF_EACH_TYPE = 12 if WHOLE else 6


class _Shuffled:
    """Reads each partition in order, and the partitions in any: some records of one, then of another, or none."""

    def __init__(self, log: Log, chooser: random.Random, *, most: int, pauses: float) -> None:
        self._log = log
        self._chooser = chooser
        self._most = most
        self._pauses = pauses
        self._left: dict[Position, deque[Record]] = {}

    def seek(self, positions: Mapping[Position, int]) -> None:
        """Stand at `positions`."""
        left: dict[Position, deque[Record]] = defaultdict(deque)
        for record in self._log.source.records:
            place = (record.topic, record.partition)
            if record.offset >= positions.get(place, record.offset + 1):
                left[place].append(record)
        self._left = dict(left)

    def read(self, _timeout: float, limit: int) -> RecordColumns:
        """Return some records of one partition; nothing now and then, which ends a batch."""
        waiting = [place for place, records in self._left.items() if records]
        if not waiting or self._chooser.random() < self._pauses:
            return NO_RECORDS
        records = self._left[self._chooser.choice(waiting)]
        count = self._chooser.randint(1, min(self._most, limit))
        return RecordColumns.of([records.popleft() for _ in range(min(count, len(records)))])

    @property
    def empty(self) -> bool:
        """Whether everything was read."""
        return not any(self._left.values())


def _contents(bench: Workbench) -> dict[str, Contents]:
    return {one.name: bench.contents(one.name) for one in bench.definitions}


def _fold(bench: Workbench, shuffled: _Shuffled, chooser: random.Random) -> None:
    """Fold all of it, now and then beginning again where the files end."""
    bench.folding.start()
    while not shuffled.empty:
        bench.folding.step(0)
        if chooser.random() < 0.01:
            bench.folding.start()
    bench.folding.commit()


@pytest.mark.campaign
@pytest.mark.timeout(3600 if WHOLE else 300)
def test_no_interleaving_shows_in_the_tables(
    open_workbench: OpenWorkbench,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
) -> None:
    """Goal: tables depend on the order within each partition and on nothing else.

    Method: a log of every event type with attempts, copies, forgeries and garbage is folded in orders of partitions,
    sizes of batches and restarts drawn from a seed; each time every table of every shipped projection has the hash that
    a fold in one piece gave.
    """
    seed = int(os.environ.get("CAMPAIGN_SEED") or request.config.getoption("randomly_seed", 0))
    log = every_event(random.Random(derive_seed(seed, "log")), each=EVENTS_OF_EACH_TYPE)  # noqa: S311 - a campaign
    whole = open_workbench(log, "whole")
    whole.fold()
    expected = _contents(whole)
    whole.close()
    assert all(any(one.applied for one in contents.progress) for contents in expected.values())
    assert any(one.deduplicated and one.discarded for one in expected["runs"].progress)
    batches = 0
    for number in range(INTERLEAVINGS):
        chooser = random.Random(derive_seed(seed, "interleaving", number))  # noqa: S311 - a campaign
        shuffled = _Shuffled(log, chooser, most=chooser.choice((1, 7, 60)), pauses=chooser.choice((0.01, 0.1, 0.5)))
        monkeypatch.setattr(log.source, "seek", shuffled.seek)
        monkeypatch.setattr(log.source, "read", shuffled.read)
        bench = open_workbench(log, f"order-{number}", bulk=chooser.choice((None, 1, 20, 10_000)))
        _fold(bench, shuffled, chooser)
        for name, contents in _contents(bench).items():
            assert contents == expected[name], f"CAMPAIGN_SEED={seed}, interleaving {number}, projection {name}"
        bench.close()
        shutil.rmtree(bench.folder)
        batches += 1
    figures = {"seed": seed, "interleavings": batches, "records": len(log.source.records), "projections": len(expected)}
    for name, value in figures.items():
        record_property(name, value)
