"""An audit bundle of 100,000 events, exported from a real broker and verified with the public key alone.

python -m benchmarks.proof [--records 100000] [--json]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from benchmarks._report import at_most, report
from benchmarks._system import broker_only
from esper.core._log_key import log_public_key
from esper.leyline import messages as ly
from esper.oona import Fabric
from esper.oona.proof import append_checkpoint, export_from_cluster, verify_bundle

_RUNS = 16
#: One run has this many events, all of them in one partition: what a bundle shows.
_SHOWN_RUN = "run-that-is-shown"
_VALUE_BYTES = 1024
_BUNDLE_SECONDS_MAX = 10.0


def fill(fabric: Fabric, topic_runs: dict[str, int]) -> None:
    """Append state packets of about 1 KiB, `topic_runs` naming each run's number of them."""
    payload = "x" * (_VALUE_BYTES - 300)
    with fabric.publisher("tolaria") as publisher:
        for run, count in topic_runs.items():
            for epoch in range(count):
                packet = ly.SystemStatePacket(training_run_id=run, current_epoch=epoch, experiment_name=payload)
                publisher.submit(packet, key=run)


def _must(holds: bool, what: object) -> None:
    if not holds:
        raise RuntimeError(f"the log of the benchmark is not proved: {what}")


def bundle_seconds(fabric: Fabric) -> tuple[int, float, float]:
    """Return how many events a bundle of one run holds, its seconds of export and of verification."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "audit.jsonl"
        began = time.perf_counter()
        exported = export_from_cluster(fabric, path, run_id=_SHOWN_RUN)
        written = time.perf_counter()
        public_key = log_public_key(fabric.home.root)
        if public_key is None:
            raise RuntimeError("the writer left no public key")
        with path.open("rb") as file:
            verdict = verify_bundle(file, public_key=public_key)
        seconds = time.perf_counter() - written
        _must(verdict.ok and verdict.records == exported.records, verdict.document()["first_bad"])
        return verdict.records, written - began, seconds


def main() -> int:
    """Measure, judge and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    runs = {f"run-{number}": arguments.records // _RUNS for number in range(_RUNS)} | {_SHOWN_RUN: arguments.records}
    with broker_only() as fabric:
        fill(fabric, runs)
        append_checkpoint(fabric)
        shown, export, check = bundle_seconds(fabric)
    claims = [
        at_most(f"audit bundle of {shown} events, verified", check, "s", peer=_BUNDLE_SECONDS_MAX, bound=1.0),
    ]
    details = {"records": sum(runs.values()), "bundle_export_seconds": export}
    return report("proof", claims, details, as_json=arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
