"""The demo, and the proof that projections are derived, at a home of their own."""

from __future__ import annotations

from pathlib import Path

from tests.integration.driver import Esper


def test_the_demo_leaves_a_log_from_which_everything_is_rebuilt(tmp_path: Path) -> None:
    """Goal: one command shows it all, and projections that are deleted come back equal.

    Method: a short demo; then delete the files by hand, `esper replay`, `esper projections verify`.
    """
    esper = Esper(tmp_path / "a home")
    document = esper("demo", "--epochs", "6", "--json").json
    assert document["rebuild"]["equal"] is True
    assert document["static"]["parameters"] < 1000
    assert document["events"]["system-state"] == 12
    assert document["control_loop_ms"]["epochs"] == 12
    assert esper("status", "--json").json == {"bootstrap": None, "members": [], "nissa_url": None}
    try:
        assert esper("up").code == 0
        shown = esper("runs", "show", document["grown"]["run_id"], "--json").json
        files = list((esper.home / "projections").glob("*.duckdb"))
        assert len(files) == document["rebuild"]["deleted"]
        for file in files:
            file.unlink()
        assert esper("sql", "select 1").code == 3
        rebuilt = esper("replay", "--json").json
        assert sum(row["records"] for row in rebuilt) == document["rebuild"]["records"]
        verdict = esper("projections", "verify", "--json").json
        assert verdict["equal"] is True
        assert {p["name"] for p in verdict["projections"]} == {
            "dead_letters", "field_reports", "policies", "runs", "telemetry", "urza_catalog",
        }  # fmt: skip
        assert esper("runs", "show", document["grown"]["run_id"], "--json").json == shown
    finally:
        assert esper("down").code == 0
