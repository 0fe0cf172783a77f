"""Whoever grows a network with a policy that has nothing for its slots is told so."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from esper.cli._train import telling_of_unfit
from esper.kasmina import SlotSpec, discover_slots
from esper.leyline import messages as ly
from esper.weatherlight import TrainingRequest, unfit
from esper.weatherlight._grow._fitting import warn_of_unfit


def slots_of(model: nn.Module, *shape: int) -> list[SlotSpec]:
    """Return the model's slots for inputs of `shape`."""
    return discover_slots(model, torch.zeros(2, *shape), "auto")


CONVOLUTIONS = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Flatten(), nn.Linear(48, 2))
LAYERS = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


def test_a_policy_without_anything_for_the_slots_is_warned_of() -> None:
    """Goal: no run ends as it began without a word. Method: the default policy before a convolution."""
    slots = slots_of(CONVOLUTIONS, 3, 4, 4)
    with pytest.warns(UserWarning, match=r"'heuristic' .* 'vector', .* 'map2d'; policy=\"fixed\""):
        warn_of_unfit("heuristic", slots, leads=True)


def test_nobody_is_warned_for_nothing() -> None:
    """Goal: the warning means something. Method: slots that fit, policies for any slot or none, another rank."""
    maps = slots_of(CONVOLUTIONS, 3, 4, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_unfit("heuristic", slots_of(LAYERS, 4), leads=True)
        warn_of_unfit("fixed", maps, leads=True)
        warn_of_unfit("noop", maps, leads=True)
        warn_of_unfit("heuristic", maps, leads=False)
    assert unfit("heuristic", {}, []) == ""
    assert unfit("heuristic", {}, ["map2d", "vector"]) == ""


def test_train_says_it_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Goal: `esper train` tells what its worker knows. Method: packets as a worker writes them, to what hears them."""
    heard: list[int] = []
    tell = telling_of_unfit(TrainingRequest(task="mnist1d"), lambda packet: heard.append(packet.current_epoch))
    for epoch in (1, 2):
        tell(ly.SystemStatePacket(current_epoch=epoch, slots=[ly.SlotState(slot="conv1", layout="map1d")]))
    said = capsys.readouterr().err
    assert heard == [1, 2]
    assert said.count("will graft nothing") == 1
    assert "--policy fixed" in said
