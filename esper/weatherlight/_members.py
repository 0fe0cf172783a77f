"""Which members there are, and how one is wired together: the only place that knows all subsystems."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from esper.core.errors import UsageError
from esper.core.home import Home, member_lock
from esper.core.settings import Settings
from esper.oona import Fabric, Position, Service, build_housekeeper, emission

_log = logging.getLogger("esper.weatherlight")


def _housekeeper(fabric: Fabric, instance: str) -> Service:
    def rebuilt_from() -> set[str]:
        from esper.projection import load_definitions

        return {topic for one in load_definitions(fabric.settings, fabric.topics) for topic in one.topics}

    marks: list[Callable[[], Mapping[Position, int]]] = []

    def archived() -> Mapping[Position, int]:
        from esper.projection import sealed_marks

        if not marks:
            marks.append(sealed_marks(fabric))
        return marks[0]()

    return build_housekeeper(fabric, instance=instance, rebuilt_from=rebuilt_from, archived=archived)


def _karn(fabric: Fabric, instance: str) -> Service:
    from esper.karn import build_service

    return build_service(fabric, instance=instance)


def _tezzeret(fabric: Fabric, instance: str) -> Service:
    from esper.karn import KarnCatalog
    from esper.tezzeret import build_service

    return build_service(fabric, blueprints=KarnCatalog(), instance=instance)


def _urza(fabric: Fabric, instance: str) -> Service:
    from esper.urza import build_service

    return build_service(fabric, instance=instance)


def _tamiyo(fabric: Fabric, instance: str) -> Service:
    from esper.tamiyo import build_service

    return build_service(fabric, instance=instance)


def _tolaria(fabric: Fabric, instance: str) -> Service:
    from esper.tolaria import build_service
    from esper.weatherlight._grafting import controller_factory, judge_factory

    return build_service(
        fabric, controller_factory=controller_factory(fabric), judge_factory=judge_factory(fabric), instance=instance
    )


def _projector(fabric: Fabric, _instance: str) -> Service:
    from esper.projection import build_service

    return build_service(fabric)


def _emission(fabric: Fabric, member: Member) -> AbstractContextManager[object]:
    """Return what emits a member's own figures; the housekeeper emits its own with those of the cluster."""
    return nullcontext() if member.subsystem == "housekeeper" else emission(fabric)


#: Subsystem -> factory. Imports wait until a member is made: only those that train pay for torch.
SUBSYSTEMS: dict[str, Callable[[Fabric, str], Service]] = {
    "housekeeper": _housekeeper,
    "karn": _karn,
    "tezzeret": _tezzeret,
    "urza": _urza,
    "tamiyo": _tamiyo,
    "tolaria": _tolaria,
    "projector": _projector,
}


#: Members that nobody waits for: where cores are few, they take what the control loop leaves.
_BACKGROUND = frozenset({"housekeeper", "projector"})
_BACKGROUND_NICENESS = 10


@dataclass(frozen=True, order=True)
class Member:
    """One process of one subsystem; its name is stable and is used again after a restart."""

    subsystem: str
    index: int = 0

    @property
    def name(self) -> str:
        """`<subsystem>-<index>`, as the lock file, the group instance and the log file are called."""
        return f"{self.subsystem}-{self.index}"


def niceness(member: Member) -> int:
    """Return what to add to the scheduling priority of a member's own process."""
    return _BACKGROUND_NICENESS if member.subsystem in _BACKGROUND else 0


def check_subsystem(name: str) -> str:
    """Return `name` when it is a subsystem.

    Raises:
        UsageError: it is not; the message lists those that are.
    """
    if name not in SUBSYSTEMS:
        raise UsageError(
            f"there is no subsystem {name!r}", cause=f"known are {', '.join(SUBSYSTEMS)}", next_step="Name one of them"
        )
    return name


def stop_on_signals() -> threading.Event:
    """Return an event that SIGTERM and SIGINT set, so that loops end between two records."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def interrupt_on_sigterm() -> None:
    """Let SIGTERM end a waiting command as Ctrl-C does, so that its run is said to be cancelled."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def own_device(settings: Settings, member: Member) -> str:
    """Return the GPU that a trainer sees, as CUDA_VISIBLE_DEVICES names it; empty where none is set apart for it.

    Raises:
        UsageError: one of `worker_devices` has no name.
    """
    if member.subsystem != "tolaria" or not settings.worker_devices.strip():
        return ""
    devices = [name.strip() for name in settings.worker_devices.split(",")]
    if not all(devices):
        raise UsageError(
            f"ESPER_WORKER_DEVICES={settings.worker_devices!r} cannot be used",
            cause="one of its names is empty",
            next_step="Write them as 0,1,2",
        )
    return devices[member.index % len(devices)]


def see_own_device(settings: Settings, member: Member) -> None:
    """Let this process see no other GPU than its own; to be called before torch looks for them."""
    device = own_device(settings, member)
    if device:
        os.environ["CUDA_VISIBLE_DEVICES"] = device


def run_member(settings: Settings, member: Member, stop: threading.Event) -> None:
    """Run one member until `stop` is set; holds the member's lock for as long.

    Raises:
        UsageError: no such subsystem, or `worker_devices` cannot be used.
        Busy: a live process holds this member's name.
        BrokerUnavailable: the broker is away, or was for longer than `broker_retry_seconds`.
    """
    factory = SUBSYSTEMS[check_subsystem(member.subsystem)]
    see_own_device(settings, member)
    home = Home.open(settings)
    with member_lock(home, member.name):
        fabric = Fabric.open(settings, member=member.name)
        try:
            service = factory(fabric, member.name)
            _log.info("member %s runs", member.name)
            with _emission(fabric, member):
                service.run(stop)
        finally:
            fabric.close()
