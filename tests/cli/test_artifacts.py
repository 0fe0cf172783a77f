"""`esper artifacts ...` given what it cannot use."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import RunningBroker
from tests.integration.driver import Esper


@pytest.fixture(scope="module")
def esper(local_broker: RunningBroker, tmp_path_factory: pytest.TempPathFactory) -> Esper:
    """The command line at a home of its own, with the session's broker."""
    esper = Esper(tmp_path_factory.mktemp("artifacts") / "home")
    esper.environment |= {"ESPER_KAFKA_BOOTSTRAP": local_broker.bootstrap, "ESPER_LEYLINE_SECRET": "s" * 32}
    made = esper("init")
    assert made.code == 0, made.stderr
    return esper


@pytest.mark.parametrize("days", ["inf", "nan", "1e300", "36501", "-1"])
def test_age_that_no_time_has_is_refused(esper: Esper, days: str) -> None:
    """Goal: exit 2, by name, before anything is looked at. Method: ages that are none."""
    done = esper("artifacts", "gc", "--yes", "--expired-days", days)
    assert done.code == 2, done.stderr
    assert "--expired-days" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("kind", ["file", "link"])
def test_store_that_is_no_folder_is_not_taken_for_an_empty_one(esper: Esper, tmp_path: Path, kind: str) -> None:
    """Goal: "removed 0 blobs" is said of a store that was looked at. Method: a file or link in place of the folder."""
    blobs, aside = esper.home / "blobs", tmp_path / "blobs"
    blobs.rename(aside)
    if kind == "file":
        blobs.write_text("x")
    else:
        blobs.symlink_to(aside)
    try:
        done = esper("artifacts", "gc", "--yes")
    finally:
        blobs.unlink()
        aside.rename(blobs)
    assert done.code == 4, done.stderr
    assert str(blobs) in done.stderr
    assert f"a {kind} lies where a folder belongs" in done.stderr
    assert done.stdout == ""
