"""`esper verify` of a long log, shared between processes."""

from __future__ import annotations

import pytest

from esper.leyline import Record
from esper.oona import Fabric
from esper.oona.proof import Span, append_checkpoint, verify_cluster
from esper.oona.proof._parallel import processes_for
from tests.conftest import StartBroker
from tests.oona.log import append, packet

_RECORDS = 100_000
_RUNS = 24
_FORGED_PARTITION = 3


@pytest.mark.parametrize(
    ("records", "partitions", "cores", "processes"),
    [(99_999, 8, 8, 1), (100_000, 8, 8, 2), (100_000, 1, 8, 1), (10**9, 64, 4, 4), (10**9, 64, 64, 8), (0, 8, 8, 1)],
)
def test_a_log_gets_as_many_processes_as_it_is_worth(
    monkeypatch: pytest.MonkeyPatch, records: int, partitions: int, cores: int, processes: int
) -> None:
    """A process more must pay for its start: ask for logs of several lengths on machines of several sizes."""
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    share, rest = divmod(records, partitions)
    spans = {
        ("system-state", number): Span(7, 7 + share + (rest if number == 0 else 0)) for number in range(partitions)
    }
    assert processes_for(spans) == processes


def test_several_processes_find_in_a_long_log_what_one_finds(start_broker: StartBroker) -> None:
    """Sharing changes no verdict: verify 100,000 events and a forged record in one process and in two."""
    with Fabric.open(start_broker().settings, member="parallel-0") as fabric:
        with fabric.publisher("tolaria") as publisher:
            for number in range(_RECORDS):
                run_id = f"run-{number % _RUNS}"
                publisher.submit(packet(run_id, number), key=run_id)
        (forged,) = append(fabric, [Record("system-state", _FORGED_PARTITION, 0, b"run-forged", b"believe me")])
        append_checkpoint(fabric)
        alone, shared = verify_cluster(fabric, processes=1), verify_cluster(fabric, processes=2)
    assert shared.document() == alone.document()
    assert [(one["partition"], one["offset"], one["kind"]) for one in alone.document()["bad"]] == [
        (_FORGED_PARTITION, forged.offset, "unsigned")
    ]
    assert alone.records > _RECORDS
    assert alone.covered > _RECORDS
