"""What every release wrote is read for ever: golden logs prove, replay, and give the tables that they gave."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from esper.core.settings import Settings
from esper.leyline import SHIPPED_TYPES, TYPE_HEADER, Record, decode_value, type_of
from esper.leyline.upcasting import add_chains, remove_chains
from esper.oona import TopicCatalog
from esper.oona.proof import verify_log
from esper.oona.proof._judge import make_judge
from esper.projection import load_definitions
from tests.histories.golden import GoldenLog, hashes_path, read_log, releases, replayed
from tests.histories.record import IMAGES, check_contents, outcomes, released_types
from tests.histories.scenario import ELSEWHERE, story

RELEASES = releases()
CATALOG = TopicCatalog.load(Settings(_env_file=None))  # type: ignore[call-arg]  # pydantic-settings takes it
AGAIN = "run `python -m tests.histories.record hashes`, and see in the diff that only what should has changed"


def prove(log: GoldenLog) -> Any:
    """Walk over a golden log as `esper verify` does."""
    judge = make_judge(keyring=log.keyring, allowed=CATALOG.allowed)
    return verify_log(log.as_list(CATALOG), public_key=None, judge=judge)


def test_every_release_has_a_golden_log() -> None:
    """Goal: no release is forgotten. Method: compare the released contracts with the folders here."""
    assert sorted(path.stem for path in IMAGES.glob("*.binpb")) == RELEASES


def test_the_story_tells_of_every_event() -> None:
    """Goal: the next release can be recorded. Method: compare the story's types with the contract's."""
    told = {type_of(one.message) for one in story()}
    assert SHIPPED_TYPES - told - ELSEWHERE.keys() == set(), "tests/histories/scenario.py lacks an event of these"
    for one in story():
        spec = CATALOG.topic_of(type_of(one.message))
        assert spec.admits(one.source), f"{one.source} may not write {spec.name}"


@pytest.mark.parametrize("release", RELEASES)
def test_a_golden_log_holds_its_release(release: str) -> None:
    """Goal: all that was released and nothing later. Method: types and fields against the release's own image."""
    log = read_log(release)
    check_contents(log)
    seen = {((one.header(TYPE_HEADER) or b"").decode(), one.topic) for one in log.records}
    wanted = released_types(release).keys() - ELSEWHERE.keys()
    assert seen == {(name, CATALOG.topic_of(name).name) for name in wanted}


@pytest.mark.parametrize("release", RELEASES)
def test_a_golden_log_proves(release: str) -> None:
    """Goal: what was signed then verifies now. Method: the walk of `esper verify`; every message decodes."""
    log = read_log(release)
    verdict = prove(log)
    assert verdict.ok, [one.document() for one in verdict.bad]
    assert verdict.records == len(log.records) > 0
    for record in log.records:
        assert decode_value((record.header(TYPE_HEADER) or b"").decode(), record.value or b"")


@pytest.mark.parametrize("release", RELEASES)
def test_a_golden_log_gives_its_tables(release: str) -> None:
    """Goal: old logs mean what they meant. Method: fold into every shipped projection, compare with what is recorded.

    Hashes belong to a version of a projection: one whose folder changed needs a line that was recorded anew.
    """
    recorded = json.loads(hashes_path(release).read_text())
    found = outcomes(release)
    versions = {name: outcome["version"] for name, outcome in found.items()}
    assert versions == {name: outcome["version"] for name, outcome in recorded.items()}, AGAIN
    for name, outcome in found.items():
        assert outcome == recorded[name], f"{release} gives other tables of {name} than it did"
    for name, word in (("runs", "applied"), ("field_reports", "applied")):
        assert found[name]["dispositions"][word] > 0
    assert all(outcome["dispositions"]["discarded"] == 0 for outcome in found.values())


def flipped(record: Record) -> Record:
    """Return a record whose value has one bit changed."""
    value = bytearray(record.value or b"")
    value[-1] ^= 1
    return replace(record, value=bytes(value))


@pytest.mark.parametrize("release", RELEASES)
def test_one_bit_shows(release: str, tmp_path: Path) -> None:
    """Goal: these tests can fail. Method: flip a bit of a decision; the proof names it, the tables differ."""
    log = read_log(release)
    index = next(number for number, one in enumerate(log.records) if one.topic == "decisions")
    records = (*log.records[:index], flipped(log.records[index]), *log.records[index + 1 :])
    verdict = prove(replace(log, records=records))
    assert not verdict.ok
    first = verdict.bad[0]
    assert (first.topic, first.offset, first.kind) == ("decisions", log.records[index].offset, "bad_signature")
    definitions = load_definitions(Settings(_env_file=None), CATALOG)  # type: ignore[call-arg]  # as above
    runs = [one for one in definitions if one.name == "runs"]
    found = replayed(records, runs, catalog=CATALOG, keyring=log.keyring, folder=tmp_path)["runs"]
    recorded = outcomes(release)["runs"]
    assert found["dispositions"]["discarded"] == 1
    assert found["tables"]["decisions"] != recorded["tables"]["decisions"]


def moves_on(event: Any) -> None:
    """What a second version of a report might need: a field that says where it came from."""
    event.notes = f"version 1: {event.notes}"


@pytest.mark.parametrize("release", RELEASES)
def test_a_released_event_can_move_on(release: str, tmp_path: Path) -> None:
    """Goal: the next version of a shipped event reads old logs. Method: a step for reports; decode, fold, compare."""
    name, log = "esper.leyline.v1.FieldReport", read_log(release)
    reports = [one for one in log.records if one.header(TYPE_HEADER) == name.encode()]
    before = outcomes(release)["field_reports"]
    add_chains({name: (moves_on,)})
    try:
        for record in reports:
            report: Any = decode_value(name, record.value or b"")
            assert (report.meta.schema_version, report.notes) == (2, "version 1: ")
        assert prove(log).ok
        settings = Settings(_env_file=None)  # type: ignore[call-arg]  # as above
        chosen = [one for one in load_definitions(settings, CATALOG) if one.name == "field_reports"]
        found = replayed(log.records, chosen, catalog=CATALOG, keyring=log.keyring, folder=tmp_path)["field_reports"]
    finally:
        remove_chains([name])
    assert reports
    assert found["version"] != before["version"], "a new version of an event is a new version of its projections"
    assert found["dispositions"] == before["dispositions"]
    assert outcomes(release)["field_reports"] == before
