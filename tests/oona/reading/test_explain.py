"""What an event followed from and led to, told from any event of its step."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from esper.core.errors import UsageError
from esper.core.ids import derive_id, new_event_id, new_run_id
from esper.leyline import EventMessage, Record
from esper.leyline import messages as ly
from esper.oona import Explanation, Fabric, OonaClient, explain_event
from tests.oona.log import append, packet

KERNEL = "ab" * 32


@dataclass
class Run:
    """Two epochs of a run: a graft with all its events, then an epoch that no command answered."""

    run_id: str
    #: Part -> event_id, in the order of their publishing.
    ids: dict[str, str]


@pytest.fixture
def run(secluded: Fabric) -> Run:
    """Publish two steps of a fresh run, by the sources that write them, causation ids as the subsystems set them."""
    run_id = new_run_id()
    ids: dict[str, str] = {}
    clients = {name: OonaClient.open(secluded, name) for name in ("cli", "tolaria", "tamiyo", "kasmina", "tezzeret")}

    def say(part: str, source: str, message: EventMessage, cause: str = "") -> None:
        causation = ids.get(cause, cause)
        clients[source].publish(message, causation_id=causation, event_id=derive_id(run_id, part))
        ids[part] = message.meta.event_id

    order = ly.AdaptationCommand(
        training_run_id=run_id,
        command_type=ly.COMMAND_SEED,
        seed_operation=ly.CommandSeedOperation(operation=ly.SEED_OP_GERMINATE, blueprint_id="BP009", slot="body.0"),
        decision_id=derive_id(run_id, "decision"),
        issued_by="tamiyo",
    )
    say("request", "cli", ly.TrainingRunRequested(run_id=run_id, task="mnist1d", host="mlp", policy="heuristic"))
    say("claim", "tolaria", ly.TrainingRunClaimed(run_id=run_id, attempt=1, worker="tolaria-0"), "request")
    fault = ly.SeedStageChanged(run_id=run_id, epoch=1, seed_id="body.0.0", reason="fault:non_finite")
    say("fault", "kasmina", fault)
    say("state", "tolaria", packet(run_id, 1), "request")
    say("decision", "tamiyo", ly.DecisionMade(run_id=run_id, policy="heuristic", proposed=order), "state")
    say("command", "tamiyo", order, "state")
    gate = ly.GateEvaluated(
        run_id=run_id,
        epoch=1,
        seed_id="body.0.1",
        gate=ly.SEED_GATE_G0_SANITY,
        passed=True,
        checks=[ly.GateCheck(name="parameters", value=80, bound=100, comparison="<=", passed=True)],
    )
    say("gate", "kasmina", gate, "command")
    move = ly.SeedStageChanged(
        run_id=run_id,
        epoch=1,
        seed_id="body.0.1",
        from_stage=ly.SEED_STAGE_DORMANT,
        to_stage=ly.SEED_STAGE_GERMINATED,
    )
    say("move", "kasmina", move, "command")
    kernel = ly.KernelCatalogUpdate(kernel_id=new_event_id(), artifact_ref=run_id + KERNEL, blueprint_id="BP009")
    say("kernel", "tezzeret", kernel)
    outcome = ly.CommandOutcome(run_id=run_id, epoch=1, result=ly.COMMAND_RESULT_APPLIED, kernel_digest=run_id + KERNEL)
    say("outcome", "tolaria", outcome, "command")
    say("state 2", "tolaria", packet(run_id, 2), "outcome")
    say("outcome 2", "tolaria", ly.CommandOutcome(run_id=run_id, epoch=2, reason="timeout"), "state 2")
    report = ly.FieldReport(
        training_run_id=run_id, outcome=ly.FIELD_REPORT_OUTCOME_SUCCESS, reward_parts={"validation_gain": 0.25}
    )
    say("report", "tamiyo", report, "decision")
    return Run(run_id, ids)


STEP = ["state", "fault", "decision", "command", "gate", "move", "outcome", "kernel", "report"]


def told(explanation: Explanation, run: Run) -> list[str]:
    """Name the parts of a chain in telling order."""
    names = {event_id: part for part, event_id in run.ids.items()}
    return [names[link.event["event_id"]] for link in explanation.chain]


@pytest.mark.parametrize("part", [part for part in STEP if part != "kernel"])
@pytest.mark.parametrize("keyed", [True, False], ids=["by key", "by id alone"])
def test_each_event_of_a_step_tells_the_whole_step(secluded: Fabric, run: Run, part: str, keyed: bool) -> None:
    """State, decision, command, gates, outcome and report: ask for each, with and without the run, compare all."""
    found = explain_event(secluded, run.ids[part], key=run.run_id if keyed else None)
    chain = [name for name in told(found, run) if name != "fault"]
    assert chain == [name for name in STEP if name != "fault"]
    assert set(told(found, run)) == set(STEP)
    assert (found.event_id, found.key, found.missing) == (run.ids[part], run.run_id, ())
    assert found.caused_by is not None
    assert found.caused_by.event["event_id"] == run.ids["request"]
    assert [link.event["event_id"] for link in found.leads_to] == [run.ids["state 2"]]


def test_the_tree_follows_causation_and_the_lines_say_what_happened(secluded: Fabric, run: Run) -> None:
    """Parents, roles and summaries: explain the outcome, look at each event's place and words."""
    found = explain_event(secluded, run.ids["outcome"], key=run.run_id)
    by_part = dict(zip(told(found, run), found.chain, strict=True))
    above = {part: link.parent_id for part, link in by_part.items()}
    ids = run.ids
    assert above == {
        "state": "",
        "fault": ids["state"],
        "decision": ids["state"],
        "command": ids["decision"],
        "gate": ids["command"],
        "move": ids["command"],
        "outcome": ids["command"],
        "kernel": ids["outcome"],
        "report": ids["decision"],
    }
    assert [link.depth for link in found.chain if link.role != "move"] == [0, 1, 2, 3, 3, 4, 2]
    assert by_part["decision"].summary == "policy heuristic: SEED GERMINATE BP009 in body.0"
    assert by_part["command"].summary == "SEED GERMINATE BP009 in body.0 by tamiyo"
    assert by_part["gate"].summary == "G0_SANITY of body.0.1 passed: parameters 80 <= 100"
    assert by_part["move"].summary == "body.0.1 DORMANT -> GERMINATED"
    assert by_part["outcome"].summary == "epoch 1: applied"
    assert by_part["report"].summary == "success: validation_gain 0.25"
    document = found.document()
    assert [link["role"] for link in document["chain"]] == [link.role for link in found.chain]
    assert document["chain"][0]["payload"]["current_epoch"] == 1


