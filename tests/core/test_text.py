"""Text of others before it reaches a terminal or the log."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.core.text import printable, shown, unprintable

STRANGE = ["\x1b", "\n", "\x00", "\x7f", "\x9b", "\u2028", "\u202e", "\ud800", "\udcff"]


@pytest.mark.parametrize("one", STRANGE, ids=ascii)
def test_what_commands_a_terminal_or_fits_no_log_is_named(one: str) -> None:
    """Goal: escapes, line ends, turns of writing and surrogates are found. Method: each between plain letters."""
    named = unprintable(f"é{one}b")
    assert named.startswith("\\")
    assert named.isascii()
    assert printable(f"é{one}b") == f"é{named}b"


@given(st.text(alphabet=st.characters(blacklist_categories=())))
def test_what_is_printable_stays_and_the_rest_becomes_so(text: str) -> None:
    """Goal: nothing that is shown commands anything. Method: any text, surrogates among it, by hypothesis."""
    written = printable(text, limit=40)
    assert unprintable(written) == ""
    written.encode()
    if not unprintable(text):
        assert written == text[:40]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "None"),
        (True, "True"),
        (2.5, "2.5"),
        (-7, "-7"),
        (10**5000, "an integer of 16610 bits"),
        ("a\ud800\x1b", r"'a\ud800\x1b'"),
        ("x" * 1000, "'" + "x" * 80 + "'"),
        ([1, 2], "a list"),
    ],
    ids=["none", "truth", "fraction", "integer", "huge", "strange", "long", "list"],
)
def test_any_value_is_shown_in_bounds(value: object, words: str) -> None:
    """Goal: a message never fails over what it tells of. Method: the words of one value of each kind."""
    assert shown(value) == words
