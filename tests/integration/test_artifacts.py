"""`esper artifacts` on a real home: list, verify and gc of kernels that a real forge made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from esper.core.clock import SYSTEM_CLOCK
from esper.core.kernel import DirectoryBlobStore
from tests.integration.driver import Esper

_INTEGRITY = 4


def _blob(esper: Esper, digest: str) -> Path:
    return esper.home / "blobs" / digest[:2] / digest


def _verdict(esper: Esper) -> tuple[int, dict[str, Any]]:
    import json

    answer = esper("artifacts", "verify", "--json")
    return answer.code, json.loads(answer.stdout)


def test_stored_kernels_are_listed_verified_and_kept(esper: Esper) -> None:
    """Goal: the commands agree with the log. Method: train, then damage, remove, and collect beside real kernels."""
    assert esper("artifacts", "list", "--json").json == []
    words = ["--task", "digits", "--host", "mlp", "--policy", "heuristic", "--epochs", "8", "--seed", "3"]
    esper("train", *words, "--json", timeout=600).json  # noqa: B018 - fails where the run did
    rows = esper("artifacts", "list", "--json").json
    assert rows
    assert {row["state"] for row in rows} == {"stored"}
    code, verdict = _verdict(esper)
    assert (code, verdict["ok"], verdict["bad"]) == (0, True, [])
    assert verdict["artifacts"] == len(rows)
    assert verdict["blobs"] >= 3

    reference = rows[0]["artifact_ref"]
    path, honest = _blob(esper, reference), _blob(esper, reference).read_bytes()
    path.write_bytes(honest[:-1] + b" ")
    code, verdict = _verdict(esper)
    assert code == _INTEGRITY
    assert [(fault["part"], fault["digest"]) for fault in verdict["bad"]] == [("manifest", reference)]
    path.unlink()
    assert _verdict(esper)[0] == _INTEGRITY
    told = esper("events", "cat", "kernel-store").lines
    assert [(event["type"], event["payload"]["artifact_ref"]) for event in told] == [
        ("esper.leyline.v1.KernelIntegrityFailed", reference)
    ] * 2
    path.write_bytes(honest)
    assert _verdict(esper)[0] == 0

    foreign = _blob(esper, "0" * 64)
    foreign.mkdir(parents=True)
    code, verdict = _verdict(esper)
    assert (code, [(fault["part"], fault["digest"]) for fault in verdict["bad"]]) == (4, [("foreign", "0" * 64)])

    store = DirectoryBlobStore(esper.home / "blobs")
    junk = store.put(b"what a crash left before its event")
    hours_ago = SYSTEM_CLOCK.now_ns() - 7_200_000_000_000
    young = store.put(b"what is about to be named")
    for blob in store.blobs():
        if blob.digest != young:
            os.utime(_blob(esper, blob.digest), ns=(hours_ago, hours_ago))
    os.utime(foreign, ns=(hours_ago, hours_ago))
    plan = esper("artifacts", "gc", "--json").json
    assert plan["foreign"] == [str(foreign)]
    assert (plan["removed"], [one["digest"] for one in plan["garbage"]]) == (False, [junk])
    assert store.has(junk)
    done = esper("artifacts", "gc", "--yes", "--json").json
    assert (done["removed"], done["freed_bytes"]) == (True, 34)
    assert (store.has(junk), store.has(young)) == (False, True)
    assert foreign.is_dir()
    foreign.rmdir()
    assert _verdict(esper)[0] == 0
    old = esper("artifacts", "gc", "--expired-days", "0", "--json").json
    grafted = {row["kernel_id"] for row in rows} - set(old["kernels"])
    sql = "select kernel_id, status, reason from urza_catalog where status <> 'ready'"
    assert esper("sql", sql, "--fresh", "--json").json == [
        {"kernel_id": rows[0]["kernel_id"], "status": "damaged", "reason": f"manifest: {told[-1]['payload']['reason']}"}
    ]
    sql = "select distinct k.kernel_id from epochs e join urza_catalog k on k.artifact_ref = e.kernel_digest"
    assert grafted == {row["kernel_id"] for row in esper("sql", sql, "--json").json}
