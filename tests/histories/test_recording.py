"""The next release can be recorded: the whole story, told to a real broker, proves and replays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from esper.core.settings import Settings
from esper.leyline import SHIPPED_TYPES, TYPE_HEADER
from esper.oona import Fabric, TopicCatalog
from esper.oona.proof import append_checkpoint, verify_cluster
from esper.projection import load_definitions
from tests.conftest import running_broker
from tests.histories.golden import SECRET, GoldenLog, replayed
from tests.histories.record import append, kept
from tests.histories.scenario import story

NEVER_HERE = {"esper.leyline.v1.LogRestored"}


@pytest.fixture
def told(tmp_path: Path, _no_settings_from_outside: None) -> Iterator[Fabric]:
    """A fabric on a broker of its own that holds the story and a checkpoint over it."""
    with (
        running_broker(tmp_path / "home", leyline_secret=SECRET, broker_start_seconds=240) as broker,
        Fabric.open(broker.settings, member="recorder") as fabric,
    ):
        append(fabric, story())
        append_checkpoint(fabric)
        yield fabric


def outcomes_of(log: GoldenLog, folder: Path) -> dict[str, object]:
    """Return what the shipped projections make of a log."""
    folder.mkdir()
    settings = Settings(_env_file=None)  # type: ignore[call-arg]  # pydantic-settings takes it
    catalog = TopicCatalog.load(settings)
    definitions = load_definitions(settings, catalog)
    found = replayed(log.records, definitions, catalog=catalog, keyring=log.keyring, folder=folder)
    empty = [
        f"{name}.{table}"
        for name, outcome in found.items()
        for table, content in outcome["tables"].items()
        if content["rows"] == 0
    ]
    assert not empty, f"the story gives these tables nothing: {empty}"
    for name, outcome in found.items():
        assert outcome["dispositions"]["discarded"] == outcome["dispositions"]["deduplicated"] == 0, name
        assert outcome["dispositions"]["applied"] > 0, name
    return dict(found)


def test_the_whole_story_proves_and_replays(told: Fabric, tmp_path: Path) -> None:
    """Goal: every event type, from publisher to table. Method: verify on the cluster; fold in two orders; compare."""
    verdict = verify_cluster(told)
    assert verdict.ok, [one.document() for one in verdict.bad]
    log = kept(told, "next")
    assert {(one.header(TYPE_HEADER) or b"").decode() for one in log.records} == SHIPPED_TYPES - NEVER_HERE
    by_place = GoldenLog(
        log.release,
        log.secret,
        log.topic_ids,
        tuple(sorted(log.records, key=lambda one: (one.topic, -one.partition, one.offset))),
    )
    assert outcomes_of(log, tmp_path / "by-time") == outcomes_of(by_place, tmp_path / "by-place")