def test_a_step_without_a_command_and_the_beginning_of_a_run(secluded: Fabric, run: Run) -> None:
    """A step is what it is: an epoch that nobody answered, and a request with its claim."""
    lonely = explain_event(secluded, run.ids["outcome 2"])
    assert told(lonely, run) == ["state 2", "outcome 2"]
    assert lonely.caused_by is not None
    assert lonely.caused_by.event["event_id"] == run.ids["outcome"]
    begin = explain_event(secluded, run.ids["claim"])
    assert told(begin, run) == ["request", "claim"]
    assert begin.caused_by is None
    assert [link.event["event_id"] for link in begin.leads_to] == [run.ids["state"]]


def test_causes_are_followed_across_keys(secluded: Fabric, run: Run) -> None:
    """A cause may stand under another key: a kernel's events follow a request, and that an event of the run."""
    kernel_id = new_event_id()
    with secluded.publisher("urza") as urza, secluded.publisher("tezzeret") as forge:
        asked = OonaClient(urza).publish_compile_requested(
            ly.CompileRequested(kernel_id=kernel_id), causation_id=run.ids["command"]
        )
        done = OonaClient(forge).publish_compile_finished(
            ly.CompileFinished(kernel_id=kernel_id), causation_id=asked.event_id
        )
    found = explain_event(secluded, done.event_id)
    chain = [link.event["event_id"] for link in found.chain]
    assert chain[0] == run.ids["state"]
    assert set(chain) == {run.ids[part] for part in STEP} | {asked.event_id, done.event_id}
    assert chain.index(asked.event_id) + 1 == chain.index(done.event_id)
    from_below = explain_event(secluded, asked.event_id, key=kernel_id)
    assert [link.event["event_id"] for link in from_below.chain] == chain


def test_what_is_not_there_is_said(secluded: Fabric, run: Run) -> None:
    """Forged causes and unknown ids are not made up: ask for an id in forged bytes, and for an orphan."""
    ghost = new_event_id()
    append(secluded, [Record("decisions", secluded.partition_of("decisions", run.run_id), -1, b"x", ghost.encode())])
    with pytest.raises(UsageError, match=f"no event has the id '{ghost}'"):
        explain_event(secluded, ghost)
    here = secluded.partition_of("system-state", run.run_id)
    elsewhere = next(key for key in iter(new_run_id, None) if secluded.partition_of("system-state", key) != here)
    with pytest.raises(UsageError, match="no event has the id"):
        explain_event(secluded, run.ids["state"], key=elsewhere)
    with secluded.publisher("tamiyo") as publisher:
        orphan = OonaClient(publisher).publish_field_report(
            ly.FieldReport(training_run_id=run.run_id), causation_id=ghost
        )
    found = explain_event(secluded, orphan.event_id)
    assert found.missing == (ghost,)
    assert [link.event["event_id"] for link in found.chain] == [orphan.event_id]


def test_a_loop_of_causes_ends(secluded: Fabric) -> None:
    """Causation ids come from the log and may be nonsense: two reports that name each other are told once each."""
    run_id, one, other = new_run_id(), new_event_id(), new_event_id()
    with secluded.publisher("tamiyo") as publisher:
        client = OonaClient(publisher)
        for own, cause in ((one, other), (other, one)):
            client.publish_field_report(ly.FieldReport(training_run_id=run_id), causation_id=cause, event_id=own)
    found = explain_event(secluded, one, key=run_id)
    assert sorted(link.event["event_id"] for link in found.chain) == sorted([one, other])
