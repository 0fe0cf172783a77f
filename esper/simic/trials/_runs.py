"""Runs of an evaluation as the log holds them: a fold of their events, with nothing summed up on the way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from esper.leyline import messages as ly
from esper.oona import Event
from esper.simic.trials._places import Place, place_of

#: Ends that say nothing of the arm: whoever trained the run went away, or was told to.
LOST: Final = frozenset({"cancelled", "stack_lost", "worker_lost", "not_claimed"})


@dataclass(frozen=True)
class Epoch:
    """What the packet of one epoch says; `multiply_adds` of the whole training so far."""

    epoch: int
    train_loss: float
    val_loss: float
    val_accuracy: float
    multiply_adds: int
    parameters: int


@dataclass(frozen=True)
class Decider:
    """Who decided, as a decision names it."""

    policy: str
    version: str
    digest: str


@dataclass(frozen=True)
class TrialRun:
    """One run of an evaluation; `status` is "open", "finished" or "failed"."""

    run_id: str
    place: Place
    request: ly.TrainingRunRequested
    status: str
    reason: str
    finished: ly.TrainingRunFinished | None
    initial_digest: str
    data_digest: str
    code_version: str
    numerics: str
    #: Of the request, in its partition: which of two runs of one place was asked for first.
    offset: int
    curve: tuple[Epoch, ...]
    deciders: frozenset[Decider]
    decisions: int
    #: seed id -> digest of the kernel that was grafted.
    kernels: Mapping[str, str]
    #: From its start to its end by the broker's clock, shared among the members of its stack. Decides nothing.
    seconds: float

    @property
    def lost(self) -> bool:
        """Whether it ended without saying anything of its arm."""
        return self.status == "failed" and self.reason in LOST

    @property
    def end(self) -> ly.TrainingRunFinished:
        """The end of a finished run."""
        assert self.finished is not None, "asked of finished runs alone"
        return self.finished


@dataclass
class _Folding:
    place: Place
    request: ly.TrainingRunRequested
    offset: int
    #: attempt -> producer that won it.
    winners: dict[int, str] = field(default_factory=dict)
    started: dict[int, tuple[ly.TrainingRunStarted, int]] = field(default_factory=dict)
    ending: ly.TrainingRunFinished | ly.TrainingRunFailed | None = None
    ended_ms: int = 0
    deciders: set[Decider] = field(default_factory=set)
    decided: set[int] = field(default_factory=set)
    kernels: dict[str, str] = field(default_factory=dict)
    packets: list[tuple[int, str, Epoch]] = field(default_factory=list)

    @property
    def attempt(self) -> int:
        return max(self.winners, default=0)

    def see(self, event: Event) -> None:
        message = event.message
        if isinstance(message, ly.TrainingRunClaimed) and message.attempt == self.attempt + 1:
            self.winners[message.attempt] = message.producer_id
        elif isinstance(message, ly.TrainingRunStarted) and self._counts(message.attempt, event):
            self.started.setdefault(message.attempt, (message, event.record.append_time_ms))
        elif isinstance(message, ly.TrainingRunFinished) and message.attempt == self.attempt:
            if self._counts(message.attempt, event):
                self._end(message, event)
        elif isinstance(message, ly.TrainingRunFailed) and message.attempt in {0, self.attempt}:
            self._end(message, event)
        elif isinstance(message, ly.CommandOutcome) and message.kernel_digest and message.seed_id:
            self.kernels.setdefault(message.seed_id, message.kernel_digest)
        elif isinstance(message, ly.SystemStatePacket):
            self.packets.append((message.attempt, event.meta.producer_id, _epoch(message)))
        elif isinstance(message, ly.DecisionMade):
            self.deciders.add(Decider(message.policy, message.policy_version, message.policy_digest))
            self.decided.add(message.epoch)

    def _counts(self, attempt: int, event: Event) -> bool:
        return self.winners.get(attempt) == event.meta.producer_id

    def _end(self, message: ly.TrainingRunFinished | ly.TrainingRunFailed, event: Event) -> None:
        if self.ending is None:
            self.ending, self.ended_ms = message, event.record.append_time_ms

    def _curve(self) -> tuple[Epoch, ...]:
        """Packets of those who held the run, by epoch, the highest attempt's where there are several."""
        chosen: dict[int, tuple[int, Epoch]] = {}
        for attempt, producer, packet in self.packets:
            known = chosen.get(packet.epoch)
            if self.winners.get(attempt) == producer and (known is None or attempt > known[0]):
                chosen[packet.epoch] = (attempt, packet)
        return tuple(chosen[epoch][1] for epoch in sorted(chosen))

    def run(self) -> TrialRun:
        finished = self.ending if isinstance(self.ending, ly.TrainingRunFinished) else None
        failed = self.ending if isinstance(self.ending, ly.TrainingRunFailed) else None
        started, began_ms = self.started.get(self.attempt, (ly.TrainingRunStarted(), self.ended_ms))
        return TrialRun(
            run_id=self.request.run_id,
            place=self.place,
            request=self.request,
            status="finished" if finished else "failed" if failed else "open",
            reason=failed.reason if failed else "",
            finished=finished,
            initial_digest=started.initial_digest,
            data_digest=started.data_digest,
            code_version=started.code_version,
            numerics=_numerics(started.numerics),
            offset=self.offset,
            curve=self._curve(),
            deciders=frozenset(self.deciders),
            decisions=len(self.decided),
            kernels=dict(self.kernels),
            seconds=max(0, self.ended_ms - began_ms) / 1000.0 / max(1, self.request.stack.size),
        )


class TrialLog:
    """Folds events of any runs into the runs of one plan. Requests must come before what follows from them."""

    def __init__(self, digest: str) -> None:
        self._digest = digest
        self._runs: dict[str, _Folding] = {}

    @property
    def run_ids(self) -> frozenset[str]:
        """Ids of the plan's runs so far."""
        return frozenset(self._runs)

    def see(self, events: Iterable[Event]) -> None:
        """Fold events; those of other runs are passed over."""
        for event in events:
            message = event.message
            if isinstance(message, ly.TrainingRunRequested):
                place = place_of(message.experiment_name, message.seed, self._digest)
                if place is not None:
                    self._runs.setdefault(message.run_id, _Folding(place, message, event.offset))
            elif (run := self._runs.get(event.meta.subject)) is not None:
                run.see(event)

    def runs(self) -> list[TrialRun]:
        """Return the plan's runs as they stand, in the order in which they were asked for."""
        return sorted((each.run() for each in self._runs.values()), key=lambda run: (run.offset, run.run_id))


def _epoch(packet: ly.SystemStatePacket) -> Epoch:
    return Epoch(
        epoch=packet.current_epoch,
        train_loss=packet.training_loss,
        val_loss=packet.validation_loss,
        val_accuracy=packet.validation_accuracy,
        multiply_adds=packet.multiply_adds,
        parameters=packet.parameters,
    )


def _numerics(numerics: ly.NumericsFingerprint) -> str:
    """Return what two runs' arithmetic is told apart by; how many were computed together is not."""
    return f"torch {numerics.torch} on {numerics.device}, {numerics.instruction_set}, {numerics.threads} threads"
