"""What Esper needs on a machine, checked one by one, each with its cure."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from esper.core.errors import EsperError
from esper.core.home import Home
from esper.core.settings import Settings
from esper.oona import Cluster, TopicCatalog, plan_topics
from esper.oona.broker import LocalBroker, damaged_jars, jars_folder

_PYTHON_MIN = (3, 11)
#: A fresh home holds some 100 MB; the log of 10^6 events some 500 MB.
_FREE_BYTES_MIN = 2 * 1024**3


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    check: str
    ok: bool
    found: str
    #: What to do about it; nothing where all is well.
    cure: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON has them."""
        return asdict(self)


def _python(_: Settings) -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    return Check("python", sys.version_info >= _PYTHON_MIN, found, "Install Python 3.11 or later")


def _clash(_: Settings) -> Check:
    try:
        foreign = importlib.metadata.version("esper")
    except importlib.metadata.PackageNotFoundError:
        return Check("package name", True, "no other package called esper")
    cure = "Uninstall the game library: pip uninstall esper, then install esper-grow again"
    return Check("package name", False, f"another package called esper {foreign} is installed", cure)


def _jars(settings: Settings) -> Check:
    if not settings.loopback:
        return Check("broker jars", True, "not needed: ESPER_KAFKA_BOOTSTRAP names a cluster")
    damaged = damaged_jars(jars_folder())
    found = f"{len(damaged)} missing or altered" if damaged else "complete, every digest as locked"
    return Check("broker jars", not damaged, found, "Run `make setup`")


def _home(settings: Settings) -> Check:
    try:
        home = Home.open(settings)
        home.keyring(settings)
    except EsperError as error:
        return Check("home and key", False, f"{error.what}: {error.cause}".rstrip(": "), error.next_step)
    return Check("home and key", True, str(home.root))


def _disk(settings: Settings) -> Check:
    folder = settings.home.resolve()
    while not folder.exists():  # ends at the root of the file system
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    return Check("disk", free >= _FREE_BYTES_MIN, f"{free / 1024**3:.1f} GiB free", "Free 2 GiB, or move ESPER_HOME")


def _broker(settings: Settings) -> Check:
    try:
        if settings.loopback and LocalBroker(Home.open(settings), settings).bootstrap() is None:
            return Check("broker", False, "the home's broker is not running", "Run `esper up`")
        cluster = Cluster.open(settings)
        changes = plan_topics(cluster, TopicCatalog.load(settings)).changes
    except EsperError as error:
        return Check("broker", False, f"{error.what}: {error.cause}".rstrip(": "), error.next_step)
    if changes:
        found = f"{cluster.bootstrap}, {len(changes)} topic changes wait"
        return Check("broker", False, found, "Run `esper topics apply`")
    return Check("broker", True, f"{cluster.bootstrap}, topics as in the files")


_CHECKS: tuple[Callable[[Settings], Check], ...] = (_python, _clash, _disk, _jars, _home, _broker)


def examine(settings: Settings) -> Iterator[Check]:
    """Yield one verdict after another; never raises a deliberate error."""
    for look in _CHECKS:
        check = look(settings)
        yield replace(check, cure="") if check.ok else check
