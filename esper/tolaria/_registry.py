"""Tasks by name: the shipped ones, and a user's own as `package.module:factory`."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path

from esper.core.errors import UsageError
from esper.tolaria._tasks import Task, unknown_host


@functools.cache
def _mnist1d() -> Task:
    from esper.tolaria._mnist1d import mnist1d

    return mnist1d()


@functools.cache
def _digits() -> Task:
    from esper.tolaria._digits import digits

    return digits()


#: Data packages are imported only when their task is first made; it is kept, for a worker trains it again and again.
_SHIPPED: dict[str, Callable[[], Task]] = {"digits": _digits, "mnist1d": _mnist1d}
#: Known without making the data, so that a wrong name is refused at once.
_SHIPPED_HOSTS: dict[str, tuple[str, ...]] = {"digits": ("mlp",), "mnist1d": ("mlp",)}


def task_names() -> list[str]:
    """Return the names of the shipped tasks."""
    return sorted(_SHIPPED)


def check_task(name: str, host: str) -> None:
    """Raise when there is no task called `name` or it has no `host`.

    A shipped task is not made for this; a user's own is, for nothing else knows its hosts.

    Raises:
        UsageError: the message says which, and lists what there is.
    """
    hosts = _SHIPPED_HOSTS.get(name)
    if hosts is None:
        hosts = tuple(load_task(name).hosts)
    if host not in hosts:
        raise unknown_host(name, host, hosts)


def load_task(name: str) -> Task:
    """Return the shipped task called `name`, or what the user's factory `package.module:factory` makes.

    A user's module is looked for as Python does, and then in the working directory.

    Raises:
        UsageError: no such task; or the module cannot be imported, has no such factory, the factory
            fails, or it returns something that is no Task. The message says which, and why.
    """
    shipped = _SHIPPED.get(name)
    if shipped is not None:
        return shipped()
    module_name, colon, factory_name = name.partition(":")
    if not colon or not module_name or not factory_name:
        raise UsageError(
            f"there is no task {name!r}",
            cause=f"the shipped tasks are {', '.join(task_names())}",
            next_step="Name one of them, or a factory of your own as package.module:factory",
        )
    return _made(name, _factory(name, module_name, factory_name))


def _factory(name: str, module_name: str, factory_name: str) -> object:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a user's module may raise anything while it is imported
        raise UsageError(
            f"the task {name!r} cannot be loaded",
            cause=f"importing {module_name} failed with {_words(error)}",
            next_step="Check the module's name, and that it can be imported from the working directory",
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
            cause=f"its factory failed with {_words(error)}",
            next_step="Correct the factory",
        ) from error
    if not isinstance(task, Task):
        raise UsageError(
            f"the task {name!r} cannot be made",
            cause=f"its factory returned a {type(task).__name__}",
            next_step="Return an esper.tolaria.Task",
        )
    return task


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
