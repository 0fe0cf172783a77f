"""A log that grows: what a rebuild costs at each size, live and from the archive, and looks back at the end.

The projections of the benchmark are built for good at the last size, and asked as a user asks: of a running projector,
as of points drawn at random over the log.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from benchmarks._rebuilding import rebuild
from benchmarks._recording import TOPICS, record
from benchmarks._system import broker_only
from esper.oona import Fabric
from esper.projection import catch_up, load_definitions, query, replay
from esper.projection.archive import archive_of, sealing
from esper.projection.building._building import log_ends
from esper.weatherlight import members_for_a_while

_SEED: Final = 20_261_122
#: What users ask of decisions and field reports (docs/queries.md), over all of the log and over one run.
_QUERIES: Final = (
    "select count(*), count(distinct run_id) from decisions",
    "select policy, policy_version, count(*), avg(log_probability) from decisions group by all",
    "select epoch, policy, proposed_operation, command_id from decisions where run_id = 'run-00000000002a'",
    "select outcome, count(*), avg(counterfactual_gain), max(epoch) from field_report_facts group by all",
    "select epoch, seed_operation, outcome, metrics from field_report_facts where run_id = 'run-00000000002a'",
    "select blueprint_id, outcome, count(*) from field_report_facts where epoch % 7 = 3 group by all",
)


def growth(names: Sequence[str], sizes: Sequence[int], *, looks: int) -> dict[str, Any]:
    """Return rate and memory of a rebuild at each of `sizes`, ascending, and seconds of `looks` looks back at the last.

    At the second size but one, or the only one, the log is sealed and also rebuilt from the archive.
    """
    grown, cold, recorded = list[dict[str, Any]](), list[dict[str, float]](), 0
    sealed_at = sizes[max(0, len(sizes) - 2)]
    with broker_only() as fabric:
        for size in sizes:
            record(fabric, size - recorded, first=recorded)
            recorded = size
            grown.append({"events": recorded, **asdict(rebuild(fabric.home.root, names, readers=0))})
            if size == sealed_at:
                cold = _beside_the_archive(fabric, names)
        replay(fabric, names)
        with members_for_a_while(fabric.settings, wanted=("projector",)):
            catch_up(fabric)
            found = _looks_back(fabric, names, looks)
        return {"growth": grown, "cold": cold, "as_of": found, "as_of_events": recorded}


def _beside_the_archive(fabric: Fabric, names: Sequence[str], rounds: int = 3) -> list[dict[str, float]]:
    """Return events a second from the live log and from the archive, in turns; the first turn warms up."""
    with sealing(fabric, archive_of(fabric.home)) as sealer:
        sealer.seal(TOPICS)
    found = []
    for number in range(rounds + 1):
        live, cold = (rebuild(fabric.home.root, names, readers=0, cold=cold) for cold in (False, True))
        if number:
            found.append({"live": live.events_per_second, "cold": cold.events_per_second})
    return found


def _looks_back(fabric: Fabric, names: Sequence[str], looks: int) -> list[dict[str, Any]]:
    chooser = random.Random(_SEED)  # noqa: S311 - a seeded choice
    chosen = [one for one in load_definitions(fabric.settings, fabric.topics) if one.name in names]
    ends = log_ends(fabric, chosen)
    found = []
    for number in range(looks):
        share = chooser.random()
        point = {place: int(high * share) for place, high in ends.items()}
        sql = _QUERIES[number % len(_QUERIES)]
        began = time.perf_counter()
        rows = len(query(sql, as_of=point, settings=fabric.settings))
        found.append({"seconds": time.perf_counter() - began, "share": share, "rows": rows, "sql": sql})
    return found


def p95(looks: Sequence[dict[str, Any]]) -> float:
    """Return the 95th percentile of the looks' seconds."""
    return statistics.quantiles((one["seconds"] for one in looks), n=20, method="inclusive")[-1]
