"""Children that die are started again, within a budget; those that cannot live end the supervisor."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Event

import pytest

from esper.core.errors import Busy, NotReadyError, OperationFailed, UsageError
from esper.core.home import Home, live_members, member_lock
from esper.core.settings import load_settings
from esper.weatherlight import Member, Supervisor, check_subsystem, missing_members
from esper.weatherlight.__main__ import main
from esper.weatherlight._supervisor import _FINAL_EXIT_CODES, backoff_seconds, recent
from tests.conftest import RunningBroker
from tests.integration.driver import eventually, kill


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A home without a broker."""
    monkeypatch.setenv("ESPER_CONNECT_SECONDS", "1")
    return Home.create(load_settings(home=tmp_path / "home"))


def failure_of(supervisor: Supervisor) -> Exception:
    def failed() -> Exception | None:
        try:
            supervisor.check()
        except (NotReadyError, OperationFailed) as error:
            return error
        return None

    return eventually(failed, what="the supervisor gives up")


def test_waits_double_up_to_a_cap() -> None:
    """Goal: capped backoff. Method: the first waits and a late one."""
    assert [backoff_seconds(n) for n in (1, 2, 3, 4)] == [0.5, 1.0, 2.0, 4.0]
    assert backoff_seconds(50) == 30.0


def test_old_deaths_are_forgiven() -> None:
    """Goal: the budget is one of a window. Method: deaths before and inside it."""
    assert recent([0.0, 50.0, 130.0], now=160.0) == [50.0, 130.0]


def test_a_member_that_cannot_run_ends_the_supervisor(home: Home) -> None:
    """Goal: exit codes that no restart cures end it with the member's own words. Method: no broker is up."""
    with Supervisor(home, [Member("karn")]) as supervisor:
        error = failure_of(supervisor)
    assert isinstance(error, NotReadyError)
    assert "esper up" in str(error)
    assert "karn-0" in str(error)
    assert live_members(home) == []


def test_a_member_that_keeps_dying_opens_the_breaker(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: no endless restarts. Method: an interpreter that fails at once, waits cut short."""
    monkeypatch.setattr("esper.weatherlight._supervisor.jitter", lambda _: 0.0)
    monkeypatch.setattr("esper.weatherlight._supervisor.sys.executable", "/bin/false")
    with Supervisor(home, [Member("tamiyo")]) as supervisor:
        error = failure_of(supervisor)
    assert isinstance(error, OperationFailed)
    assert "exit code 1" in str(error)


def test_a_killed_member_lives_again(local_broker: RunningBroker) -> None:
    """Goal: a death is followed by another life under the same name. Method: SIGKILL a real member, then drain."""
    with Supervisor(local_broker.home, [Member("karn")]) as supervisor:
        assert supervisor.names == ["karn-0"]
        first = eventually(lambda: supervisor.pid("karn-0"), what="karn runs")
        eventually(lambda: [m for m in live_members(local_broker.home) if m.state == "running"], what="karn is at work")
        kill(first)
        second = eventually(lambda: (pid := supervisor.pid("karn-0")) != first and pid, what="karn runs again")
        assert second != first
        eventually(lambda: [m for m in live_members(local_broker.home) if m.state == "running"], what="karn is at work")
        supervisor.check()
    assert live_members(local_broker.home) == []


def test_a_member_that_another_process_is_stays_in_care(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: who was quicker may end. Method: hold the name while a child dies, see it kept, free it, see it run."""
    monkeypatch.setattr("esper.weatherlight._supervisor.jitter", lambda _: 0.0)
    monkeypatch.setattr("esper.weatherlight._supervisor._MISSING_SECONDS", 0.2)
    monkeypatch.setattr("esper.weatherlight._supervisor.sys.executable", "/bin/false")
    with Supervisor(home, [Member("tamiyo")]) as supervisor:
        with member_lock(home, "tamiyo-0"):
            eventually(lambda: any(child.start_at for child in supervisor._children), what="the child is put off")
            assert supervisor.names == ["tamiyo-0"]
            assert supervisor._children[0].deaths == []
            looked = supervisor._children[0].start_at
            eventually(lambda: supervisor._children[0].start_at > looked, what="it is looked for again")
            supervisor.check()
        assert "exit code 1" in str(failure_of(supervisor))


def test_a_name_that_is_taken_is_no_final_end(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: a holder that ends while we look costs nobody. Method: the exit code of a member whose name is held."""
    monkeypatch.setattr("esper.weatherlight.__main__.load_settings", lambda: load_settings(home=home.root))
    monkeypatch.setattr("esper.weatherlight.__main__.stop_with_parent", lambda _: None)
    monkeypatch.setattr("esper.weatherlight.__main__.stop_on_signals", Event)
    monkeypatch.setattr("esper.weatherlight.__main__.os.nice", lambda _: 0)
    with member_lock(home, "tamiyo-0"):
        assert main(["tamiyo", "0"]) not in _FINAL_EXIT_CODES


def test_members_that_are_there_are_not_missing(home: Home) -> None:
    """Goal: `train` starts only who is missing. Method: hold one member's lock."""
    with member_lock(home, "tamiyo-0"):
        missing = missing_members(home, ("karn", "tamiyo"))
        assert [member.name for member in missing] == ["karn-0"]
        assert [(m.name, m.pid, m.state) for m in live_members(home)] == [("tamiyo-0", os.getpid(), "starting")]
        with pytest.raises(Busy, match="tamiyo-0"), member_lock(home, "tamiyo-0"):
            pass


def test_unknown_subsystems_are_named() -> None:
    """Goal: a clear refusal. Method: a name that is none."""
    with pytest.raises(UsageError, match="projector"):
        check_subsystem("sauron")
