"""What earlier attempts at a run left in the log, as a successor reads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from esper.core.errors import UsageError
from esper.leyline import EventMessage
from esper.leyline import messages as ly
from esper.oona import AtTime, Event, Fabric, offsets_at
from esper.tolaria.record._keepers import restorable
from esper.tolaria.record._recording import Recording
from esper.tolaria.worker._claims import RUNS_TOPIC, Claimed

COMMANDS_TOPIC: Final = "adaptation-commands"
_STATE_TOPIC: Final = "system-state"
_SEEDS_TOPIC: Final = "seed-events"
_SEED_EVENTS: Final = (
    ly.SeedStageChanged,
    ly.GateEvaluated,
    ly.SeedMoveRejected,
    ly.SeedTuned,
    ly.KernelQuarantined,
)
#: A backlog of a million records is read in a minute or two; more than this means that nothing moves.
_READ_SECONDS: Final = 600.0
#: Append times are those of the brokers that lead each partition, whose clocks differ a little.
_CLOCKS_APART_MS: Final = 60_000


@dataclass(frozen=True)
class Past:
    """Recorded epochs, seed events and checkpoints of a run; `starts` are its attempts' TrainingRunStarted."""

    recording: Recording = field(default_factory=Recording)
    seed_events: Mapping[str, EventMessage] = field(default_factory=dict)
    checkpoints: tuple[ly.CheckpointSaved, ...] = ()
    starts: tuple[ly.TrainingRunStarted, ...] = ()
    finished: ly.TrainingRunFinished | None = None
    #: Epochs at whose edges a RunRolledBack is in the log.
    returned: frozenset[int] = frozenset()

    def unsaid_returns(self) -> list[ly.CommandOutcome]:
        """Return the outcomes of returns to a checkpoint whose own event a dead attempt did not append any more."""
        outcomes = self.recording.outcomes.values()
        return [one for one in outcomes if one.HasField("rolled_back") and one.epoch not in self.returned]


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


def read_origin(fabric: Fabric, request: ly.TrainingRunRequested) -> Recording:
    """Return the epochs that a fork takes from another run; none for a run that is no fork.

    Raises:
        UsageError: the log does not hold so many epochs of that run.
        IntegrityError: its record lacks an epoch.
        NotReadyError: the partitions could not be read to their ends.
    """
    origin, epochs = request.forked_from, request.forked_epochs
    if not origin or not epochs:
        return Recording()
    places = [(topic, fabric.partition_of(topic, origin)) for topic in (_STATE_TOPIC, RUNS_TOPIC)]
    with fabric.reader(dict.fromkeys(places, "begin")) as reader:
        events = [event for event in reader.read_to_end(_READ_SECONDS) if event.meta.subject == origin]
    recording = past_of(events).recording
    if recording.epochs < epochs:
        raise UsageError(
            f"run {request.run_id} cannot be forked from epoch {epochs} of run {origin}",
            cause=f"the log holds {recording.epochs} finished epochs of it",
            next_step=f"`esper runs show {origin}` lists them",
        )
    return recording.until(epochs)


def past_of(events: Iterable[Event]) -> Past:
    """Return the past that a run's own events make, each topic in log order; pure.

    What a fenced attempt appended to the run's partition after a higher attempt's claim counts for nothing.
    """
    packets: list[ly.SystemStatePacket] = []
    outcomes: list[ly.CommandOutcome] = []
    seed_events: dict[str, EventMessage] = {}
    checkpoints: list[ly.CheckpointSaved] = []
    starts: list[ly.TrainingRunStarted] = []
    finished: ly.TrainingRunFinished | None = None
    returned: set[int] = set()
    attempt = 0
    for event in events:
        message = event.message
        if isinstance(message, ly.TrainingRunClaimed):
            attempt = max(attempt, message.attempt)
        elif isinstance(message, ly.SystemStatePacket):
            packets.append(message)
        elif isinstance(message, ly.CommandOutcome) and message.attempt >= attempt:
            outcomes.append(message)
        elif isinstance(message, _SEED_EVENTS):
            seed_events.setdefault(event.meta.event_id, message)
        elif isinstance(message, ly.CheckpointSaved) and message.attempt >= attempt:
            checkpoints.append(message)
        elif isinstance(message, ly.TrainingRunStarted) and message.attempt >= attempt:
            starts.append(message)
        elif isinstance(message, ly.RunRolledBack):
            returned.add(message.from_epoch)
        elif isinstance(message, ly.TrainingRunFinished) and message.attempt >= attempt:
            finished = finished or message
    return Past(
        Recording.of(packets, outcomes), seed_events, tuple(checkpoints), tuple(starts), finished, frozenset(returned)
    )


def starts_of(past: Past) -> tuple[ly.CheckpointSaved | None, ...]:
    """Return where a successor may begin, the best first: each usable checkpoint, and None, the run's beginning."""
    return (*restorable(past.checkpoints, past.recording.outcomes, until=past.recording.epochs), None)


def first_command(fabric: Fabric, claimed: Claimed) -> int:
    """Return the offset in the run's partition of commands before which none can be for this run.

    Every attempt begins there: an operator's command may wait for epochs that no attempt has reached yet.

    Raises:
        BrokerUnavailable: no broker answered.
    """
    place = (COMMANDS_TOPIC, fabric.partition_of(COMMANDS_TOPIC, claimed.run_id))
    requested = AtTime(max(0, claimed.requested_ms - _CLOCKS_APART_MS))
    return offsets_at(fabric, requested, [place])[place]
