"""Entry points of other packages by name: which are offered, which are not, and what a broken one costs."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from types import ModuleType

import pytest

from esper.core.errors import OperationFailed, UsageError
from esper.core.plugins import distribution, load, offers, shown, unusable
from esper.core.text import in_words

GROUP = "esper.tests"


def point(name: str, value: str = "acme_plugins:thing") -> EntryPoint:
    """Return an entry point of the group."""
    return EntryPoint(name, value, GROUP)


def test_names_are_checked_without_importing_anything() -> None:
    """Goal: one bad name costs only itself. Method: good names among bad, taken, reserved and doubled ones."""
    points = [
        point("wine"),
        point("wine"),
        point("wine", "zeta:thing"),
        point("mnist1d"),
        point("a:b"),
        point("7up"),
        point("x"),
        point("x" * 65),
        point("acme.iris-2_b"),
    ]
    found = offers(reversed(points), {"mnist1d"})
    assert {name: one.value for name, one in found.named.items()} == {
        "acme.iris-2_b": "acme_plugins:thing",
        "wine": "acme_plugins:thing",
    }
    causes = {one.entry_point: one.cause for one in found.unoffered}
    assert len(causes) == 6
    assert "is taken by another" in causes["wine = zeta:thing"]
    assert "comes with Esper" in causes["mnist1d = acme_plugins:thing"]
    assert all("2 to 64" in causes[f"{name} = acme_plugins:thing"] for name in ("a:b", "7up", "x", "x" * 65))
    assert str(found.unoffered[0]).startswith(f"entry point {found.unoffered[0].entry_point!r} is not offered: ")
    assert "acme_plugins" not in sys.modules


def test_what_an_entry_point_names_is_imported_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: an object or one clear error. Method: a module with the attribute, without it, and none at all."""
    module = ModuleType("acme_plugins")
    module.thing = 7  # type: ignore[attr-defined]  # what the plugin's author would define
    monkeypatch.setitem(sys.modules, "acme_plugins", module)
    assert load("task", point("wine")) == 7
    with pytest.raises(UsageError, match=r"the task 'wine' of an unnamed package cannot be used: .*absent"):
        load("task", point("wine", "acme_plugins:absent"))
    with pytest.raises(UsageError, match="ModuleNotFoundError: No module named 'acme_absent'"):
        load("host", point("wine", "acme_absent:thing"))


def test_errors_of_others_are_bounded() -> None:
    """Goal: no page of somebody's traceback in a message. Method: a long error, an empty one, one of Esper's own."""
    assert in_words(ValueError("x" * 9999)) == "ValueError: " + "x" * 488
    assert in_words(ZeroDivisionError()) == "ZeroDivisionError"
    assert in_words(OperationFailed("it broke", cause="a cause")).startswith("it broke: a cause")
    assert distribution(point("wine")) == ""
    assert shown(point("wine")) == "wine = acme_plugins:thing"
    assert "docs/plugins.md" in str(unusable("task", point("wine"), "no reason"))
