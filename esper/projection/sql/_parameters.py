"""Parameters of a query on their way to the projector: JSON that keeps the types that DuckDB tells apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Final

from esper.core.errors import UsageError

_TAG: Final = "$"


def pack(parameters: Sequence[object]) -> list[Any]:
    """Return parameters as JSON values; `unpack` takes them back.

    Raises:
        UsageError: one is of a type that cannot travel.
    """
    return [_packed(value) for value in parameters]


def unpack(values: Sequence[Any]) -> list[object]:
    """Return what `pack` was given; raises UsageError for what it never makes."""
    try:
        return [_unpacked(value) for value in values]
    except (KeyError, ValueError, ArithmeticError, TypeError) as error:
        raise UsageError("the request cannot be read", cause=f"a parameter is malformed: {error!r}") from error


def _packed(value: object) -> Any:  # noqa: ANN401 - any JSON value
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, datetime):
        return {_TAG: "datetime", "text": value.isoformat()}
    if isinstance(value, date):
        return {_TAG: "date", "text": value.isoformat()}
    if isinstance(value, Decimal):
        return {_TAG: "decimal", "text": str(value)}
    if isinstance(value, bytes):
        return {_TAG: "bytes", "text": value.hex()}
    if isinstance(value, list | tuple):
        return [_packed(item) for item in value]
    raise UsageError(
        "a parameter of the query cannot be used",
        cause=f"its type is {type(value).__name__}",
        next_step="Give numbers, text, bytes, dates, times, or lists of them",
    )


def _unpacked(value: Any) -> object:  # noqa: ANN401 - any JSON value
    if isinstance(value, list):
        return [_unpacked(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    text = value["text"]
    match value[_TAG]:
        case "datetime":
            return datetime.fromisoformat(text)
        case "date":
            return date.fromisoformat(text)
        case "decimal":
            return Decimal(text)
        case "bytes":
            return bytes.fromhex(text)
    raise ValueError(value[_TAG])
