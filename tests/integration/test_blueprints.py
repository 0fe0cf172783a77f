"""Kernels ahead of time, by one command on a fresh home: every SAFE blueprint, and a package's own."""

from __future__ import annotations

from pathlib import Path

from esper.karn import catalogue
from tests.integration.driver import Esper
from tests.karn.test_page import install

#: What the command promises on two cores.
SECONDS_MAX = 180.0


def test_all_safe_blueprints_are_compiled(esper: Esper, tmp_path: Path) -> None:
    """Goal: `compile --all-safe` ends with every SAFE blueprint in the catalogue, in three minutes, what is withdrawn
    left out, an installed package's own among them. Method: a fresh broker and no members, for whom nobody
    waits longer than was said; compare the answer with the
    catalogue and with SQL, ask for the same again, and read what `show` then knows of latencies.
    """
    nobody = esper("blueprints", "compile", "BP009", "--no-members", "--seconds", "2")
    assert nobody.code == 3
    assert "within 2 s" in nobody.stderr
    package = tmp_path / "package"
    package.mkdir()
    esper.environment["PYTHONPATH"] = install(package)["PYTHONPATH"]
    esper("blueprints", "withdraw", "BP009", "--reason", "a test")
    answer = esper("blueprints", "compile", "--all-safe", "--seconds", str(SECONDS_MAX), "--json")
    rows = answer.json
    safe = {blueprint_id for blueprint_id, blueprint in catalogue().items() if blueprint.tier == "SAFE"}
    assert {row["blueprint_id"] for row in rows} == safe - {"BP009"} | {"acme.bottleneck"}
    assert {row["status"] for row in rows} == {"finished"}
    assert len({row["artifact_ref"] for row in rows}) == len(rows)
    assert "BP009 is left out, withdrawn" in answer.stderr
    query = "select blueprint_id, artifact_ref from urza_catalog order by blueprint_id"
    stored = {(row["blueprint_id"], row["artifact_ref"]) for row in esper("sql", query, "--json").json}
    assert stored == {(row["blueprint_id"], row["artifact_ref"]) for row in rows}
    again = esper("blueprints", "compile", "BP014", "acme.bottleneck", "--json").json
    known = {row["blueprint_id"]: row["artifact_ref"] for row in rows}
    assert [row["artifact_ref"] for row in again] == [known["BP014"], known["acme.bottleneck"]]
    latencies = esper("blueprints", "show", "acme.bottleneck", "--json").json["latencies"]
    assert latencies
    assert all(0.0 < one["p50_ms"] <= one["p95_ms"] and one["samples"] >= 2 for one in latencies)
