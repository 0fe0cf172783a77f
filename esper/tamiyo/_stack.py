"""Tamiyo for a stack: the decisions, commands and reports of many runs, appended a batch at a time.

It lives in the process that trains the stack and appends what the service would: the decision first, its command when
the decision is in the log, and the report when its window is over. The service leaves such runs alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Self

from google.protobuf.message import Message

from esper.core.clock import SYSTEM_CLOCK, Clock
from esper.leyline import messages as ly
from esper.oona import Fabric, Publisher
from esper.tamiyo._decide import SOURCE, Decision, decide, policy_of
from esper.tamiyo._due import reports_due
from esper.tamiyo._learned import LEARNED, is_learned
from esper.tamiyo._policies import LearnedPolicies
from esper.tamiyo._policy import Policy
from esper.tamiyo._state import RunState, fold
from esper.tamiyo.risk import RiskSources


class StackDecider:
    """Decides for every member of a stack by the policy that its own request names.

    State is a fold of the members' events, which the caller reports as the log acknowledges them.
    """

    def __init__(
        self, fabric: Fabric, requests: Sequence[ly.TrainingRunRequested], *, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._clock = clock
        self._publisher: Publisher = fabric.publisher(SOURCE)
        self._risk = RiskSources.over(fabric)
        self._states = {request.run_id: fold(RunState(request.run_id), request) for request in requests}
        self._policies: dict[str, Policy] = {}
        learned = any(is_learned(request.policy) for request in requests)
        self._learned = LearnedPolicies(fabric) if learned else None

    def decide(self, packets: Iterable[ly.SystemStatePacket]) -> dict[str, tuple[ly.AdaptationCommand, int]]:
        """Append a decision and then a command for each acknowledged packet; return command and offset by run.

        Raises:
            BrokerUnavailable: not all was acknowledged within `settings.broker_retry_seconds`.
        """
        surroundings = self._risk.look()
        if self._learned is not None:
            self._learned.latest()
        decided: dict[str, Decision] = {}
        for packet in packets:
            run_id = packet.training_run_id
            state = fold(self._states[run_id], packet)
            facts = state.packets[packet.current_epoch]
            if run_id not in self._policies or facts.policy == LEARNED:  # which version that is may have changed
                self._policies[run_id] = policy_of(state, facts, self._learned)
            decision = decide(state, facts, self._policies[run_id], surroundings=surroundings)
            self._publisher.submit(decision.made, key=run_id, causation_id=facts.event_id)
            self._states[run_id] = fold(state, decision.made)
            decided[run_id] = decision
        self._publisher.flush()
        return self._commanded(decided)

    def _commanded(self, decided: Mapping[str, Decision]) -> dict[str, tuple[ly.AdaptationCommand, int]]:
        pending = {}
        for run_id, decision in decided.items():
            command = decision.command
            command.issued_at.FromNanoseconds(self._clock.now_ns())
            cause = decision.made.state_event_id
            pending[run_id] = self._publisher.submit(
                command, key=run_id, causation_id=cause, event_id=decision.made.command_id
            )
        self._publisher.flush()
        commands = {}
        for run_id, decision in decided.items():
            self._states[run_id] = fold(self._states[run_id], decision.command)
            commands[run_id] = (decision.command, pending[run_id].result().offset)
        return commands

    def settle(self, run_id: str, event: Message) -> None:
        """Take note of an acknowledged outcome or end of a run; append the reports that are due then, unwaited for."""
        state = fold(self._states[run_id], event)
        for report in reports_due(state):
            report.issued_at.FromNanoseconds(self._clock.now_ns())
            self._publisher.submit(report, key=run_id, causation_id=report.decision_id, event_id=report.report_id)
            state = fold(state, report)
        self._states[run_id] = state

    def close(self) -> None:
        """Wait until all is acknowledged, and release the connections."""
        self._risk.close()
        if self._learned is not None:
            self._learned.close()
        self._publisher.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
