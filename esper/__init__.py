"""Esper: neural networks that grow while they train, recorded event by event on Kafka."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esper.weatherlight._grow import GrowRun as GrowRun
    from esper.weatherlight._grow import grow as grow

__version__ = "0.1.0"
__all__ = ["GrowRun", "__version__", "grow"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - PEP 562
    """Import `grow` and its type when they are first asked for: they bring torch, which most commands do not need."""
    if name in ("GrowRun", "grow"):
        from esper.weatherlight import _grow

        return getattr(_grow, name)
    raise AttributeError(f"module 'esper' has no attribute {name!r}")
