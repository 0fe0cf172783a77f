"""One recorded log for the tests of proofs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from esper.oona import Fabric
from tests.conftest import running_broker
from tests.oona.proof.recorded import Recorded, last_number, record_log, wait_for_checkpoint, write_events, writing


@pytest.fixture(scope="package")
def proving(tmp_path_factory: pytest.TempPathFactory, _no_settings_from_outside: None) -> Iterator[Fabric]:
    """The fabric on a broker of its own whose housekeeper would sign every 40 records."""
    root = tmp_path_factory.mktemp("proving") / "home"
    with (
        running_broker(root, checkpoint_records=40) as running,
        Fabric.open(running.settings, member="proof-0") as fabric,
    ):
        yield fabric


@pytest.fixture(scope="package")
def recorded(proving: Fabric) -> Recorded:
    """What a real broker held after three lives of a writer, two of them with events in between."""
    for _ in range(3):
        before = last_number(proving)
        with proving.publisher("oona") as publisher, writing(proving, publisher):
            write_events(proving, rounds=25)
            wait_for_checkpoint(proving, before + 2)
    return record_log(proving)
