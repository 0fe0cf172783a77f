"""The chain of a real run is whole, whichever of its events is asked."""

from __future__ import annotations

from tests.integration.driver import Esper


def test_every_event_of_a_graft_explains_the_whole_step(serving: Esper) -> None:
    """Goal: explain never loses a link. Method: grow a run, explain each event of its first graft, compare."""
    words = ["--task", "mnist1d", "--host", "mlp", "--policy", "heuristic", "--epochs", "10", "--seed", "3"]
    run_id = serving("train", *words, "--json").json["run_id"]
    germination = ("--type", "CommandOutcome", "--where", "seed_operation=SEED_OP_GERMINATE")
    (outcome,) = serving(
        "events", "find", "--key", run_id, *germination, "--where", "result=COMMAND_RESULT_APPLIED", "--limit", "1"
    ).lines
    epoch = outcome["payload"]["epoch"]
    first = serving("events", "explain", outcome["event_id"], "--key", run_id, "--json").json
    roles = [link["role"] for link in first["chain"]]
    assert roles[:3] == ["state", "decision", "command"]
    assert {"gate", "move"} <= set(roles[3 : roles.index("outcome")])
    assert roles[roles.index("outcome") + 1 :] == ["kernel", "report"]
    assert first["missing"] == []
    assert len(first["leads_to"]) == 1
    by_role = {link["role"]: link for link in first["chain"]}
    assert by_role["kernel"]["payload"]["artifact_ref"] == outcome["payload"]["kernel_digest"]
    assert by_role["state"]["payload"]["current_epoch"] == epoch
    for role in ("state", "decision", "command", "gate", "move", "report"):
        same = serving("events", "explain", by_role[role]["event_id"], "--key", run_id, "--json").json
        assert same["chain"] == first["chain"], role
    by_id_alone = serving("events", "explain", by_role["gate"]["event_id"], "--json").json
    assert by_id_alone["chain"] == first["chain"]
