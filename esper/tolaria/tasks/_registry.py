"""Tasks by name: the shipped ones, installed packages' (`esper.tasks`), and a user's own as `package.module:factory`.

Hosts of other packages (`esper.hosts`) join every task.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Final

from esper.core.errors import UsageError
from esper.core.plugins import distribution, installed, load, unusable
from esper.core.text import in_words
from esper.tolaria.tasks._tasks import Host, Task, unknown_host

TASK_ENTRY_POINTS: Final = "esper.tasks"
HOST_ENTRY_POINTS: Final = "esper.hosts"


@functools.cache
def _mnist1d() -> Task:
    from esper.tolaria.tasks._mnist1d import mnist1d

    return mnist1d()


@functools.cache
def _digits() -> Task:
    from esper.tolaria.tasks._digits import digits

    return digits()


@functools.cache
def _charlm() -> Task:
    from esper.tolaria.tasks._charlm import charlm

    return charlm()


@functools.cache
def _spirals() -> Task:
    from esper.tolaria.tasks._spirals import spirals

    return spirals()


#: Data packages are imported only when their task is first made; it is kept, for a worker trains it again and again.
_SHIPPED: dict[str, Callable[[], Task]] = {
    "charlm": _charlm,
    "digits": _digits,
    "mnist1d": _mnist1d,
    "spirals": _spirals,
}
#: Known without making the data, so that a wrong name is refused at once.
_SHIPPED_HOSTS: Final[Mapping[str, tuple[str, ...]]] = {
    "charlm": ("transformer",),
    "digits": ("cnn", "cnn_bn", "mlp"),
    "mnist1d": ("cnn", "cnn_bn", "mlp"),
    "spirals": ("mlp",),
}
_RESERVED_HOSTS: Final = frozenset(host for hosts in _SHIPPED_HOSTS.values() for host in hosts)


def task_names() -> list[str]:
    """Return the names of the shipped tasks and of those that installed packages offer; imports none of them."""
    return sorted({*_SHIPPED, *_own_tasks()})


def _own_tasks() -> Mapping[str, EntryPoint]:
    return installed(TASK_ENTRY_POINTS, frozenset(_SHIPPED)).named


def _own_hosts() -> Mapping[str, EntryPoint]:
    return installed(HOST_ENTRY_POINTS, _RESERVED_HOSTS).named


def check_task(name: str, host: str) -> None:
    """Raise when there is no task called `name` or it has no `host`.

    A shipped task is not made for its own hosts; a user's own is, for nothing else knows its hosts.

    Raises:
        UsageError: the message says which, and lists what there is.
    """
    if host not in _SHIPPED_HOSTS.get(name, ()):
        with_host(load_task(name), host)


def with_host(task: Task, host: str) -> Task:
    """Return `task` such that it has the host called `host`: its own one, or that of an installed package.

    A package's host is a function that takes the task and returns a Host. Its package counts among the run's
    `distributions` from then on.

    Raises:
        UsageError: there is no such host, or its entry point cannot be used.
    """
    if task.has_host(host):
        return task
    point = _own_hosts().get(host)
    if point is None:
        raise unknown_host(task.name, host, {*task.hosts, *_own_hosts()})
    make = load("host", point)
    if not callable(make):
        raise unusable("host", point, f"it names a {type(make).__name__}, not a function of a Task")
    return replace(
        task,
        hosts={**task.hosts, host: functools.partial(_own_host, point, make, task)},
        distributions=_with_package(task, point),
    )


def _with_package(task: Task, point: EntryPoint) -> tuple[str, ...]:
    """Return the task's distributions and that of the entry point, each once."""
    return tuple(dict.fromkeys((*task.distributions, *filter(None, [distribution(point)]))))


def _own_host(point: EntryPoint, make: Callable[[Task], object], task: Task) -> Host:
    try:
        host = make(task)
    except (Exception, SystemExit) as error:  # somebody else's factory may raise anything
        raise unusable("host", point, f"its function failed with {in_words(error)}") from error
    if not isinstance(host, Host):
        raise unusable("host", point, f"its function returned a {type(host).__name__}, not an esper.tolaria.Host")
    return host


def load_task(name: str) -> Task:
    """Return the task called `name`: a shipped one, an installed package's, or what `package.module:factory` makes.

    A user's module is looked for as Python does, and then in the working directory.

    Raises:
        UsageError: no such task; or the module cannot be imported, has no such factory, the factory
            fails, or it returns something that is no Task. The message says which, and why.
    """
    shipped = _SHIPPED.get(name)
    if shipped is not None:
        return shipped()
    point = _own_tasks().get(name)
    if point is not None:
        return _task_of(point)
    module_name, colon, factory_name = name.partition(":")
    if not colon or not module_name or not factory_name:
        raise UsageError(
            f"there is no task {name!r}",
            cause=_tasks_in_words(),
            next_step="Name one of them, or a factory of your own as package.module:factory",
        )
    return _made(name, _factory(name, module_name, factory_name))


def _tasks_in_words() -> str:
    own = sorted(_own_tasks())
    words = f"the shipped tasks are {', '.join(sorted(_SHIPPED))}"
    return f"{words}; installed packages offer {', '.join(own)}" if own else words


def _task_of(point: EntryPoint) -> Task:
    """Return what an entry point's factory makes, with its package among the run's distributions."""
    factory = load("task", point)
    if not callable(factory):
        raise unusable("task", point, f"it names a {type(factory).__name__}, not a function without arguments")
    try:
        task = factory()
    except (Exception, SystemExit) as error:  # somebody else's factory may raise anything
        raise unusable("task", point, f"its function failed with {in_words(error)}") from error
    if not isinstance(task, Task):
        raise unusable("task", point, f"its function returned a {type(task).__name__}, not an esper.tolaria.Task")
    if task.name != point.name:
        raise unusable("task", point, f"the task that it makes is called {task.name!r}")
    return replace(task, distributions=_with_package(task, point))


def _factory(name: str, module_name: str, factory_name: str) -> object:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a user's module may raise anything while it is imported
        raise UsageError(
            f"the task {name!r} cannot be loaded",
            cause=f"importing {module_name} failed with {in_words(error)}",
            next_step=(
                f"Check the module's name; the process that trains looks in its working directory, {Path.cwd()}, and "
                "among installed packages: start `esper serve` in the module's folder, or install its package"
            ),
        ) from error
    factory = getattr(module, factory_name, None)
    if factory is None:
        raise UsageError(
            f"the task {name!r} cannot be loaded",
            cause=f"the module {module_name} has no {factory_name!r}",
            next_step="Name a function of the module that takes no arguments and returns an esper.tolaria.Task",
        )
    return factory


def _made(name: str, factory: object) -> Task:
    if not callable(factory):
        raise UsageError(
            f"the task {name!r} cannot be made",
            cause=f"the named object is a {type(factory).__name__}, not a function",
            next_step="Name a function that takes no arguments and returns an esper.tolaria.Task",
        )
    try:
        task = factory()
    except (Exception, SystemExit) as error:  # a user's factory may raise anything
        raise UsageError(
            f"the task {name!r} cannot be made",
            cause=f"its factory failed with {in_words(error)}",
            next_step="Correct the factory",
        ) from error
    if not isinstance(task, Task):
        raise UsageError(
            f"the task {name!r} cannot be made",
            cause=f"its factory returned a {type(task).__name__}",
            next_step="Return an esper.tolaria.Task",
        )
    return task
