"""`esper events`: what people and scripts see of the log."""

from __future__ import annotations

import csv
import io
import json
import signal

import pytest

from esper.core.ids import new_run_id
from esper.leyline import EVENT_TYPES
from esper.leyline import messages as ly
from esper.oona import Fabric, OonaClient
from tests.conftest import RunningBroker
from tests.integration.driver import Esper, finish

FIELDS = ["topic", "partition", "offset", "key", "type", "event_id", "causation_id", "time", "payload"]


@pytest.fixture(scope="module")
def esper(broker: RunningBroker) -> Esper:
    """The command line at the session's broker."""
    return Esper(broker.home.root)


@pytest.fixture
def run(fabric: Fabric) -> tuple[str, list[str]]:
    """A run of two states, the first with its outcome; return its id and its events' ids."""
    run_id = new_run_id()
    with fabric.publisher("tolaria") as publisher:
        client = OonaClient(publisher)
        state = client.publish_state(ly.SystemStatePacket(training_run_id=run_id, current_epoch=1))
        outcome = client.publish_command_outcome(
            ly.CommandOutcome(run_id=run_id, epoch=1, result=ly.COMMAND_RESULT_NONE, reason='said "no", twice'),
            causation_id=state.event_id,
        )
        second = client.publish_state(
            ly.SystemStatePacket(training_run_id=run_id, current_epoch=2), causation_id=outcome.event_id
        )
    return run_id, [state.event_id, outcome.event_id, second.event_id]


def test_cat_narrows_by_every_option(esper: Esper, run: tuple[str, list[str]]) -> None:
    """Goal: --from --to --key --where --limit do what they say. Method: one call with each."""
    run_id, ids = run
    whole = esper("events", "cat", "system-state", "--key", run_id).lines
    assert [event["event_id"] for event in whole] == [ids[0], ids[2]]
    assert list(whole[0]) == FIELDS

    def cat(*words: str) -> list[str]:
        return [event["event_id"] for event in esper("events", "cat", "system-state", "--key", run_id, *words).lines]

    assert cat("--from", ids[2]) == [ids[2]]
    assert cat("--from", "1h", "--to", str(whole[1]["offset"])) == [ids[0]]
    assert cat("--where", "current_epoch=2", "--where", f"training_run_id={run_id}") == [ids[2]]
    assert cat("--limit", "1") == [ids[0]]
    assert cat("--to", "2020-01-01") == []


def test_csv_holds_what_jsonl_holds(esper: Esper, run: tuple[str, list[str]]) -> None:
    """Goal: one row an event, whatever its text. Method: read both forms of an event with quotes in its payload."""
    run_id, _ = run
    (line,) = esper("events", "cat", "runs", "--key", run_id).lines
    answer = esper("events", "cat", "runs", "--key", run_id, "--format", "csv")
    (row,) = csv.DictReader(io.StringIO(answer.stdout))
    assert list(row) == FIELDS
    assert {**row, "payload": json.loads(row["payload"])} == {
        name: value if name == "payload" else str(value) for name, value in line.items()
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("cat", "runs", "--where", "colour=red"), "there is no field 'colour'"),
        (("cat", "runs", "--where", "epoch=red"), "'red' is no value of field 'epoch'"),
        (("cat", "runs", "--from", "yesterday"), "'yesterday' names no point of the log"),
        (("cat", "nowhere"), "no topic called 'nowhere'"),
        (("tail", "runs", "--where", "colour"), "not of the form FIELD=VALUE"),
        (("find",), "nothing to look for"),
        (("find", "--type", "Nothing"), "there is no event type 'Nothing'"),
        (("explain", "f" * 32), "no event has the id"),
    ],
)
def test_slips_of_the_pen_are_named(esper: Esper, words: tuple[str, ...], said: str) -> None:
    """Goal: exit code 2 and the wrong word by name. Method: make each slip."""
    answer = esper("events", *words)
    assert answer.code == 2
    assert said in answer.stderr
    assert answer.stdout == ""


def test_tail_prints_at_once_and_ends_on_demand(esper: Esper, fabric: Fabric, run: tuple[str, list[str]]) -> None:
    """Goal: a line is out before the next event is there. Method: tail with a limit, publish when the first came."""
    run_id, ids = run
    process = esper.spawn("events", "tail", "system-state", "--key", run_id, "--from", ids[2], "--limit", "2")
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["event_id"] == ids[2]
    with fabric.publisher("tolaria") as publisher:
        receipt = OonaClient(publisher).publish_state(ly.SystemStatePacket(training_run_id=run_id, current_epoch=3))
    answer = finish(process, timeout=60)
    assert [event["event_id"] for event in answer.lines] == [receipt.event_id]
    endless = esper.spawn("events", "tail", "runs", "--key", run_id, "--from", "begin")
    assert endless.stdout is not None
    assert json.loads(endless.stdout.readline())["event_id"] == ids[1]
    endless.send_signal(signal.SIGINT)
    assert finish(endless, timeout=60).code == 130


def test_find_and_explain_need_no_topic(esper: Esper, run: tuple[str, list[str]]) -> None:
    """Goal: an id is enough. Method: find and explain an outcome, as JSON and as a tree."""
    run_id, ids = run
    assert [event["event_id"] for event in esper("events", "find", ids[1]).lines] == [ids[1]]
    assert len(esper("events", "find", "--key", run_id, "--topic", "system-state").lines) == 2
    nothing = esper("events", "find", "0" * 32)
    assert (nothing.code, nothing.stdout, nothing.stderr.splitlines()[-1]) == (0, "", "nothing found")
    document = esper("events", "explain", ids[1], "--json").json
    assert set(document) == {"event_id", "key", "caused_by", "chain", "leads_to", "missing"}
    assert [(link["role"], link["depth"]) for link in document["chain"]] == [("state", 0), ("outcome", 1)]
    assert set(document["chain"][0]) == {"role", "summary", "depth", "parent_id", *FIELDS}
    tree = esper("events", "explain", ids[1], "--key", run_id).stdout.splitlines()
    assert tree[0].startswith(f"key {run_id}")
    assert "state" in tree[1]
    assert f"[{ids[1]} runs-" in tree[2]
    assert tree[2].endswith("<- asked for")
    assert "then state" in tree[3]


def test_descriptors_are_written(esper: Esper, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Goal: the contract for other tools, without a broker or a key. Method: write it from a home that is not there."""
    out = tmp_path_factory.mktemp("descriptors") / "esper.binpb"
    nowhere = Esper(out.parent / "nowhere")
    document = nowhere("events", "descriptors", str(out), "--json").json
    assert set(document) == {"path", "sha256", "files", "messages"}
    assert document["messages"] == sorted(EVENT_TYPES)
    assert out.stat().st_size > 0
    assert document["sha256"] in esper("events", "descriptors", str(out)).stderr
