"""What each package offers is written down, so that no name comes or goes unnoticed."""

from __future__ import annotations

import importlib
import json

import pytest

from tests.repository.tree import ROOT

PINNED: dict[str, list[str]] = json.loads((ROOT / "tests/repository/exports.json").read_text())


def packages() -> set[str]:
    """Name every package of the distribution that says what it offers."""
    found = {
        path.parent.relative_to(ROOT) for path in (ROOT / "esper").rglob("__init__.py") if "__all__" in path.read_text()
    }
    return {".".join(path.parts) for path in found}


def test_every_package_is_pinned() -> None:
    """Goal: no package escapes the list. Method: compare it with the tree."""
    assert packages() == set(PINNED)


@pytest.mark.parametrize("package", sorted(PINNED))
def test_exported_names(package: str) -> None:
    """Goal: users' imports keep working. Method: compare `__all__` with the list, and look each name up."""
    module = importlib.import_module(package)
    assert sorted(module.__all__) == PINNED[package], f"if meant so, change {package} in tests/repository/exports.json"
    assert all(getattr(module, name) is not None for name in module.__all__)
