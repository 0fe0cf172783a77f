"""Rebuilding from a real broker whose log no longer holds the beginning."""

from __future__ import annotations

from pathlib import Path

import pytest

from esper.core.errors import IntegrityError
from esper.leyline import messages as ly
from esper.oona.copying import ends_of, trim
from esper.oona.housekeeping._retention import plan_retention
from esper.projection import catch_up, replay, sealed_marks, verify
from tests.conftest import RunningBroker
from tests.projection.archive.logs import seal
from tests.projection.log import one_run
from tests.projection.system import own_system


def test_projections_are_rebuilt_from_archive_and_live_log(broker: RunningBroker, tmp_path: Path) -> None:
    """Goal: what is sealed may go. Method: fold, seal, write on, delete what is sealed, verify and replay."""
    with own_system(broker, tmp_path) as system:
        fabric = system.fabric
        one_run(system, "run-sealed")  # publishes as a Log appends
        for number in range(4):
            system.publish(ly.TelemetryPacket(packet_id=f"{number:032}", source_subsystem="nissa"), key="nissa")
        seal(fabric)
        sealed = {place: high for place, (_, high) in ends_of(fabric.cluster, fabric.topics).items()}
        one_run(system, "run-live")  # as above
        catch_up(fabric)
        rows = system.query("select run_id, count(*) n from run_states group by 1 order by 1")
        assert [row["run_id"] for row in rows] == ["run-live", "run-sealed"]
        telemetry = system.topic("telemetry")
        assert sealed_marks(fabric)() == {(telemetry, 0): 4}
        assert [one.delete_before for one in plan_retention(fabric, archived=sealed_marks(fabric)())] == [0]

        for place, end in sealed.items():
            if place[0].startswith(system.prefix) and end:
                trim(fabric.cluster, place, end)

        document = verify(fabric)
        assert document["equal"], document
        assert {row["name"] for row in replay(fabric)} == {one["name"] for one in document["projections"]}
        assert system.query("select run_id, count(*) n from run_states group by 1 order by 1") == rows
        archive = fabric.home.root / "archive"
        archive.rename(archive.with_name("elsewhere"))
        with pytest.raises(IntegrityError, match="its first"):
            replay(fabric)
