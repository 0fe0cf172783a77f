"""Replay: from Kafka into DuckDB files, every signature verified and every record accounted for, beside its peers.

Peer and subject take turns, round after round, and medians are compared, so that noise of the machine hits both.

python -m benchmarks.replay [--records 1000000] [--rounds 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Final

from benchmarks._bare import Place, read_in_processes, read_with_hmac
from benchmarks._rebuilding import Rebuilt, rebuild
from benchmarks._recording import TOPICS, record
from benchmarks._report import Claim, at_least, report
from benchmarks._system import broker_only
from esper.oona import Fabric
from esper.oona.reading._descriptors import descriptor_set
from esper.projection.definitions._definition import shipped_projections_dir

_NAMES: Final = ("runs", "field_reports")
_QUIX: Final = Path(__file__).parent / "peers" / "quix"
_QUIX_RECORDS: Final = 50_000
_BARE_RATIO_MIN: Final = 0.55
_QUIX_RATIO_MIN: Final = 20.0


def ends_of(fabric: Fabric) -> dict[Place, int]:
    """Return the offset after the last record of each partition that was recorded."""
    places = [place for topic in TOPICS for place in fabric.topics.partitions(topic)]
    return {place: high for place, (_, high) in fabric.cluster.watermarks(places).items()}


def beside_bare(fabric: Fabric, rounds: int, processes: int) -> tuple[list[float], list[Rebuilt]]:
    """Return the records a second of bare consumers, and rebuilds, each in `processes` processes altogether."""
    ends, bare, esper = ends_of(fabric), list[float](), list[Rebuilt]()
    for number in range(rounds + 1):
        theirs = (
            read_with_hmac(fabric.bootstrap, ends)
            if processes == 1
            else read_in_processes(fabric.bootstrap, ends, processes)
        )
        # One process writes; the others read, verify and decode for it.
        ours = rebuild(fabric.home.root, _NAMES, readers=processes - 1)
        if number:  # the first turn warms up
            bare.append(theirs)
            esper.append(ours)
    return bare, esper


def quix_python() -> Path:
    """Return the Python of the peer's own virtual environment, made when it is not there."""
    folder = Path(tempfile.gettempdir()) / "esper-bench-quix"
    python = folder / "bin" / "python"
    if not python.exists():
        uv = Path(sys.executable).with_name("uv")
        subprocess.run([uv, "venv", "--quiet", folder], check=True)
        subprocess.run(
            [uv, "pip", "install", "--quiet", "--python", python, "-r", _QUIX / "requirements.txt"], check=True
        )
    return python


def quix(fabric: Fabric) -> float:
    """Return the events a second that Quix Streams folds into the table of the field reports."""
    with tempfile.NamedTemporaryFile(suffix=".binpb") as descriptors:
        descriptors.write(descriptor_set())
        descriptors.flush()
        schema = shipped_projections_dir() / "field_reports" / "schema.sql"
        command = [
            *(quix_python(), "-W", "ignore", _QUIX / "sink.py", fabric.bootstrap, "field-reports"),
            *(descriptors.name, schema, str(_QUIX_RECORDS)),
        ]
        done = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    if done["records"] < _QUIX_RECORDS:
        raise RuntimeError(f"the peer folded {done['records']} of {_QUIX_RECORDS} events")
    return float(done["records"] / done["seconds"])


def main() -> int:
    """Measure, judge and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with broker_only() as fabric:
        size = record(fabric, arguments.records)
        bytes_each = size / arguments.records
        bare, alone = beside_bare(fabric, arguments.rounds, 1)
        bare_two, two = beside_bare(fabric, arguments.rounds, 2)
        peer = quix(fabric)
        reports = [rebuild(fabric.home.root, ["field_reports"], readers=0) for _ in range(arguments.rounds)]
    claims = [
        _beside(f"{words}, against as many bare consumers with one HMAC per value", theirs, ours)
        for words, theirs, ours in (
            ("Kafka to DuckDB, verified, in one process", bare, alone),
            ("Kafka to DuckDB, verified, in two processes", bare_two, two),
        )
    ]
    claims.append(
        at_least(
            "field reports into their table, verified, against Quix Streams unverified into the same table",
            statistics.median(one.events_per_second for one in reports),
            "events/s",
            peer=peer,
            bound=_QUIX_RATIO_MIN,
        )
    )
    details = {
        "records": arguments.records,
        "value_bytes": bytes_each,
        "one_process": {"bare": bare, "esper": [asdict(one) for one in alone]},
        "two_processes": {"bare": bare_two, "esper": [asdict(one) for one in two]},
        "megabytes_per_second": {
            "one_process": statistics.median(one.events_per_second for one in alone) * bytes_each / 1e6,
            "two_processes": statistics.median(one.events_per_second for one in two) * bytes_each / 1e6,
        },
        "quix": peer,
        "field_reports": [asdict(one) for one in reports],
    }
    return report("replay", claims, details, as_json=arguments.json)


def _beside(name: str, bare: list[float], esper: list[Rebuilt]) -> Claim:
    rate = statistics.median(one.events_per_second for one in esper)
    return at_least(name, rate, "events/s", peer=statistics.median(bare), bound=_BARE_RATIO_MIN)


if __name__ == "__main__":
    raise SystemExit(main())
