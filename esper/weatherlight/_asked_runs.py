"""What runs were asked to train, many at once."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from esper.leyline import messages as ly
from esper.oona import Fabric

_READ_SECONDS: Final = 600.0


def asked_for(fabric: Fabric, run_ids: Collection[str]) -> dict[str, tuple[str, str]]:
    """Return the task and the host of runs, by id; those whose request the log does not hold are left out.

    Raises:
        BrokerUnavailable, IntegrityError, NotReadyError: the log cannot be read.
    """
    places = [("run-requests", number) for number in range(fabric.topics["run-requests"].partitions)]
    wanted, asked = set(run_ids), dict[str, tuple[str, str]]()
    with fabric.reader(dict.fromkeys(places, "begin")) as reader:
        for event in reader.read_to_end(_READ_SECONDS):
            message = event.message
            if isinstance(message, ly.TrainingRunRequested) and message.run_id in wanted:
                asked.setdefault(message.run_id, (message.task, message.host))
    return asked
