"""Text that somebody else wrote, before it reaches a terminal or the log."""

from __future__ import annotations

import unicodedata
from typing import Final

from esper.core.errors import EsperError

#: Controls (terminal escapes, line ends), formats (which turn the direction of writing), surrogates (which UTF-8
#: cannot hold), and the separators of lines and paragraphs.
_REFUSED: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def unprintable(text: str) -> str:
    """Return the first character that neither a terminal nor the log is to be given, escaped; "" without one.

    Such are controls, line ends included, formats such as those that turn the direction of writing, and surrogates,
    which UTF-8 cannot hold.
    """
    return next((_escaped(one) for one in text if unicodedata.category(one) in _REFUSED), "")


def printable(text: str, *, limit: int = 500) -> str:
    """Return the first `limit` characters, each that `unprintable` would name as its escape."""
    return "".join(_escaped(one) if unicodedata.category(one) in _REFUSED else one for one in text[:limit])


def shown(value: object, *, limit: int = 80) -> str:
    """Return what a message says of a value that somebody else made: bounded, printable; never raises.

    A number, text, a truth value and None are written as Python does, of anything else only its type is told.
    """
    if value is None or isinstance(value, bool | float):
        return repr(value)[:limit]
    if isinstance(value, int):
        # Python refuses to write an integer of thousands of digits, for the time that it takes.
        return str(int(value)) if value.bit_length() <= limit else f"an integer of {value.bit_length()} bits"
    if isinstance(value, str):
        return repr(str(value)[:limit])
    return f"a {printable(type(value).__name__, limit=limit)}"


def in_words(error: BaseException, *, limit: int = 500) -> str:
    """Return an error that somebody else's code raised, in bounded, printable words; never raises."""
    name = printable(type(error).__name__, limit=80)
    try:
        said = str(error)
    except BaseException:  # noqa: BLE001 - an error of somebody else's may fail to say what it is
        return name
    # Our own errors are whole sentences.
    return printable(
        said if said and isinstance(error, EsperError) else f"{name}: {said}" if said else name, limit=limit
    )


def _escaped(one: str) -> str:
    return one.encode("unicode_escape").decode("ascii")
