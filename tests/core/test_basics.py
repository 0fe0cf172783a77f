"""Clock, ids, randomness, settings and errors."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.core import errors, ids, rng
from esper.core.clock import SYSTEM_CLOCK, Deadline, ManualClock
from esper.core.settings import load_settings


def test_a_deadline_is_shared_by_every_wait() -> None:
    """Goal: one deadline for a whole operation. Method: let a manual clock pass through it."""
    clock = ManualClock()
    deadline = Deadline(2.0, clock=clock)
    clock.sleep(1.5)
    assert deadline.remaining_seconds == pytest.approx(0.5)
    assert not deadline.expired
    clock.advance(1.0)
    assert deadline.expired
    assert deadline.remaining_seconds == 0.0
    assert clock.slept_seconds == [1.5]
    assert clock.now_ns() == ManualClock().wall_ns + 2_500_000_000


def test_the_system_clock_goes_forward() -> None:
    """Goal: the real clock is wired. Method: two readings around a short wait."""
    before, wall = SYSTEM_CLOCK.monotonic(), SYSTEM_CLOCK.now_ns()
    SYSTEM_CLOCK.sleep(0.001)
    assert SYSTEM_CLOCK.monotonic() > before
    assert SYSTEM_CLOCK.now_ns() >= wall


@given(st.lists(st.text(max_size=4), min_size=1, max_size=4), st.lists(st.text(max_size=4), min_size=1, max_size=4))
def test_derived_ids_differ_when_their_parts_do(left: list[str], right: list[str]) -> None:
    """Goal: no two sets of parts share an id. Method: random parts, also moved across borders."""
    assert (ids.derive_id(*left) == ids.derive_id(*right)) == (left == right)


def test_derived_ids_never_change() -> None:
    """Goal: old logs keep their ids. Method: two recorded values."""
    assert ids.derive_id("run-1", "state", 3) == "7d0257a4cd030a796bf2b60a6613fddf"
    assert rng.derive_seed(7, "host") == 1_264_890_983_315_353_883


def test_fresh_ids_are_fresh() -> None:
    """Goal: random ids do not repeat. Method: a thousand of each kind."""
    for make in (ids.new_event_id, ids.new_run_id, lambda: ids.new_producer_id("tamiyo"), rng.new_secret):
        assert len({make() for _ in range(1000)}) == 1000
    assert len(ids.new_event_id()) == 32
    assert ids.sha256_hex(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_a_forked_process_has_ids_of_its_own() -> None:
    """Goal: what was drawn ahead is nobody else's. Method: fork after a first id, and compare the next ones of both."""
    ids.new_event_id()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, "".join(ids.new_event_id() for _ in range(100)).encode())
        finally:
            os._exit(0)
    mine = {ids.new_event_id() for _ in range(100)}
    os.waitpid(child, 0)
    written = os.read(reading, 65_536).decode()
    os.close(reading)
    os.close(writing)
    theirs = {written[at : at + 32] for at in range(0, len(written), 32)}
    assert (len(mine), len(theirs), len(mine | theirs)) == (100, 100, 200)


def test_threads_share_no_id() -> None:
    """Goal: an id is given once. Method: eight threads draw at the same time."""
    with ThreadPoolExecutor(8) as pool:
        drawn = list(pool.map(lambda _: [ids.new_event_id() for _ in range(2_000)], range(8)))
    assert len({one for some in drawn for one in some}) == 16_000


@given(seconds=st.floats(0.001, 100.0))
def test_jitter_keeps_at_least_half(seconds: float) -> None:
    """Goal: retries spread but never hurry. Method: random waits."""
    assert seconds / 2 <= rng.jitter(seconds) <= seconds


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Goal: variables reach the fields. Method: set three, read them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ESPER_HOME", "/x/home")
    monkeypatch.setenv("ESPER_LEYLINE_SECRET", "canary" * 8)
    monkeypatch.setenv("ESPER_KAFKA_BOOTSTRAP", "kafka:9092")
    settings = load_settings()
    assert settings.home == Path("/x/home")
    assert not settings.loopback
    assert "canary" not in repr(settings)


@pytest.mark.parametrize(
    ("name", "value"), [("ESPER_LOG_LEVEL", "LOUD"), ("ESPER_BROKER_PORT", "80"), ("ESPER_CONNECT_SECONDS", "soon")]
)
def test_a_bad_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """Goal: a clear message for each malformed variable. Method: set it, read the error."""
    monkeypatch.setenv(name, value)
    with pytest.raises(errors.SettingsError, match=name):
        load_settings()


def test_errors_read_as_one_line() -> None:
    """Goal: what, why, next step. Method: all parts and only some."""
    error = errors.BrokerUnavailable("no broker answered", cause="refused", next_step="Run `esper up`")
    assert str(error) == "no broker answered: refused. Run `esper up`"
    assert (error.exit_code, error.retriable) == (3, True)
    assert str(errors.IntegrityError("digest differs")) == "digest differs"
    assert (errors.IntegrityError.exit_code, errors.SecretError.retriable) == (4, False)
