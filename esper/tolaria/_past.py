"""What earlier attempts at a run left in the log, as a successor reads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from esper.leyline import EventMessage
from esper.leyline import messages as ly
from esper.oona import AtTime, Event, Fabric, offsets_at
from esper.tolaria._claims import RUNS_TOPIC, Claimed
from esper.tolaria._recording import Recording

COMMANDS_TOPIC: Final = "adaptation-commands"
_STATE_TOPIC: Final = "system-state"
_SEEDS_TOPIC: Final = "seed-events"
#: A backlog of a million records is read in a minute or two; more than this means that nothing moves.
_READ_SECONDS: Final = 600.0
#: Append times are those of the brokers that lead each partition, whose clocks differ a little.
_CLOCKS_APART_MS: Final = 60_000


@dataclass(frozen=True)
class Past:
    """Recorded epochs and seed events of a run."""

    recording: Recording = field(default_factory=Recording)
    seed_events: Mapping[str, EventMessage] = field(default_factory=dict)


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
        elif isinstance(message, ly.SeedStageChanged | ly.GateEvaluated | ly.SeedMoveRejected | ly.KernelQuarantined):
            seed_events.setdefault(event.meta.event_id, message)
    return Past(Recording.of(packets, outcomes), seed_events)


def first_command(fabric: Fabric, claimed: Claimed) -> int:
    """Return the offset in the run's partition of commands before which none can be for this run.

    Every attempt begins there: an operator's command may wait for epochs that no attempt has reached yet.

    Raises:
        BrokerUnavailable: no broker answered.
    """
    place = (COMMANDS_TOPIC, fabric.partition_of(COMMANDS_TOPIC, claimed.run_id))
    requested = AtTime(max(0, claimed.requested_ms - _CLOCKS_APART_MS))
    return offsets_at(fabric, requested, [place])[place]
