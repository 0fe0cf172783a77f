"""Homes and installed jars for the tests of the local broker."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from esper.core.home import Home
from esper.core.settings import load_settings
from esper.oona.broker import LocalBroker, jars_folder
from esper.oona.broker._jars import damaged_jars

MakeBroker = Callable[..., tuple[LocalBroker, Home]]


@pytest.fixture(autouse=True)
def _no_settings_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run where there is no .env file."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def jars() -> Path:
    """Return the folder of the installed jars; without them these tests have nothing to test."""
    if damaged_jars(jars_folder()):
        message = "the local broker's jars are not installed; run `make setup`"
        if os.environ.get("ESPER_REQUIRE_REAL") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return jars_folder()


@pytest.fixture
def make_broker(tmp_path: Path, jars: Path) -> Iterator[MakeBroker]:
    """Return a maker of brokers, each in a home of its own unless named alike; all are stopped at the end."""
    made: list[LocalBroker] = []

    def make(name: str = "home", **values: object) -> tuple[LocalBroker, Home]:
        settings = load_settings(home=tmp_path / name, **values)
        home = Home.create(settings)
        broker = LocalBroker(home, settings)
        if settings.loopback:
            made.append(broker)
        return broker, home

    yield make
    for broker in made:
        broker.stop()
