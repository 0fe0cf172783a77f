"""Asking a blueprint for its spec: its code may be a user's own, and it may do anything but answer."""

from __future__ import annotations

import threading
from typing import Final, Protocol

from esper.core.errors import EsperError
from esper.leyline import messages as ly
from esper.tezzeret._faults import CompileRefused

#: A spec is a page of JSON, written by a pure function.
SPEC_SECONDS_MAX: Final = 10.0


class BlueprintBuilder(Protocol):
    """Whoever knows what blueprints are made of (Karn)."""

    def build_spec(self, request: ly.KernelRequestSpec) -> dict[str, object]:
        """Return the declarative spec that answers `request`; a pure function.

        Raises:
            UsageError: no such blueprint, or not with these parameters and shapes.
        """


class Describer:
    """Asks for specs, each in a thread of its own, and waits no longer than it may.

    A blueprint that did not answer once is not asked again in this life: a thread cannot be killed, and the one that
    it keeps is enough. Use by one thread.
    """

    def __init__(self, blueprints: BlueprintBuilder, *, seconds: float = SPEC_SECONDS_MAX) -> None:
        self._blueprints = blueprints
        self._seconds = seconds
        self._silent: set[str] = set()

    def spec(self, request: ly.KernelRequestSpec) -> dict[str, object]:
        """Return the spec that answers `request`.

        Raises:
            UsageError, IntegrityError: what the blueprint refuses.
            CompileRefused: it raised anything else, or did not answer in time.
        """
        name = request.blueprint_id
        if name in self._silent:
            raise CompileRefused(f"blueprint {name} did not answer before")
        asking = _Asking(self._blueprints, request)
        asking.start()
        asking.join(self._seconds)
        if asking.is_alive():
            self._silent.add(name)
            raise CompileRefused(f"blueprint {name} gave no spec in {self._seconds:g} s")
        if isinstance(asking.error, EsperError):
            raise asking.error
        if asking.error is not None:
            raise CompileRefused(
                f"blueprint {name} raised {type(asking.error).__name__}: {asking.error}"
            ) from asking.error
        return asking.found


class _Asking(threading.Thread):
    """One question."""

    def __init__(self, blueprints: BlueprintBuilder, request: ly.KernelRequestSpec) -> None:
        super().__init__(name="blueprint", daemon=True)
        self._blueprints = blueprints
        self._request = request
        self.found: dict[str, object] = {}
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.found = self._blueprints.build_spec(self._request)
        # Not even SystemExit of somebody else's code ends the forge; it is an answer to this request.
        except BaseException as error:  # noqa: BLE001 - see above
            self.error = error
