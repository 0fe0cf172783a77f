"""How a version and those that it descends from learned, round by round, as Simic's telemetry tells it."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final

from esper.leyline import messages as ly
from esper.oona import Fabric, PolicyBoard
from esper.weatherlight._policies._history import open_board

_ROUND: Final = "round"
_VERSION: Final = "policy_version"


def policy_curves(fabric: Fabric, version: str) -> dict[str, Any]:
    """Return the figures of each round of a version's line, oldest version first: the JSON of `esper policy curves`.

    `{"version", "line": [{"version", "rounds": [{"round": 1, "simic.policy.entropy": 0.9, ...}]}], "untold": []}`;
    `untold` names versions whose telemetry the log no longer holds, or that were trained in another one.

    Raises:
        UsageError: there is no such version.
        BrokerUnavailable, NotReadyError: the log could not be read.
    """
    with open_board(fabric) as board:
        board.read()
        line = _line(board, version)
    told = _told(fabric, set(line))
    return {
        "version": version,
        "line": [{"version": name, "rounds": told[name]} for name in line if name in told],
        "untold": [name for name in line if name not in told],
    }


def _line(board: PolicyBoard, version: str) -> list[str]:
    """Return a version after all that it descends from, as far as the log holds their updates."""
    update = board.update(version)  # Raises, naming those that there are.
    line = [version]
    known = board.read().versions
    while (parent := update.parent_policy_version) in known and parent not in line:
        line.insert(0, parent)
        update = board.update(parent)
    return line


def _told(fabric: Fabric, versions: set[str]) -> dict[str, list[dict[str, float]]]:
    rounds: defaultdict[str, dict[int, dict[str, float]]] = defaultdict(dict)
    places = [("telemetry", number) for number in range(fabric.topics["telemetry"].partitions)]
    with fabric.reader(dict.fromkeys(places, "begin")) as reader:
        for event in reader.read_to_end():
            if not isinstance(event.message, ly.TelemetryPacket) or event.message.source_subsystem != "simic":
                continue
            for point in event.message.metrics:
                name, number = point.attributes.get(_VERSION, ""), point.attributes.get(_ROUND, "")
                if name in versions and number.isdecimal():
                    figures = rounds[name].setdefault(int(number), {_ROUND: float(number)})
                    figures.setdefault(point.name, point.value)
    return {name: [by_round[number] for number in sorted(by_round)] for name, by_round in rounds.items()}
