"""A recorded run, and the journals that hold a repeat of it against the record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

from esper.core.errors import IntegrityError
from esper.leyline import EventMessage
from esper.leyline import messages as ly
from esper.tolaria.record._journal import Answer, TrainingJournal

_Event = TypeVar("_Event")
#: What two attempts at one run must give alike, in the order in which a difference is looked for.
_COMPARED_FIELDS: Final = (
    "weights_digest",
    "global_step",
    "training_loss",
    "validation_loss",
    "validation_accuracy",
    "parameters",
    "multiply_adds",
    "multiply_adds_per_sample",
)
_COMPARED_SEED_FIELDS: Final = ("seed_id", "stage", "slot", "blueprint_id", "alpha", "age_epochs", "stage_epochs")


@dataclass(frozen=True)
class Difference:
    """Where a repeat first left the record: the field, as the log has it and as it came out now."""

    epoch: int
    field: str
    recorded: str
    repeated: str


class NotRepeated(IntegrityError):
    """A run that was computed again did not come out as the log says."""

    def __init__(self, run_id: str, difference: Difference) -> None:
        super().__init__(
            f"epoch {difference.epoch} of run {run_id} does not repeat",
            cause=f"{difference.field} is {difference.repeated}, the log says {difference.recorded}",
            next_step="Compare the numerics of both attempts; `esper verify` shows whether records were altered",
        )
        self.run_id = run_id
        self.difference = difference


class RecordingEnded(Exception):
    """A repeat asked for more than was recorded."""


@dataclass(frozen=True)
class Recording:
    """The state packets and outcomes of one run by epoch; of two for one epoch the first in the log counts."""

    packets: Mapping[int, ly.SystemStatePacket] = field(default_factory=dict)
    outcomes: Mapping[int, ly.CommandOutcome] = field(default_factory=dict)

    @classmethod
    def of(cls, packets: Iterable[ly.SystemStatePacket], outcomes: Iterable[ly.CommandOutcome]) -> Recording:
        """Return the recording that these events, in log order, make.

        Raises:
            IntegrityError: an epoch is missing before a later one, or an outcome has no packet.
        """
        by_epoch = _first_by_epoch((packet.current_epoch, packet) for packet in packets)
        answered = _first_by_epoch((outcome.epoch, outcome) for outcome in outcomes)
        _check_complete("state packet", by_epoch)
        _check_complete("outcome", answered)
        if len(answered) > len(by_epoch):
            raise IntegrityError(
                "the record of the run is incomplete",
                cause=f"it has {len(answered)} outcomes, but {len(by_epoch)} state packets",
                next_step="`esper verify` shows what was lost",
            )
        return cls(by_epoch, answered)

    @property
    def epochs(self) -> int:
        """Epochs that are over: those with an outcome."""
        return len(self.outcomes)

    def returns(self) -> dict[int, ly.RunRolledBack]:
        """Return every return to a checkpoint, by the epoch at whose edge it was done."""
        return {epoch: one.rolled_back for epoch, one in self.outcomes.items() if one.HasField("rolled_back")}

    def until(self, epoch: int) -> Recording:
        """Return the recording of the epochs up to `epoch`."""
        return Recording(
            {number: packet for number, packet in self.packets.items() if number <= epoch},
            {number: outcome for number, outcome in self.outcomes.items() if number <= epoch},
        )


class RecordedJournal:
    """Replays recorded outcomes in silence: appends nothing, and raises where the repeat leaves the record.

    Every method raises RecordingEnded for an epoch that was not recorded.
    """

    def __init__(self, recording: Recording) -> None:
        self._recording = recording

    def append_seed_events(self, epoch: int, events: Sequence[EventMessage]) -> None:
        """Let recorded events pass: they are in the log already."""

    def append_state(self, packet: ly.SystemStatePacket) -> None:
        """Hold the repeated packet against the recorded one.

        Raises:
            NotRepeated: they differ.
        """
        recorded = self._recording.packets.get(packet.current_epoch)
        if recorded is None:
            raise RecordingEnded
        difference = first_difference(recorded, packet)
        if difference is not None:
            raise NotRepeated(packet.training_run_id, difference)

    def await_command(self, packet: ly.SystemStatePacket) -> Answer:
        """Return the recorded answer at once."""
        outcome = self._recording.outcomes.get(packet.current_epoch)
        if outcome is None:
            raise RecordingEnded
        return Answer.of(outcome)

    def append_outcome(self, outcome: ly.CommandOutcome) -> None:
        """Let the recorded outcome pass: it is in the log already."""

    def append_return(self, outcome: ly.CommandOutcome) -> None:
        """Let the recorded return pass: the outcome says it already."""

    def submit_telemetry(self, epoch: int, packet: ly.TelemetryPacket) -> None:
        """Say nothing: the epoch was told of when it was lived."""


class ResumingJournal:
    """Repeats what a dead attempt recorded, then goes on live.

    An epoch whose packet was recorded but not its outcome is half over: its packet is compared and not
    appended again, its command is waited for live.
    """

    def __init__(self, recording: Recording, live: TrainingJournal) -> None:
        self._recording = recording
        self._recorded = RecordedJournal(recording)
        self._live = live

    def append_seed_events(self, epoch: int, events: Sequence[EventMessage]) -> None:
        self._of_edge(epoch).append_seed_events(epoch, events)

    def append_state(self, packet: ly.SystemStatePacket) -> None:
        if packet.current_epoch in self._recording.packets:
            self._recorded.append_state(packet)
        else:
            self._live.append_state(packet)

    def await_command(self, packet: ly.SystemStatePacket) -> Answer:
        return self._of_edge(packet.current_epoch).await_command(packet)

    def append_outcome(self, outcome: ly.CommandOutcome) -> None:
        self._of_edge(outcome.epoch).append_outcome(outcome)

    def append_return(self, outcome: ly.CommandOutcome) -> None:
        self._of_edge(outcome.epoch).append_return(outcome)

    def submit_telemetry(self, epoch: int, packet: ly.TelemetryPacket) -> None:
        self._of_edge(epoch).submit_telemetry(epoch, packet)

    def _of_edge(self, epoch: int) -> TrainingJournal:
        return self._recorded if epoch in self._recording.outcomes else self._live


class ForkingJournal:
    """Lives the first epochs of a fork as its origin did, and goes on live.

    They are computed again and held against the origin's packets, their commands are its own, and all of it is
    appended: the fork's record is whole without its origin's.
    """

    def __init__(self, origin: Recording, live: TrainingJournal) -> None:
        self._origin = origin
        self._recorded = RecordedJournal(origin)
        self._live = live

    def append_seed_events(self, epoch: int, events: Sequence[EventMessage]) -> None:
        self._live.append_seed_events(epoch, events)

    def append_state(self, packet: ly.SystemStatePacket) -> None:
        if packet.current_epoch in self._origin.packets:
            self._recorded.append_state(packet)
        self._live.append_state(packet)

    def await_command(self, packet: ly.SystemStatePacket) -> Answer:
        if packet.current_epoch not in self._origin.outcomes:
            return self._live.await_command(packet)
        # Whatever came too late for the origin came too late for the origin.
        return replace(self._recorded.await_command(packet), late=(), unlisted=0)

    def append_outcome(self, outcome: ly.CommandOutcome) -> None:
        self._live.append_outcome(outcome)

    def append_return(self, outcome: ly.CommandOutcome) -> None:
        self._live.append_return(outcome)

    def submit_telemetry(self, epoch: int, packet: ly.TelemetryPacket) -> None:
        self._live.submit_telemetry(epoch, packet)


def first_difference(recorded: ly.SystemStatePacket, repeated: ly.SystemStatePacket) -> Difference | None:
    """Return the first field in which two packets of one epoch differ although they must not; None if none does."""
    pairs = [(name, getattr(recorded, name), getattr(repeated, name)) for name in _COMPARED_FIELDS]
    if recorded.HasField("growth"):  # Packets did not always tell of it.
        pairs.append(("growth", str(recorded.growth), str(repeated.growth)))
    pairs.append(("seed_states", _seed_facts(recorded), _seed_facts(repeated)))
    for name, expected, found in pairs:
        # repr tells apart what == does not: two NaNs are alike, 0.0 and -0.0 are not.
        if repr(expected) != repr(found):
            return Difference(repeated.current_epoch, name, repr(expected), repr(found))
    return None


def _seed_facts(packet: ly.SystemStatePacket) -> list[tuple[Any, ...]]:
    return [tuple(getattr(seed, name) for name in _COMPARED_SEED_FIELDS) for seed in packet.seed_states]


def _first_by_epoch(events: Iterable[tuple[int, _Event]]) -> dict[int, _Event]:
    found: dict[int, _Event] = {}
    for epoch, event in events:
        found.setdefault(epoch, event)
    return dict(sorted(found.items()))


def _check_complete(what: str, by_epoch: Mapping[int, object]) -> None:
    missing = set(range(1, len(by_epoch) + 1)) - by_epoch.keys()
    if missing:
        raise IntegrityError(
            "the record of the run is incomplete",
            cause=f"the {what} of epoch {min(missing)} is missing",
            next_step="`esper verify` shows what was lost",
        )
