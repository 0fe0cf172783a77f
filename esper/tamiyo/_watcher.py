"""The watch over a promoted version: reads its field reports, and gives it up when they breach a limit."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from esper.core.clock import Deadline
from esper.core.crash_points import crash_point
from esper.core.ids import derive_id
from esper.core.policy import POLICY_ID, Term, parse_specification
from esper.core.settings import Settings
from esper.leyline import messages as ly
from esper.oona import Fabric, Publisher, Reader, Record
from esper.tamiyo._policies import LearnedPolicies
from esper.tamiyo._watch import Limits, Window, breaches

_logger = logging.getLogger("esper.tamiyo")

_TOPIC: Final = "field-reports"
#: How long one look may read, so that a long history keeps nobody from a new version.
_LOOK_SECONDS: Final = 0.5
#: Who issues the rollback.
_ISSUER: Final = "tamiyo"


def limits_of(settings: Settings) -> Limits:
    """Return the limits that the settings say."""
    return Limits(
        reports=settings.policy_watch_reports,
        reports_min=settings.policy_watch_reports_min,
        reward_drop=settings.policy_watch_reward_drop,
        bad_rise=settings.policy_watch_bad_rise,
        aborted_share=settings.policy_watch_aborted_share,
        invalid_share=settings.policy_watch_invalid_share,
    )


def rollback_of(term: Term, breached: tuple[ly.GateCheck, ...]) -> ly.PolicyRolledBack:
    """Return the event that gives a promoted version up; it has one id, whoever appends it how often."""
    version, before = term.version, term.previous
    assert version is not None, "only a version that decides is watched"
    figures = ", ".join(f"{one.name} {one.value:.4g} is not {one.comparison} {one.bound:.4g}" for one in breached)
    event = ly.PolicyRolledBack(
        policy_id=POLICY_ID,
        tamiyo_policy_version=version.name,
        policy_digest=version.digest,
        restored_policy_version=before.name if before is not None else "",
        restored_policy_digest=before.digest if before is not None else "",
        breaches=breached,
        issued_by=_ISSUER,
        reason=f"its field reports breach the watch: {figures}",
    )
    event.meta.event_id = derive_id("policy-watch", term.event_id)
    return event


class PolicyWatcher:
    """Watches the promotion that is in force; `look` belongs to one thread.

    Only the member for which `responsible` holds watches. The verdict follows from the log, so that one that takes
    over, or comes back, goes on where the last one was.
    """

    def __init__(
        self, fabric: Fabric, policies: LearnedPolicies, publisher: Publisher, *, responsible: Callable[[], bool]
    ) -> None:
        self._fabric = fabric
        self._policies = policies
        self._publisher = publisher
        self._responsible = responsible
        self._limits = limits_of(fabric.settings)
        self._term: Term | None = None
        self._window: Window | None = None
        self._reader: Reader | None = None
        self._fresh = False

    def look(self) -> None:
        """Read what was reported since the last look, and give the version up if a limit is breached.

        Raises:
            BrokerUnavailable, NotReadyError: the log could not be read or written.
        """
        term = self._policies.term
        if not term.promoted or not self._limits.reports or not self._responsible():
            self.close()
            self._term = None
            return
        if term != self._term:
            self._begin(term)
        if self._reader is None or self._window is None:
            return
        self._read(self._reader, self._window)
        if self._fresh and self._reader.at_end():
            self._judge(term, self._window)

    def close(self) -> None:
        """Release the connection; closing twice does nothing."""
        if self._reader is not None:
            self._reader.close()
        self._reader = self._window = None

    def _begin(self, term: Term) -> None:
        self.close()
        assert term.version is not None, "a promotion has its version"
        update = self._policies.update(term.version.name)
        self._window = Window(
            term.event_id,
            digest=term.version.digest,
            digest_before=term.previous.digest if term.previous is not None else "",
            weights=parse_specification(update.specification).reward_weights,
            limits=self._limits,
        )
        self._reader = self._fabric.reader(dict.fromkeys(self._fabric.topics.partitions(_TOPIC), "begin"))
        self._term, self._fresh = term, False

    def _read(self, reader: Reader, window: Window) -> None:
        """Fold what has arrived, for a while at most."""
        assert self._term is not None, "a window is begun with its term"
        digests = [one.digest.encode() for one in (self._term.version, self._term.previous) if one is not None]

        def concerns(record: Record) -> bool:
            return any(digest in (record.value or b"") for digest in digests)

        deadline = Deadline(_LOOK_SECONDS)
        while not deadline.expired:
            before = reader.positions()
            for event in reader.read(0.0, only=concerns):
                if isinstance(event.message, ly.FieldReport):
                    self._fresh |= window.fold(event.partition, event.message)
            if reader.positions() == before:
                return

    def _judge(self, term: Term, window: Window) -> None:
        self._fresh = False
        breached = breaches(window.checks())
        if breached:
            event = rollback_of(term, breached)
            _logger.warning("version %s is given up: %s", event.tamiyo_policy_version, event.reason)
            crash_point("tamiyo.breached")
            self._publisher.publish(event, key=POLICY_ID, causation_id=term.event_id)
            crash_point("tamiyo.given-up")
        if breached or window.full(len(self._fabric.topics.partitions(_TOPIC))):
            self.close()
