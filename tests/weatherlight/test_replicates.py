"""What pairs of forks say of a policy: arithmetic, requests, and what cannot be asked."""

from __future__ import annotations

from typing import Any

import pytest

from esper.core.errors import UsageError
from esper.core.ids import RunId
from esper.core.settings import load_settings
from esper.leyline import messages as ly
from esper.weatherlight import ForkRequest, replicate
from esper.weatherlight._replicates import Effect, student_quantile

ORIGIN = ly.TrainingRunRequested(run_id="run-origin", task="mnist1d", policy="heuristic", seed=7, epochs=10)
FORK = ForkRequest(ORIGIN, 4, policy="noop")


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.706205), (2, 4.302653), (4, 2.776445), (9, 2.262157), (99, 1.984217)]
)
def test_quantiles_are_those_of_the_tables(freedom: int, expected: float) -> None:
    """Goal: honest intervals. Method: the 97.5 % quantiles of Student's t, as printed in tables."""
    assert student_quantile(0.975, freedom) == pytest.approx(expected, abs=1e-5)


def test_an_interval_is_that_of_the_textbook() -> None:
    """Goal: the figure that is reported. Method: differences 1, 2, 3: mean 2, standard error 1 / sqrt(3)."""
    effect = Effect.of([1.0, 2.0, 3.0])
    assert (effect.mean, effect.high - effect.mean) == pytest.approx((2.0, 4.302653 / 3**0.5), abs=1e-5)
    assert effect.low == pytest.approx(4.0 - effect.high)


def test_pairs_draw_alike_and_differ_in_who_decides() -> None:
    """Goal: a paired experiment. Method: the requests of each pair, as they would be appended, and what is made of
    their ends."""
    asked: list[ly.TrainingRunRequested] = []

    def train(request: ForkRequest) -> dict[str, Any]:
        message = request.message(RunId(f"run-{len(asked)}"), load_settings(_env_file=None))
        asked.append(message)
        worth = 0.1 if message.policy == "heuristic" else 0.0
        return {
            "run_id": message.run_id,
            "accuracy": 0.5 + worth + 0.01 * message.replicate,
            "loss": 1.0 - worth + 0.2 * (message.replicate * len(asked) % 3),
            "multiply_adds": 100,
            "parameters": 10,
        }

    document = replicate(FORK, 3, train)
    assert [(each.policy, each.replicate) for each in asked] == [
        (policy, number) for number in (1, 2, 3) for policy in ("heuristic", "noop")
    ]
    assert {(each.forked_from, each.forked_epochs, each.seed) for each in asked} == {("run-origin", 4, 7)}
    accuracy = document["effects"]["accuracy"]
    assert accuracy["mean"] == pytest.approx(-0.1)
    assert accuracy["low"] <= accuracy["mean"] <= accuracy["high"] < 0.0
    assert (accuracy["verdict"], document["effects"]["loss"]["verdict"]) == ("worse", "not clear")
    assert [pair["b"]["run_id"] for pair in document["pairs"]] == ["run-1", "run-3", "run-5"]


@pytest.mark.parametrize(
    ("request_", "count", "words"),
    [
        (FORK, 1, "an interval needs pairs"),
        (FORK, 1001, "an interval needs pairs"),
        (ForkRequest(ORIGIN, 4), 3, "both arms of the comparison would be the same"),
    ],
)
def test_what_cannot_be_compared_is_refused(request_: ForkRequest, count: int, words: str) -> None:
    """Goal: nothing is trained in vain. Method: too few, too many, and a policy against itself."""
    with pytest.raises(UsageError) as refused:
        replicate(request_, count, lambda _: {})
    assert words in f"{refused.value} {refused.value.cause}"
