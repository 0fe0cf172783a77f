"""A second broker for Oona's tests that damage or need a whole one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from esper.oona import Fabric
from tests.conftest import running_broker


@pytest.fixture(scope="package")
def scratch(tmp_path_factory: pytest.TempPathFactory, _no_settings_from_outside: None) -> Iterator[Fabric]:
    """The fabric on a broker that only tests use which count or delete what a topic holds."""
    with (
        running_broker(tmp_path_factory.mktemp("scratch") / "home") as running,
        Fabric.open(running.settings, member="oona-0") as fabric,
    ):
        yield fabric


@pytest.fixture(scope="package")
def secluded(tmp_path_factory: pytest.TempPathFactory, _no_settings_from_outside: None) -> Iterator[Fabric]:
    """The fabric on a broker that no member serves, for events that would steer whoever hears them."""
    with (
        running_broker(tmp_path_factory.mktemp("secluded") / "home") as running,
        Fabric.open(running.settings, member="cli") as fabric,
    ):
        yield fabric
