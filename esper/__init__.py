"""Esper: neural networks that grow while they train, recorded event by event on Kafka."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esper.weatherlight._grow import grow as grow

__version__ = "0.1.0"
__all__ = ["__version__", "grow"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - PEP 562
    """Import `grow` when it is first asked for: it brings torch, which most commands do not need."""
    if name == "grow":
        from esper.weatherlight._grow import grow

        return grow
    raise AttributeError(f"module 'esper' has no attribute {name!r}")
