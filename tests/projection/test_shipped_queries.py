"""docs/queries.md answers what it says: every query of the page, with the rows that the recorded log must give."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition

from esper.leyline import EventMessage
from esper.projection import replay, verify
from esper.projection.sql._reading import run_query
from tests.conftest import RunningBroker
from tests.projection.answers import ANSWERS, TIMED, Row
from tests.projection.conftest import OpenWorkbench, Workbench
from tests.projection.narrator import InMemory, Published
from tests.projection.story import whole
from tests.projection.system import System, own_system

PAGE = Path(__file__).parents[2] / "docs" / "queries.md"
_QUESTION = re.compile(r"^### (?P<question>.+?)\n(?P<words>.*?)^```sql\n(?P<sql>.*?)^```$", re.MULTILINE | re.DOTALL)


def questions() -> dict[str, str]:
    """Return the page's questions with their SQL, in order."""
    return {match["question"]: match["sql"] for match in _QUESTION.finditer(PAGE.read_text(encoding="utf-8"))}


class Twice(InMemory):
    """Tells everything twice, as a producer does that did not hear the broker."""

    def tell(
        self, message: EventMessage, key: str, *, event_id: str | None = None, cause: str = "", after_ms: int = 0
    ) -> None:
        """Append an event, and the very same record again."""
        super().tell(message, key, event_id=event_id, cause=cause, after_ms=after_ms)
        self.log.append_raw(self.log.source.records[-1])


def told(teller: InMemory, open_workbench: OpenWorkbench) -> Workbench:
    """Return the projections of the whole story."""
    whole(teller)
    bench = open_workbench(teller.log)
    bench.fold()
    assert bench.letters.judged == []
    return bench


def ask(bench: Workbench, sql: str) -> list[Row]:
    """Return the rows that the guarded way to query gives."""
    table = run_query(bench.database, sql, (), seconds=30)
    return [tuple(row.values()) for row in table.to_pylist()]


def comparable(rows: Sequence[Row]) -> list[list[object]]:
    """Return rows in which floats compare as people write them."""
    return [[pytest.approx(value) if isinstance(value, float) else value for value in row] for row in rows]


@pytest.mark.parametrize("teller", [InMemory, Twice])
def test_every_question_is_answered_as_expected(open_workbench: OpenWorkbench, teller: type[InMemory]) -> None:
    """Goal: a reader gets what the page promises. Method: run each query on the story, told once and twice."""
    bench = told(teller(), open_workbench)
    assert questions().keys() == ANSWERS.keys()
    for question, sql in questions().items():
        assert comparable(ask(bench, sql)) == comparable(ANSWERS[question]), question


def test_every_question_can_be_asked_of_an_empty_log(open_workbench: OpenWorkbench) -> None:
    """Goal: a new home answers, too. Method: run each query, and read each view, where nothing has happened yet."""
    bench = open_workbench(InMemory().log)
    bench.fold()
    for question, sql in questions().items():
        assert ask(bench, sql) == [], question
    for definition in bench.definitions:
        for view in definition.view_names:
            assert ask(bench, f"from {view}") == [], view


def test_every_view_is_asked_on_the_page(open_workbench: OpenWorkbench) -> None:
    """Goal: no view is a secret. Method: look for each after the FROM or JOIN of a query."""
    bench = open_workbench(InMemory().log)
    views = {view for definition in bench.definitions for view in definition.view_names}
    asked = {name for sql in questions().values() for name in re.findall(r"\b(?:from|join) \(?(?:from )?(\w+)", sql)}
    assert views - asked == set()


def test_published_events_give_the_same_answers(broker: RunningBroker, tmp_path: Path) -> None:
    """Goal: what is true in memory is true of a log. Method: publish the story, build all projections, ask, verify.

    The topic of dead letters is shared by all systems of the broker; times are the broker's.
    """
    projections = ("field_reports", "policies", "runs", "telemetry", "urza_catalog")
    with own_system(broker, tmp_path, projections=projections) as system:
        whole(Published(system), with_letters=False)
        rows = replay(system.fabric)
        assert {row["name"] for row in rows} == set(projections)
        asked = 0
        for question, sql in questions().items():
            if question in TIMED or re.search(r"letter|parked_keys", sql):
                continue
            answer = [tuple(row.values()) for row in system.query(sql)]
            assert comparable(answer) == comparable(ANSWERS[question]), question
            asked += 1
        assert asked >= len(ANSWERS) - len(TIMED) - 5
        assert verify(system.fabric)["equal"]
        _telemetry_without_its_beginning(system)


def _telemetry_without_its_beginning(system: System) -> None:
    """Telemetry expires: delete the first half of the epochs' packets, build again, and count what is left."""
    place = TopicPartition(system.topic("telemetry"), 0, 5)
    for future in system.fabric.cluster.admin.delete_records([place]).values():
        future.result(30)
    replay(system.fabric, ["telemetry"])
    sql = "select samples, least from metric_quantiles where name = 'tolaria.training.latency_ms'"
    assert system.query(sql) == [{"samples": 5, "least": 600.0}]
