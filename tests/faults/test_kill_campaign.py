"""Producers, consumers, the projector and the broker are killed at random; nothing is lost, doubled or out of order."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.campaigns import WHOLE
from tests.conftest import StartBroker
from tests.faults._campaign import BROKER_RETRY_SECONDS, CUT_SCALE, WHOLE_SCALE, Campaign
from tests.faults._independent import Log, read_topics
from tests.faults._rules import TOPICS, judge, judge_tables

Note = Callable[[str, object], None]


@pytest.mark.campaign
@pytest.mark.timeout(3600 if WHOLE else 1200)
def test_kills_and_rebalances_lose_double_and_swap_nothing(
    start_broker: StartBroker,
    tmp_path: Path,
    record_property: Note,
    request: pytest.FixtureRequest,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Goal: whatever dies when, each confirmed event stands once, has each effect once, in the order of its key.

    Method: kill -9 of producers, consumers, projector and broker at points drawn from a seed, members that stand still
    past their session, rebalances every few seconds; then a reader that uses nothing of the fabric looks at the topics.
    """
    scale = WHOLE_SCALE if WHOLE else CUT_SCALE
    seed = int(os.environ.get("CAMPAIGN_SEED") or request.config.getoption("randomly_seed", 0))
    with capfd.disabled():
        sys.stderr.write(f"\nkill campaign: CAMPAIGN_SEED={seed}\n")
    running = start_broker(broker_retry_seconds=BROKER_RETRY_SECONDS)
    campaign = Campaign(running, scale, seed, tmp_path)
    campaign.run()
    log = Log((running.home.root / "key").read_bytes().strip()).take_all(read_topics(running.bootstrap, TOPICS))
    tables = max(running.home.projections.glob("runs-*.duckdb"), key=lambda path: path.stat().st_mtime)
    findings = [*judge(log, campaign.acknowledged), *judge_tables(log, tables)]
    kinds = Counter(finding.kind for finding in findings)
    figures = {
        **campaign.figures(),
        "records_read": sum(map(len, log.entries.values())),
        "records_that_were_copies": dict(log.copies),
        "lives_of_producers": log.lives,
        **{kind.replace(" ", "_"): kinds[kind] for kind in ("lost", "doubled", "inversion", "no effect")},
        "findings": len(findings),
    }
    for name, value in figures.items():
        record_property(name, value)
    assert findings[:20] == [], f"{kinds} {figures}"
    assert len(campaign.acknowledged) == scale.events
    assert campaign.faults.keys() >= scale.faults.keys()
    assert campaign.assignments.total() > campaign.guests > 0
