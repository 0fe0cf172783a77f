"""Whether those who must answer a run are there: a run that starts before them would miss their answers."""

from __future__ import annotations

from collections.abc import Sequence

from confluent_kafka import ConsumerGroupState, KafkaException

from esper.core.clock import SYSTEM_CLOCK, Clock, Deadline
from esper.core.errors import NotReadyError
from esper.core.home import live_members
from esper.oona import Fabric
from esper.weatherlight._supervisor import Supervisor

#: A fresh member imports its libraries, joins its group and reads its past; a loaded machine has needed 40 s.
READY_SECONDS = 120.0
_POLL_SECONDS = 0.05
_REQUEST_SECONDS = 10.0

#: Who answers a run: the controller, and those who make kernels.
ANSWERING = ("tamiyo", "urza", "tezzeret")


def absent(fabric: Fabric, answering: Sequence[str] = ANSWERING) -> list[str]:
    """Return the subsystems that are to answer, by default those that answer runs, and have no member at work yet.

    A member of this home says itself when it is at work; one that lives elsewhere is seen by its group.
    """
    here = {member.name.rsplit("-", 1)[0]: member.state for member in live_members(fabric.home)}
    found = [subsystem for subsystem in answering if here.get(subsystem, "running") != "running"]
    return found + _without_group(fabric, [subsystem for subsystem in answering if subsystem not in here])


def _without_group(fabric: Fabric, subsystems: list[str]) -> list[str]:
    if not subsystems:
        return []
    groups = {subsystem: f"esper.{subsystem}" for subsystem in subsystems}
    asked = fabric.cluster.admin.describe_consumer_groups(list(groups.values()), request_timeout=_REQUEST_SECONDS)
    return [subsystem for subsystem, group in groups.items() if not _is_stable(asked[group])]


def _is_stable(asked: object) -> bool:
    try:
        state = asked.result().state  # type: ignore[attr-defined]  # a Future of a class without annotations
    except KafkaException:
        # A group that nobody ever joined, or a coordinator that is not chosen yet.
        return False
    return bool(state == ConsumerGroupState.STABLE)


def await_answering(
    fabric: Fabric,
    supervisor: Supervisor,
    *,
    answering: Sequence[str] = ANSWERING,
    seconds: float = READY_SECONDS,
    clock: Clock = SYSTEM_CLOCK,
) -> None:
    """Return when those who are to answer are at work, by default a controller and the makers of kernels.

    Raises:
        NotReadyError: one of them is still absent after `seconds`, or a supervised member cannot run.
    """
    deadline = Deadline(seconds, clock=clock)
    while missing := absent(fabric, answering):
        supervisor.check()
        if deadline.expired:
            raise NotReadyError(
                f"nobody answers for {', '.join(missing)}",
                cause=f"no member was at work within {seconds:.0f} s",
                next_step="`esper status` shows the members; `esper serve` starts them",
            )
        clock.sleep(_POLL_SECONDS)
