"""DuckDB's text of a view, made comparable: lists that it keeps without an order come in one."""

from __future__ import annotations

import re
from typing import Final

#: The text of these comes in another order once a file is opened again.
_UNORDERED: Final = re.compile(r"\b(EXCLUDE|REPLACE|RENAME) \(")


def ordered(sql: str) -> str:
    """Return DuckDB's text of a view with its unordered lists in one order."""
    pieces, at = [], 0
    while match := _UNORDERED.search(sql, at):  # each turn goes on behind its match
        end = _closing(sql, match.end())
        pieces += [sql[at : match.end()], ", ".join(sorted(_parts(sql[match.end() : end])))]
        at = end
    return "".join([*pieces, sql[at:]])


def _closing(text: str, start: int) -> int:
    """Return where the parenthesis ends that was opened just before `start`."""
    depth, quote = 1, ""
    for index in range(start, len(text)):
        letter = text[index]
        if quote or letter in "'\"":
            quote = "" if letter == quote else quote or letter
        else:
            depth += (letter == "(") - (letter == ")")
            if depth == 0:
                return index
    return len(text)


def _parts(text: str) -> list[str]:
    """Return what stands between the commas of a list, but not inside its items."""
    parts, at = list[str](), 0
    for index, letter in enumerate(text):
        if letter == "," and _closing(f"{text[at:index]})", 0) == index - at:
            parts.append(text[at:index].strip())
            at = index + 1
    return [*parts, text[at:].strip()]
