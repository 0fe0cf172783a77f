"""What an operator wants of a whole run becomes a command, or is refused before anything stands in the log."""

from __future__ import annotations

import pytest

from esper.core.errors import UsageError
from esper.leyline import messages as ly
from esper.weatherlight._run_wishes import RUN_WISHES


def test_each_wish_is_its_command() -> None:
    """Goal: a word means one command. Method: every word, with what it takes."""
    made = {name: wish({}, "why") for name, wish in RUN_WISHES.items() if name != "optimizer"}
    assert {name: command.command_type for name, command in made.items()} == {
        "rollback": ly.COMMAND_ROLLBACK,
        "pause": ly.COMMAND_PAUSE,
        "resume": ly.COMMAND_PAUSE,
        "open_breaker": ly.COMMAND_CIRCUIT_BREAKER,
        "close_breaker": ly.COMMAND_CIRCUIT_BREAKER,
        "emergency": ly.COMMAND_EMERGENCY,
    }
    assert RUN_WISHES["rollback"]({"to_epoch": 4.0}, "").rollback_payload["to_epoch"] == 4
    assert RUN_WISHES["pause"]({"epochs": 3.0}, "").pause.epochs == 3
    assert made["resume"].pause.resume
    assert made["open_breaker"].circuit_breaker.desired_state == ly.CIRCUIT_STATE_OPEN
    assert made["close_breaker"].circuit_breaker.rationale == "why"
    assert made["emergency"].annotations["reason"] == "why"
    slower = RUN_WISHES["optimizer"]({"learning_rate_factor": 0.5}, "")
    assert dict(slower.optimizer_adjustment.hyperparameters) == {"learning_rate_factor": 0.5}


@pytest.mark.parametrize(
    ("name", "numbers", "said"),
    [
        ("rollback", {"to_epoch": 2.5}, "it is a whole number"),
        ("rollback", {"epoch": 2.0}, "rollback takes no 'epoch'"),
        ("pause", {"epochs": float("nan")}, "it is a whole number"),
        ("resume", {"epochs": 1.0}, "resume takes no 'epochs'"),
        ("optimizer", {}, "optimizer needs something to set"),
        ("optimizer", {"warmth": 1.0}, "optimizer takes no 'warmth'"),
        ("optimizer", {"weight_decay": 2.0}, "it is from 0 to 1"),
        ("emergency", {"level": 4.0}, "it takes no numbers"),
    ],
)
def test_a_wish_that_cannot_be_is_refused(name: str, numbers: dict[str, float], said: str) -> None:
    """Goal: a slip is named. Method: each wish with numbers that it does not take."""
    with pytest.raises(UsageError, match=said):
        RUN_WISHES[name](numbers, "")
