"""What earlier attempts at a run left in the log, as a successor reads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from esper.leyline import EventMessage
from esper.leyline import messages as ly
from esper.oona import Event, Fabric
from esper.tolaria._claims import RUNS_TOPIC, Claimed
from esper.tolaria._recording import Recording

COMMANDS_TOPIC: Final = "adaptation-commands"
_STATE_TOPIC: Final = "system-state"
_SEEDS_TOPIC: Final = "seed-events"
#: A backlog of a million records is read in a minute or two; more than this means that nothing moves.
_READ_SECONDS: Final = 600.0


@dataclass(frozen=True)
class Past:
    """Recorded epochs and seed events of a run, and where the commands begin that may still be applied."""

    recording: Recording = field(default_factory=Recording)
    seed_events: Mapping[str, EventMessage] = field(default_factory=dict)
    commands_from: int | Literal["begin", "end"] = "end"


def read_past(fabric: Fabric, claimed: Claimed) -> Past:
    """Return what was recorded of a run before this attempt; a first attempt has no past.

    Raises:
        IntegrityError: the record lacks an epoch.
        NotReadyError: the partitions could not be read to their ends.
    """
    if claimed.attempt == 1:
        return Past()
    run_id = claimed.run_id
    with fabric.reader(
        {
            (_STATE_TOPIC, fabric.partition_of(_STATE_TOPIC, run_id)): "begin",
            (_SEEDS_TOPIC, fabric.partition_of(_SEEDS_TOPIC, run_id)): "begin",
            (RUNS_TOPIC, claimed.partition): claimed.first_offset,
        }
    ) as reader:
        return past_of([event for event in reader.read_to_end(_READ_SECONDS) if event.meta.subject == run_id])


def past_of(events: Iterable[Event]) -> Past:
    """Return the past that a run's own events make, each topic in log order; pure.

    Outcomes that a fenced attempt appended after a higher attempt's claim count for nothing.
    """
    packets: list[ly.SystemStatePacket] = []
    outcomes: list[ly.CommandOutcome] = []
    seed_events: dict[str, EventMessage] = {}
    attempt = 0
    for event in events:
        message = event.message
        if isinstance(message, ly.TrainingRunClaimed):
            attempt = max(attempt, message.attempt)
        elif isinstance(message, ly.SystemStatePacket):
            packets.append(message)
        elif isinstance(message, ly.CommandOutcome) and message.attempt >= attempt:
            outcomes.append(message)
        elif isinstance(message, ly.SeedStageChanged | ly.GateEvaluated | ly.SeedMoveRejected):
            seed_events.setdefault(event.meta.event_id, message)
    recording = Recording.of(packets, outcomes)
    applied = [outcome.command_offset for outcome in recording.outcomes.values() if outcome.command_event_id]
    return Past(recording, seed_events, max(applied) + 1 if applied else "begin")
