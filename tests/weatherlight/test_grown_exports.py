"""Networks leave without Esper whatever stands on them: folded seeds, fossils, seeds that blend in any mode."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from esper.core.errors import UsageError
from esper.kasmina.grafting._blend import BLEND_MODES
from esper.kasmina.testing import InMemoryRuntime
from esper.leyline import messages as ly
from esper.weatherlight._export import TOLERANCE, check_target, export_network
from tests.kasmina.support import FACTORIES, PROBE, Loop, outputs, seeded
from tests.kasmina.test_folding import CONFIG, host, low_rank

RUNTIME = InMemoryRuntime({**FACTORIES, "LOW_RANK": low_rank})


def grown(blueprint: str, stage: ly.SeedLifecycleStage) -> Loop:
    """Return a loop with a seed beside a linear layer, in a stage."""
    loop = Loop(seeded(host), ["2"], config=CONFIG, runtime=RUNTIME)
    loop.grow("2", stage, blueprint)
    return loop


def loaded(path: Path) -> nn.Module:
    """Return the network of a written module, which knows nothing of Esper."""
    spec = importlib.util.spec_from_file_location("written", path.with_suffix(".py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network: nn.Module = module.load()
    return network.eval()


def check(model: nn.Module, folder: Path) -> list[str]:
    """Export the model in a readable way; its outputs are the written network's. Return the names of its weights."""
    path = folder / "net.safetensors"
    assert export_network(model, PROBE[0][0], path, "safetensors").difference <= TOLERANCE
    with torch.no_grad():
        torch.testing.assert_close(loaded(path)(PROBE[0][0]), outputs(model), rtol=TOLERANCE, atol=TOLERANCE)
    return [name for name, _ in loaded(path).named_parameters()]


@pytest.mark.parametrize(("blueprint", "folded"), [("LOW_RANK", True), ("BYPASS", False)])
def test_a_fossil_is_exported_folded_or_not(blueprint: str, folded: bool, tmp_path: Path) -> None:
    """Goal: a folded network has the host's own parameters and no others. Method: export, load, compare outputs."""
    loop = grown(blueprint, ly.SEED_STAGE_FOSSILIZED)
    assert loop.outcomes[-1].choices == {"folded": float(folded)}
    names = check(loop.model, tmp_path)
    assert any("esper" in name for name in names) is not folded


@pytest.mark.parametrize("mode", sorted(BLEND_MODES), ids=ly.BlendMode.Name)
def test_a_seed_that_blends_is_exported_as_it_is_heard(mode: ly.BlendMode, tmp_path: Path) -> None:
    """Goal: every blend mode is plain torch. Method: the same, half-way up."""
    loop = grown("BYPASS", ly.SEED_STAGE_BLENDING)
    seed = loop.manager._bed.live["2.1"].seed
    seed.mode = mode
    assert seed.blender is not None
    for _ in range(5):
        seed.blender.advance_alpha()
    assert 0.0 < seed.alpha < 1.0
    check(loop.model, tmp_path)


def test_a_module_of_ones_own_is_never_overwritten(tmp_path: Path) -> None:
    """Goal: an export destroys no program. Method: export beside a file of that name, a link to one, and a folder."""
    model, (mine, linked, folder) = host(), (tmp_path / name for name in ("rn.py", "ln.py", "dir.py"))
    mine.write_text("import esper\n")
    linked.symlink_to(tmp_path / "nowhere.py")
    folder.mkdir()
    for module in (mine, linked, folder):
        with pytest.raises(UsageError, match=module.name) as caught:
            export_network(model, PROBE[0][0], module.with_suffix(".safetensors"), "safetensors")
        assert "another name" in str(caught.value)
        assert not module.with_suffix(".safetensors").exists()
    assert mine.read_text() == "import esper\n"
    check_target(mine.with_suffix(".pt2"), "pt2")


def test_an_earlier_export_is_overwritten(tmp_path: Path) -> None:
    """Goal: who exports at every epoch needs one name. Method: export two networks to it."""
    for model in (host(), grown("BYPASS", ly.SEED_STAGE_FOSSILIZED).model):
        check(model, tmp_path)
