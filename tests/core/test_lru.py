"""The store that caches are made of."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from esper.core.lru import SizedLru


def test_the_longest_unused_goes_first() -> None:
    """Goal: use keeps. Method: three that fit, one of them asked for, then a fourth."""
    held: SizedLru[int] = SizedLru(30)
    for name in "abc":
        held.put(name, ord(name), 10)
    assert held.get("a") == ord("a")
    held.put("d", 1, 10)
    assert [name for name, _ in held.items()] == ["c", "a", "d"]
    assert (held.bytes, held.evictions) == (30, 1)


def test_what_is_larger_than_the_whole_costs_nobody_a_place() -> None:
    """Goal: one giant empties no cache. Method: put it beside a small one, and in its place."""
    held: SizedLru[int] = SizedLru(30)
    held.put("small", 1, 10)
    held.put("giant", 2, 31)
    assert [name for name, _ in held.items()] == ["small"]
    held.put("small", 3, 31)
    assert (len(held), held.bytes) == (0, 0)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 12), st.booleans()), max_size=60))
def test_bytes_are_those_held_and_never_too_many(moves: list[tuple[str, int, bool]]) -> None:
    """Goal: the count is right after anything. Method: puts, reads and evictions at random against a plain dict."""
    held, sizes = SizedLru[int](20), dict[str, int]()
    for name, size, puts in moves:
        if puts:
            held.put(name, size, size)
            sizes[name] = size
        elif size > 6:
            held.evict([name])
        elif name in held:
            assert held.get(name) == sizes[name]
        assert held.bytes == sum(sizes[kept] for kept, _ in held.items()) <= 20
