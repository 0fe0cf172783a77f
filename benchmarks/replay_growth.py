"""Replay of a log that grows: memory of a rebuild, the archive beside the live log, and queries as of the past.

python -m benchmarks.replay_growth [--growth 100000,1000000,10000000] [--looks 60] [--json]
"""

from __future__ import annotations

import argparse
import statistics
from typing import Final

from benchmarks._growing import growth, p95
from benchmarks._report import at_least, at_most, report

_NAMES: Final = ("runs", "field_reports")
_MEMORY_MIB_MAX: Final = 2_048
_COLD_RATIO_MIN: Final = 1.5
_AS_OF_SECONDS_MAX: Final = 2.0


def main() -> int:
    """Measure, judge and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--growth", default="100000,1000000", help="numbers of events, comma-separated, ascending")
    parser.add_argument("--looks", type=int, default=60, help="queries as of the past, at the last of --growth")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    grown = growth(_NAMES, [int(one) for one in arguments.growth.split(",")], looks=arguments.looks)
    claims = [
        at_least(
            "cold replay from the sealed archive against the live log",
            statistics.median(one["cold"] for one in grown["cold"]),
            "events/s",
            peer=statistics.median(one["live"] for one in grown["cold"]),
            bound=_COLD_RATIO_MIN,
        ),
        at_most(
            f"peak memory of a rebuild of {grown['growth'][-1]['events']:,} events against the budget",
            max(one["peak_mib"] for one in grown["growth"]),
            "MiB",
            peer=float(_MEMORY_MIB_MAX),
            bound=1.0,
        ),
        at_most(
            f"p95 of queries as of the past over {grown['as_of_events']:,} events against the budget",
            p95(grown["as_of"]),
            "s",
            peer=_AS_OF_SECONDS_MAX,
            bound=1.0,
        ),
    ]
    return report("replay_growth", claims, grown, as_json=arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
