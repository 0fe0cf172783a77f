"""Keeps what the whole campaigns (`make faults`) showed, as `benchmarks/results/faults.json`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks._report import machine

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results" / "faults.json"
#: Whether campaigns run whole; otherwise each is a cut of itself.
WHOLE = os.environ.get("CAMPAIGN") == "full"


def seed_of(request: pytest.FixtureRequest) -> int:
    """Return the seed of a campaign, and say it; CAMPAIGN_SEED in the environment gives it back."""
    seed = int(os.environ.get("CAMPAIGN_SEED") or request.config.getoption("randomly_seed", 0))
    sys.stderr.write(f"\n{request.node.name}: CAMPAIGN_SEED={seed}\n")
    return seed


class Keeper:
    """Notes the end of every campaign; tests add figures of their own by `record_property`."""

    def __init__(self) -> None:
        self.campaigns: list[dict[str, object]] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Iterator[None]:
        """Note a campaign's outcome, its seconds and its figures."""
        report = yield
        if WHOLE and report.when == "call" and item.get_closest_marker("campaign"):
            self.campaigns.append(
                {
                    "test": item.nodeid,
                    "passed": report.passed,
                    "seconds": round(report.duration, 1),
                    "figures": dict(report.user_properties),
                }
            )
        return report

    def pytest_sessionfinish(self) -> None:
        """Write the results beside those of the benchmarks; campaigns that were not run keep their last ones."""
        if not self.campaigns:
            return
        known = json.loads(RESULTS.read_text())["campaigns"] if RESULTS.exists() else []
        rerun = {campaign["test"] for campaign in self.campaigns}
        kept = [campaign for campaign in known if campaign["test"] not in rerun]
        campaigns = sorted([*kept, *self.campaigns], key=lambda campaign: str(campaign["test"]))
        RESULTS.write_text(json.dumps({"machine": machine(), "campaigns": campaigns}, indent=1) + "\n")
