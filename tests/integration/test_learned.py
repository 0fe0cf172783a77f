"""A learned version through the command line: asked for before there is one, promoted, trained, forked, collected."""

from __future__ import annotations

import json

from esper.core.settings import load_settings
from esper.leyline import messages as ly
from esper.oona import Fabric
from tests.integration.driver import Esper
from tests.tamiyo.policy_log import PolicyLog

TRAIN = ["train", "--task", "mnist1d", "--host", "mlp", "--epochs", "3", "--seed", "1", "--json"]
COLLECT = ["collect", "--task", "mnist1d", "--runs", "2", "--stack", "2", "--epochs", "2", "--seed", "1", "--json"]


def test_a_learned_version_decides_wherever_a_policy_is_named(esper: Esper) -> None:
    """Goal: one name everywhere. Method: the version that comes with the package decides; give it up and ask where
    none is; promote one, train, fork, collect, give it up."""
    (shipped,) = esper("policy", "list", "--json").json
    assert shipped["status"] == "active"
    first = esper(*COLLECT, "--policy", "learned", timeout=300)
    assert first.code == 0, first.stderr
    assert esper("policy", "rollback", "--reason", "to see what is without one", "--json").json["restored"] is None
    for command in (TRAIN, COLLECT):
        early = esper(*command, "--policy", "learned", timeout=120)
        assert (early.code, "esper policy promote" in early.stderr) == (3, True), early.stderr
        unknown = esper(*command, "--policy", "learned@7", timeout=120)
        assert (unknown.code, "there is no learned version '7'" in unknown.stderr) == (2, True), unknown.stderr
    with Fabric.open(load_settings(_env_file=None, home=esper.home), member="test") as fabric:
        log = PolicyLog(fabric)
        log.promote(log.make(seed=1, version="7"))
        trained = esper(*TRAIN, "--policy", "learned", timeout=300)
        assert trained.code == 0, trained.stderr
        run_id = json.loads(trained.stdout)["run_id"]
        fork = esper("runs", "fork", run_id, "--at", "1", "--policy", "learned@7", "--json", timeout=300)
        assert fork.code == 0, fork.stderr
        collected = esper(*COLLECT, "--policy", "learned", "--policy-parameter", "explore=0.2", timeout=300)
        assert collected.code == 0, collected.stderr
        runs = {run_id, json.loads(fork.stdout)["run_id"], *json.loads(collected.stdout)["runs"]}
        with fabric.reader(dict.fromkeys(fabric.topics.partitions("decisions"), "begin")) as reader:
            made = [event.message for event in reader.read_to_end()]
        early_runs = set(json.loads(first.stdout)["runs"])
        log.clear()
        gone = esper(*TRAIN, "--policy", "learned", timeout=120)
        assert gone.code == 3, gone.stderr
    decided = {(one.run_id, one.policy_version) for one in made if isinstance(one, ly.DecisionMade)}
    assert decided == {(run, "7") for run in runs} | {(run, shipped["version"]) for run in early_runs}
