"""docs/blueprints.md keeps its word: its table is the catalogue, and its own blueprint works as shown."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.karn.catalogue_page import PAGE, written


def block(language: str, number: int = 0) -> str:
    """Return a block of one language of the page."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)[number]


def test_table_is_the_catalogue() -> None:
    """Goal: the page cannot drift. Method: write it again, compare; `python -m tests.karn.catalogue_page` mends it."""
    assert written(PAGE.read_text()) == PAGE.read_text()


def install(folder: Path) -> dict[str, str]:
    """Install the page's package in a folder, as pip would; return the environment that finds it."""
    declared = tomllib.loads(block("toml"))["project"]["entry-points"]
    (folder / "acme_blueprints.py").write_text(block("python"))
    metadata = folder / "acme_blueprints-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-blueprints\nVersion: 1.0\n")
    points = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in names.items()) for group, names in declared.items()]
    (metadata / "entry_points.txt").write_text("\n".join(points))
    return os.environ | {"PYTHONPATH": str(folder), "ESPER_HOME": str(folder / "nowhere")}


def test_own_blueprint_in_twenty_lines(tmp_path: Path) -> None:
    """Goal: a user's blueprint takes about 20 lines and is one like the shipped ones. Method: install the page's
    package in a folder, show it by the command line, and train it for a step in every layout in a fresh process.
    """
    assert len([line for line in block("python").splitlines() if line.strip()]) <= 20
    environment = install(tmp_path)
    esper = [sys.executable, "-m", "esper.cli"]
    shown = subprocess.run(
        [*esper, "blueprints", "show", "acme.bottleneck", "--json"],
        env=environment, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    document = json.loads(shown.stdout)
    assert (document["tier"], document["parameters"]) == ("SAFE", {"share": [0.1, 1.0]})
    assert [cost["layout"] for cost in document["costs"]] == ["vector", "sequence", "map1d", "map2d"]
    assert "is not offered" not in shown.stderr
    script = (
        "import torch\n"
        "from esper.karn import KarnCatalog, STATED_SHAPES, catalogue\n"
        "own = KarnCatalog().allowed('acme.bottleneck', KarnCatalog().approvals())\n"
        "for layout in own.layouts:\n"
        "    x = torch.randn(2, *STATED_SHAPES[layout])\n"
        "    seed = own.build(layout=layout, shape=x.shape[1:], parameters={'share': 0.5},"
        " generator=torch.Generator().manual_seed(1))\n"
        "    assert torch.equal(seed(x), torch.zeros_like(x))\n"
        "    optimizer = torch.optim.SGD(seed.parameters(), lr=0.1)\n"
        "    (seed(x) - x).square().mean().backward()\n"
        "    optimizer.step()\n"
        "    assert seed(x).abs().sum() > 0\n"
        "print(len(catalogue()))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "51", done.stderr
