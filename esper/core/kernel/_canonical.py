"""One way to write a value down, so that equal values have equal digests, and a bounded way back."""

from __future__ import annotations

import json
from typing import Final, cast

from esper.core.errors import IntegrityError, UsageError

#: A spec at the deepest tree allowed nests about three brackets a level; nothing honest comes near.
JSON_NESTING_MAX: Final = 64


def canonical_json(value: object) -> bytes:
    """Return `value` as JSON with sorted keys, no white space and ASCII escapes.

    Numbers are written as Python's shortest round-trip form. This is our own canonical form, not
    RFC 8785: 1.0 stays "1.0", so that an integer and a float never share a digest.

    Raises:
        UsageError: `value` holds something JSON cannot say, such as NaN or an infinity, or half a character (a lone
            surrogate), which nothing that reads UTF-8 can take.
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
        if "\\ud" in text:  # A character beyond the first 65536 is escaped as a pair of surrogates.
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (TypeError, ValueError) as error:
        raise UsageError("value has no canonical form", cause=str(error), next_step="use finite numbers") from error
    return text.encode("ascii")


def parse_canonical(content: bytes, *, what: str, bytes_max: int) -> dict[str, object]:
    """Return the object that `canonical_json` wrote as `content`; `what` names it in errors.

    Size and nesting are bounded before the parser sees a byte, and only the canonical form is taken,
    which shuts out duplicate keys, lone surrogates, and numbers that two parsers may read differently.

    Raises:
        IntegrityError: too large, too deep, not JSON, not an object, or not in canonical form.
    """
    if len(content) > bytes_max:
        raise _unreadable(what, f"{len(content)} bytes, at most {bytes_max} are read")
    if (depth := nesting(content)) > JSON_NESTING_MAX:
        raise _unreadable(what, f"nested {depth} deep, at most {JSON_NESTING_MAX} levels are read")
    try:
        value = json.loads(content.decode("ascii"))
        same = canonical_json(value) == content
    except (ValueError, UsageError) as error:
        raise _unreadable(what, f"no JSON: {error}") from error
    if not isinstance(value, dict):
        raise _unreadable(what, "no JSON object")
    if not same:
        raise _unreadable(what, "not in canonical form")
    return cast("dict[str, object]", value)


def nesting(content: bytes) -> int:
    """Return how many brackets stand open at most; brackets inside strings count too, which only errs on refusal."""
    depth = deepest = 0
    for byte in content:
        if byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    return deepest


def _unreadable(what: str, cause: str) -> IntegrityError:
    return IntegrityError(f"{what} is refused", cause=cause, next_step="have the kernel compiled again")
