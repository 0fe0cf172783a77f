"""The epoch loop of a stack: all members train, are measured, judged and changed together."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from typing import Final

from torch import Tensor

from esper.core.clock import SYSTEM_CLOCK, Clock
from esper.core.digest import state_digest
from esper.core.ids import Digest
from esper.core.stacking import Recorder, ReplayCounts, StackGrafts
from esper.leyline import EventMessage
from esper.leyline import messages as ly
from esper.tolaria.loop._edge import check_verdict, outcome_of
from esper.tolaria.loop._hardware import hardware_context
from esper.tolaria.loop._packet import EpochStats, state_packet
from esper.tolaria.loop._trainer import TrainingResult
from esper.tolaria.record._journal import Answer, RunInterrupted, latency_ms
from esper.tolaria.stack._evaluation import evaluate_stack
from esper.tolaria.stack._journal import StackJournal
from esper.tolaria.stack._setup import StackSetup
from esper.tolaria.stack._steps import StackSteps
from esper.tolaria.tasks._evaluation import Evaluation

#: A stack has one attempt: a dead one's runs end as failed, for its members are computed together or not at all.
ATTEMPT: Final = 1


class StackTrainer:
    """Trains every member of a stack, epoch by epoch; use it inside the block that made its set-up.

    What each member computes is a function of the stack's requests and of all its members' outcomes. With a `recorder`
    (`esper.core.stacking.recorder_for` the device) the steps of an epoch are replays of one of them.
    """

    def __init__(
        self,
        setup: StackSetup,
        grafts: StackGrafts,
        journal: StackJournal,
        *,
        stop: threading.Event | None = None,
        clock: Clock = SYSTEM_CLOCK,
        recorder: Recorder | None = None,
    ) -> None:
        self._setup = setup
        self._grafts = grafts
        self._journal = journal
        self._stop = stop or threading.Event()
        self._clock = clock
        self._steps = StackSteps(setup, grafts, recorder=recorder)
        self._host_parameters = sum(each.numel() for each in setup.host.template.parameters())
        #: Epochs whose outcomes are appended.
        self.epochs_finished = 0
        #: Whether each member goes on: one whose held-out loss is no finite number is over.
        self.live = [True] * len(setup.members)

    @property
    def host_parameters(self) -> int:
        """Parameters of one host."""
        return self._host_parameters

    @property
    def step_counts(self) -> ReplayCounts:
        """How the steps so far were taken."""
        return self._steps.counts

    def weights(self) -> list[Mapping[str, Tensor]]:
        """Return each member's network by name, on the CPU: the host's tensors, and the seeds'."""
        parameters = self._setup.host.parameters
        hosts = parameters.views(parameters.flat_NP.detach().cpu())
        seeds = self._grafts.weights()
        return [
            {**{name: tensor[member] for name, tensor in hosts.items()}, **seeds[member]}
            for member in range(len(self._setup.members))
        ]

    def digests(self) -> list[Digest]:
        """Return each member's state digest: that of a lone run with the same weights."""
        return [state_digest(weights) for weights in self.weights()]

    def run(self) -> list[TrainingResult | None]:
        """Train what is left and return what came of each member; None for one that diverged.

        Raises:
            RunInterrupted: the stop event was set.
            BrokerUnavailable, IntegrityError: from the journal.
        """
        for epoch in range(self.epochs_finished + 1, self._setup.first.config.epochs + 1):
            if not any(self.live):
                break
            self.run_epoch(epoch)
        return self.results()

    def run_epoch(self, epoch: int) -> None:
        """Train one epoch and go through its edge; epochs come in order, from 1."""
        self._close(self.train_epoch(epoch))
        self.epochs_finished = epoch

    def train_epoch(self, epoch: int) -> dict[int, ly.SystemStatePacket]:
        """Train one epoch and settle faults; return the packets of those that go on, which are not appended yet."""
        assert epoch == self.epochs_finished + 1, "epochs come in order, each once"
        if self._stop.is_set():
            raise RunInterrupted(f"stack {self._setup.first.request.stack.stack_id} was interrupted")
        began = self._clock.monotonic()
        tables = self._steps.epoch(epoch)
        self._grafts.close_epoch()
        stats = self._steps.stats(epoch, tables, seconds=self._clock.monotonic() - began)
        measured = self._settle_faults(epoch)
        self._end_diverged(epoch, measured)
        return self._packets(stats, measured)

    def _evaluated(self) -> list[Evaluation]:
        return evaluate_stack(self._setup.host, self._setup.first.probe, self._grafts.quiet_tap())

    def _settle_faults(self, epoch: int) -> list[Evaluation]:
        """Measure hosts and seeds on the probe; append and fold the moves that faults force; measure anew after any."""
        measured = self._evaluated()
        events = self._grafts.end_epoch(epoch, [each.loss for each in measured])
        forced = {member: events[member] for member in self._members() if events[member]}
        if not forced:
            return measured
        self._journal.append_seed_events(epoch, forced)
        self._fold(forced)
        return self._evaluated()

    def _members(self) -> list[int]:
        return [member for member, live in enumerate(self.live) if live]

    def _end_diverged(self, epoch: int, measured: Sequence[Evaluation]) -> None:
        for member in self._members():
            if not math.isfinite(measured[member].loss):
                self.live[member] = False
                detail = f"the held-out loss is {measured[member].loss} in epoch {epoch}"
                self._journal.append_diverged(member, epoch=epoch, detail=detail)

    def _packets(self, stats: Sequence[EpochStats], measured: Sequence[Evaluation]) -> dict[int, ly.SystemStatePacket]:
        hashed = self._setup.first.config.is_hashed(stats[0].epoch)
        digests: Sequence[str] = self.digests() if hashed else [""] * len(stats)
        grafts, hardware = self._grafts.members(), hardware_context(self._setup.device)
        return {
            member: state_packet(
                self._setup.members[member],
                grafts[member],
                stats[member],
                measured[member],
                parameters=self._host_parameters,
                weights_digest=digests[member],
                hardware=hardware,
            )
            for member in self._members()
        }

    def _close(self, packets: Mapping[int, ly.SystemStatePacket]) -> None:
        """Append the packets, have their commands, apply these, and append what became of each."""
        if not packets:
            return
        epoch = next(iter(packets.values())).current_epoch
        self._journal.append_states(packets)
        acknowledged = self._clock.monotonic()
        answers = self._journal.await_commands(packets)
        none = Answer()
        decisions = self._grafts.decide(
            [answers.get(member, none).command for member in range(len(self.live))],
            epoch=epoch,
            live=self.live,
            recorded=[answers.get(member, none).recorded for member in range(len(self.live))],
        )
        outcomes: dict[int, ly.CommandOutcome] = {}
        for member, packet in packets.items():
            decision, answer = decisions[member], answers[member]
            assert decision is not None, "a live member is judged"
            outcome = outcome_of(packet, answer, decision, attempt=ATTEMPT)
            outcome.latency_ms = latency_ms(acknowledged, self._clock)
            if answer.recorded is not None:
                check_verdict(outcome, answer.recorded)
            outcomes[member] = outcome
        events = {member: decisions[member].events for member in packets}  # type: ignore[union-attr]  # judged above
        for member, each in events.items():
            for event in each:
                event.meta.causation_id = event.meta.causation_id or outcomes[member].meta.causation_id
        self._journal.append_seed_events(epoch, events)
        self._journal.append_outcomes(outcomes)
        self._fold(events)

    def _fold(self, events: Mapping[int, Sequence[EventMessage]]) -> None:
        for member, each in events.items():
            for event in each:
                self._grafts.fold(member, event)
        self._grafts.commit()

    def results(self) -> list[TrainingResult | None]:
        """Return what training has come to, with the one look at the test part."""
        first, grafts = self._setup.first, self._grafts.members()
        tests = evaluate_stack(self._setup.host, first.task.test.to(self._setup.device), self._grafts.quiet_tap())
        validations, digests = self._evaluated(), self.digests()
        training = 3 * first.multiply_adds_per_sample * len(first.train) * self.epochs_finished
        return [
            TrainingResult(
                epochs=self.epochs_finished,
                test=tests[member],
                validation=validations[member],
                parameters=self._host_parameters + grafts[member].parameters(),
                multiply_adds=training + grafts[member].multiply_adds,
                multiply_adds_per_sample=first.multiply_adds_per_sample + grafts[member].multiply_adds_per_sample(),
                digest=digests[member],
                seeds=tuple(grafts[member].summaries()),
            )
            if live
            else None
            for member, live in enumerate(self.live)
        ]
