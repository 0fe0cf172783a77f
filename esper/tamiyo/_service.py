"""Tamiyo as a member of the system: reads state packets, appends decisions, commands and reports.

The log is its only memory. On every assignment the assigned partitions are folded from their beginning before
anything is handled, and what the folded state still owes is appended at once; from then on each event is folded
and its run settled the same way. Whatever moment the process dies at, the next life reads how far the log got.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from esper.core.clock import SYSTEM_CLOCK, Clock
from esper.core.crash_points import crash_point
from esper.core.errors import NotReadyError
from esper.core.policy import Refusal, Term
from esper.leyline import messages as ly
from esper.oona import Event, Fabric, Publisher, Reader
from esper.tamiyo._decide import SOURCE, decide, policy_of
from esper.tamiyo._due import command_to_send, packet_to_decide, reports_due, superseded
from esper.tamiyo._facts import DecisionFacts, PacketFacts
from esper.tamiyo._follower import PolicyFollower
from esper.tamiyo._ledger import RunLedger
from esper.tamiyo._policies import LearnedPolicies
from esper.tamiyo._state import RunState
from esper.tamiyo._telemetry import decision_telemetry, refusal_telemetry, term_telemetry
from esper.tamiyo._watcher import PolicyWatcher
from esper.tamiyo.risk import RiskSources

_logger = logging.getLogger("esper.tamiyo")

GROUP = "esper.tamiyo"
_PACKETS, _REQUESTS = "system-state", "run-requests"
_SUBSCRIBED = (_PACKETS, "runs")
#: Everything that a run's state is folded from; all are keyed by run and have equally many partitions.
_FOLDED = (_REQUESTS, *_SUBSCRIBED, "decisions", "adaptation-commands", "field-reports")
_HANDLED = (
    ly.SystemStatePacket,
    ly.TrainingRunClaimed,
    ly.CommandOutcome,
    ly.TrainingRunFinished,
    ly.TrainingRunFailed,
)
#: How long one read of a rebuild waits, and so how soon a stop is noticed.
_READ_SECONDS = 1.0
#: A request precedes its run's first packet by far; reading its partition to the end takes milliseconds.
_REQUEST_SECONDS = 10.0


class TamiyoService:
    """One member of group esper.tamiyo, the only one that answers for its partitions.

    For each packet at most one decision and one command are ever appended, whatever dies when: their ids are
    derived, and the partition's own output is read before anything is handled. A decision is acknowledged by the
    log before its command is sent; reports and telemetry follow without being waited for.
    """

    def __init__(self, fabric: Fabric, *, instance: str = "tamiyo-0", clock: Clock = SYSTEM_CLOCK) -> None:
        self._fabric = fabric
        self._instance = instance
        self._clock = clock
        self._publisher: Publisher = fabric.publisher(SOURCE)
        self._risk = RiskSources.over(fabric, clock=clock)
        self._policies = LearnedPolicies(fabric, rejects=self._publisher, on_refused=self._tell_refusal)
        self._watcher = PolicyWatcher(fabric, self._policies, self._publisher, responsible=self._watches)
        self._follower = PolicyFollower(self._policies, on_term=self._tell_term, after_look=self._watcher.look)
        self._ledgers: dict[int, RunLedger] = {}
        #: Partitions whose state is what the log says; nothing of another is handled.
        self._rebuilt: set[int] = set()
        self._requests: Reader | None = None
        self._stop = threading.Event()

    def run(self, stop: threading.Event) -> None:
        """Answer packets until `stop` is set; everything appended is acknowledged when it returns.

        Raises:
            BrokerUnavailable: no broker answered for `settings.broker_retry_seconds`.
        """
        self._stop = stop
        consumer = self._fabric.consumer(
            group=GROUP,
            instance=self._instance,
            topics=_SUBSCRIBED,
            handlers=dict.fromkeys(_HANDLED, self._handle),
            publisher=self._publisher,
            on_assign=self._assigned,
        )
        try:
            self._follower.start()
            consumer.run(stop)
        finally:
            self._follower.close()
            self._watcher.close()
            self._policies.close()
            if self._requests is not None:
                self._requests.close()
            self._risk.close()
            self._publisher.close()

    def evaluate_epoch(self, packet: ly.SystemStatePacket) -> tuple[ly.DecisionMade, ly.AdaptationCommand]:
        """Return the decision about `packet` and its command, as this service would append them; append nothing.

        The packet is folded into the run's state; asked again with the same packet, the answer is the same while the
        run has not gone on. About a packet that a newer one followed, or whose attempt another replaced, the risk
        gate answers "continue", with the reason.
        Neither message holds what only a publisher knows: the rest of the meta and the issue time.

        Raises:
            NotReadyError: the packet's run is over and closed.
        """
        state = self._ledger(self._fabric.partition_of(_PACKETS, packet.meta.subject)).fold(packet)
        if state is None:
            raise NotReadyError(
                f"epoch {packet.current_epoch} of run {packet.meta.subject} is not decided",
                cause="the run is over",
                next_step="Ask about a run that goes on",
            )
        facts = state.packets[packet.current_epoch]
        policy = policy_of(state, facts, self._policies)
        surroundings = replace(self._risk.look(), superseded=superseded(state, packet.current_epoch))
        decision = decide(state, facts, policy, surroundings=surroundings)
        return decision.made, decision.command

    def _ledger(self, partition: int) -> RunLedger:
        return self._ledgers.setdefault(partition, RunLedger())

    # Events

    def _handle(self, event: Event) -> None:
        if event.partition not in self._rebuilt:
            raise NotReadyError(
                f"{event.topic}-{event.partition} is not handled",
                cause="its state was not rebuilt, because the service stops",
                next_step="The next life rebuilds it",
            )
        self._follower.check()
        ledger = self._ledger(event.partition)
        state = ledger.fold(event.message)
        if state is not None:
            self._settle(ledger, state.run_id)

    def _read_requests(self) -> None:
        """Fold the requests that were appended since the last look.

        A request stands in the log before its run's first packet, but in another topic, so the packet can be
        delivered first; deciding without the policy's parameters would make two equal runs differ.
        """
        if self._requests is not None:
            self._fold_all(self._requests.read_to_end(_REQUEST_SECONDS))

    def _fold_all(self, events: Iterable[Event]) -> None:
        for event in events:
            self._ledger(event.partition).fold(event.message)

    # Assignment

    def _assigned(self, places: Sequence[tuple[str, int]]) -> None:
        """Rebuild the state of the assigned partitions from the log, then append what it owes."""
        partitions = sorted({partition for _, partition in places})
        began = self._clock.monotonic()
        self._publisher.flush()  # what is still under way must be in the log before the log is asked what is in it
        for partition in partitions:
            self._ledgers[partition] = RunLedger()
        self._rebuilt.difference_update(partitions)
        events, request_positions = self._replay(partitions)
        if self._stop.is_set():  # not read to the end: what is owed is not known
            return
        self._rebuilt.update(partitions)
        if self._requests is not None:
            request_positions = {**self._requests.positions(), **request_positions}
            self._requests.close()
        self._requests = self._fabric.reader(request_positions)
        for partition in partitions:
            ledger = self._ledgers[partition]
            for run_id in ledger:
                self._settle(ledger, run_id)
        seconds = self._clock.monotonic() - began
        _logger.info("partitions %s rebuilt from %d events in %.2f s", partitions, events, seconds)

    def _replay(self, partitions: Collection[int]) -> tuple[int, dict[tuple[str, int], int]]:
        """Fold the partitions up to the ends they have now; return how many events, and where requests go on."""
        places = [(topic, partition) for topic in _FOLDED for partition in partitions]
        ends = {place: high for place, (_, high) in self._fabric.cluster.watermarks(places).items()}
        events = 0
        with self._fabric.reader(dict.fromkeys(places, "begin")) as reader:
            while any(reader.positions()[place] < end for place, end in ends.items()) and not self._stop.is_set():
                batch = reader.read(_READ_SECONDS)
                self._fold_all(batch)
                events += len(batch)
            positions = reader.positions()
        return events, {place: offset for place, offset in positions.items() if place[0] == _REQUESTS}

    # What the state owes

    def _settle(self, ledger: RunLedger, run_id: str) -> None:
        """Append whatever the run's state owes to the log; called again it appends nothing more."""
        state = ledger.state(run_id)
        if state is None:
            return
        packet = packet_to_decide(state)
        if packet is not None and state.request is None:
            self._read_requests()
            state = ledger.state(run_id) or state
            packet = packet_to_decide(state)
        if state.request is not None and state.request.stacked:  # Decided where the stack is trained.
            ledger.close_if_settled(run_id)
            return
        if packet is not None:
            crash_point("tamiyo.read")
        decided = self._append_decision(ledger, state, packet) if packet is not None else None
        state = ledger.state(run_id) or state
        unsent = command_to_send(state)
        if unsent is not None:
            self._append_command(ledger, state, unsent)
        if decided is not None:
            self._submit_telemetry(decided)
        for report in reports_due(ledger.state(run_id) or state):
            self._submit_report(ledger, report)
            crash_point("tamiyo.reported")
        ledger.close_if_settled(run_id)

    def _append_decision(self, ledger: RunLedger, state: RunState, packet: PacketFacts) -> ly.TelemetryPacket:
        """Decide, wait until the log has the decision, and return what to tell about it."""
        began = self._clock.monotonic()
        policy = policy_of(state, packet, self._policies)
        decision = decide(state, packet, policy, surroundings=self._risk.look())
        made = decision.made
        inference_ms = (self._clock.monotonic() - began) * 1000.0
        crash_point("tamiyo.decided")
        self._publisher.publish(made, key=state.run_id, causation_id=packet.event_id)
        crash_point("tamiyo.recorded")
        ledger.fold(made)
        return decision_telemetry(state, packet.epoch, decision, inference_ms=inference_ms)

    def _append_command(self, ledger: RunLedger, state: RunState, decision: DecisionFacts) -> None:
        command = ly.AdaptationCommand.FromString(decision.executed)
        command.issued_at.FromNanoseconds(self._clock.now_ns())
        self._publisher.publish(
            command, key=state.run_id, causation_id=decision.state_event_id, event_id=decision.command_id
        )
        crash_point("tamiyo.commanded")
        ledger.fold(command)

    def _submit_report(self, ledger: RunLedger, report: ly.FieldReport) -> None:
        """Send a report without waiting; one that is lost with the process is due again after the rebuild."""
        report.issued_at.FromNanoseconds(self._clock.now_ns())
        self._publisher.submit(
            report, key=report.training_run_id, causation_id=report.decision_id, event_id=report.report_id
        )
        ledger.fold(report)

    # Learned policies: called in the thread that follows them

    def _watches(self) -> bool:
        """Return whether this member watches what was promoted: of several the one that has the first partition."""
        return 0 in self._rebuilt

    def _tell_term(self, term: Term) -> None:
        self._submit_telemetry(term_telemetry(term, instance=self._instance))

    def _tell_refusal(self, meta: ly.EventMeta, refusal: Refusal) -> None:
        self._submit_telemetry(refusal_telemetry(meta, refusal, instance=self._instance))

    def _submit_telemetry(self, packet: ly.TelemetryPacket) -> None:
        packet.timestamp.FromNanoseconds(self._clock.now_ns())
        self._publisher.submit(packet, key=SOURCE)


def build_service(fabric: Fabric, *, instance: str = "tamiyo-0") -> TamiyoService:
    """Return the service; `instance` is the stable name of this member in its group."""
    return TamiyoService(fabric, instance=instance)
