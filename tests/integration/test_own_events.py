"""docs/contracts.md is true: a user's contract, topic and projection, from the first block to the last."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.integration.driver import REPOSITORY, Esper

MARK = "=== block"


def script_of(page: str) -> str:
    """Return a page's sh and python blocks as one script that says where each block begins."""
    text = (REPOSITORY / "docs" / page).read_text()
    parts = ["set -euo pipefail"]
    for number, (language, code) in enumerate(
        re.findall(r"^```(sh|python)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    ):
        parts.append(f"echo '{MARK} {number}'")
        parts.append(code if language == "sh" else f"python - <<'PYTHON_BLOCK'\n{code}PYTHON_BLOCK")
    return "\n".join(parts)


def test_own_events_from_contract_to_proof(esper: Esper, tmp_path: Path) -> None:
    """Goal: the page keeps its word. Method: run every block in order on a real broker, read what each printed."""
    folder = tmp_path / "shop"
    folder.mkdir()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"ESPER_HOME": str(esper.home), "PATH": path, "COLUMNS": "400", "NO_COLOR": "1"}
    shown = subprocess.run(
        ["bash", "-c", script_of("contracts.md")],
        env=environment, cwd=folder, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stdout[-4000:] + shown.stderr
    blocks = shown.stdout.split(MARK)[1:]
    assert len(blocks) == 8
    listed, published, queried, evolved, again = (blocks[number] for number in (2, 3, 4, 5, 7))
    assert re.search(r"ReviewPosted +│ acme.v1.ReviewPosted +│ acme-reviews +│ 1 ", listed)
    assert re.search(r"acme-reviews +│ create", listed)
    assert "appended acme-reviews" in published
    assert "handled [('chair', 4), ('chair', 5), ('table', 2)]" in published
    assert '"payload": {"product_id": "chair", "stars": 5}' in queried
    assert re.search(r"chair +│ 4.5 +│ 2", queried)
    assert re.search(r"table +│ 2 +│ 1", queried)
    assert re.search(r"ReviewPosted +│ acme.v1.ReviewPosted +│ acme-reviews +│ 2 ", evolved)
    assert re.search(r"chair +│ 90 +│ 2", again)
    assert re.search(r"table +│ 50 +│ 2", again)
    assert '"payload": {"product_id": "chair", "points": 100}' in again

    own = {
        "ESPER_CONTRACTS": f"{folder / 'acme.binpb'},acme_history",
        "ESPER_EXTRA_TOPICS_DIRS": str(folder / "topics"),
        "ESPER_EXTRA_PROJECTIONS_DIRS": str(folder / "projections"),
        "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
    }
    esper.environment |= own
    (row,) = [one for one in esper("contracts", "list", "--json").json if one["own"]]
    assert row == {
        "name": "ReviewPosted", "type": "acme.v1.ReviewPosted", "topic": "acme-reviews", "version": 2, "own": True
    }  # fmt: skip
    assert (
        "acme.v1.ReviewPosted" in esper("events", "descriptors", str(tmp_path / "all.binpb"), "--json").json["messages"]
    )
    verdict = esper("verify", "--json").json
    assert verdict["ok"]
    assert verdict["records"] >= 4
    equal = esper("projections", "verify", "reviews", "--json").json
    assert equal["equal"], equal

    esper.environment["ESPER_CONTRACTS"] = "acme_history"
    refused = esper("topics", "plan")
    assert refused.code == 2
    assert "setting ESPER_CONTRACTS" in refused.stderr
