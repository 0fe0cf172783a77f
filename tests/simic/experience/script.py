"""Scripted runs as the events that Tamiyo would append, and what they are worth by a second, slow way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from esper.core.ids import new_run_id
from esper.leyline import messages as ly
from esper.oona import Fabric
from esper.simic.experience import TOPICS, RewardWeights, ranges_until_now
from esper.tamiyo._decide import decide
from esper.tamiyo._due import packet_to_decide, reports_due
from esper.tamiyo._state import RunState, fold
from tests.tamiyo.scripted_run import ScriptedRun, slot_state

WEIGHTS = RewardWeights(accuracy=1.0, loss=0.5, compute=-0.01, parameters=-0.001)


@dataclass
class Episode:
    """The decisions and reports of one run, in the order in which they are appended."""

    run: ScriptedRun
    decisions: list[ly.DecisionMade] = field(default_factory=list)
    reports: list[ly.FieldReport] = field(default_factory=list)

    def returned(self) -> float:
        """Return what the episode's rewards add up to, from the reports as they are: no array, no join."""
        reports = {report.decision_id: report for report in self.reports}
        figures = [reports[made.meta.event_id].metrics for made in self.decisions]
        first, last = self.decisions[0], figures[-1]
        price = figures[0]["multiply_adds_begin"] / first.epoch
        planned = dict(zip(first.observation_names, first.observation, strict=True))["epochs_planned"]
        total = 0.0
        for now, after in zip(figures, [*figures[1:], None], strict=True):
            then = {name: after[f"{name}_begin"] if after else last.get(f"{name}_end", math.nan) for name in _FIGURES}
            steps = {name: then[name] - now[f"{name}_begin"] for name in _FIGURES}
            if math.isnan(steps["validation_loss"]):  # After the last packet nothing was measured.
                continue
            parts = (
                WEIGHTS.accuracy * steps["validation_accuracy"],
                -WEIGHTS.loss * max(-1.0, min(1.0, steps["validation_loss"])),
                WEIGHTS.compute * steps["multiply_adds"] / (price * planned),
                WEIGHTS.parameters * steps["parameters"] / figures[0]["parameters_begin"],
            )
            total += sum(parts)
        return total


_FIGURES = ("validation_accuracy", "validation_loss", "multiply_adds", "parameters")


def episode(
    *, seed: int = 1, epochs: int = 12, slots: Sequence[str] = ("hidden",), policy: str = "random", fails: bool = False
) -> Episode:
    """Play a run whose every decision is drawn, and keep what is appended about it."""
    run = ScriptedRun(
        new_run_id(),
        epochs=epochs,
        policy=policy,
        slots=[slot_state(slot) for slot in slots],
        parameters={"act": 0.6} if policy == "random" else {},
        seed=seed,
    )
    found = Episode(run)
    state = fold(RunState(run.run_id), run.request())
    for _ in range(epochs):
        state = fold(state, run.next_packet())
        packet = packet_to_decide(state)
        assert packet is not None, "an open epoch waits for its decision"
        decision = decide(state, packet)
        found.decisions.append(decision.made)
        state = fold(fold(state, decision.made), decision.command)
        state = _reported(fold(state, run.apply(decision.command)), found)
    _reported(fold(state, run.failed() if fails else run.finished()), found)
    return found


def _reported(state: RunState, found: Episode) -> RunState:
    for report in reports_due(state):
        found.reports.append(report)
        state = fold(state, report)
    return state


def appended(fabric: Fabric, episodes: Sequence[Episode], *, twice: bool = False) -> list[ly.OffsetRange]:
    """Append episodes, interleaved as runs beside each other are; return the ranges that they came to lie in."""
    begins = {(one.topic, one.partition): one.end_offset for one in ranges_until_now(fabric)}
    with fabric.publisher("tamiyo") as publisher:
        for _ in range(2 if twice else 1):
            for place in range(max(len(each.decisions) for each in episodes)):
                for each in episodes:
                    if place < len(each.decisions):
                        made = each.decisions[place]
                        event_id = made.meta.event_id
                        publisher.submit(made, key=each.run.run_id, causation_id=made.state_event_id, event_id=event_id)
            for each in episodes:
                for report in each.reports:
                    publisher.submit(
                        report, key=each.run.run_id, causation_id=report.decision_id, event_id=report.report_id
                    )
    found = [one for one in ranges_until_now(fabric, since=begins) if one.topic in TOPICS]
    assert sum(one.end_offset - one.first_offset for one in found)
    return found
