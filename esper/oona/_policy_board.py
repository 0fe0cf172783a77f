"""What the topic `policy` says now, for whoever decides with, trains, promotes or shows a learned policy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, Self

from esper.core import policy
from esper.core.clock import Deadline
from esper.core.errors import IntegrityError, NotReadyError, UsageError
from esper.core.policy import SHIPPED, Refusal, Standing
from esper.leyline import messages as ly

if TYPE_CHECKING:
    from esper.oona._events import Event
    from esper.oona._fabric import Fabric
    from esper.oona.publishing._publisher import Publisher

_TOPIC: Final = "policy"
_PLACE: Final = (_TOPIC, 0)
_UPDATE_SECONDS: Final = 30.0

#: Called with the meta of an authentic event that was refused, and why.
OnRefused = Callable[[ly.EventMeta, Refusal], None]


class PolicyBoard:
    """Follows the topic `policy` and folds it (`esper.core.policy.fold`).

    `read`, `latest` and `close` belong to one thread at a time; `standing` and `update` may be asked from any.
    Weights stay in the log: `update` reads those of one version again, by its offset.

    Args:
        fabric: The way to the log.
        shipped: The version that decides before the log names one.
        rejects: Where it is given, what is refused is set aside as a dead letter, once for each record: forged
            records by the reader's reason, authentic ones that the fold refuses as REFUSED.
        on_refused: Called with what the fold refuses once the topic was read to its end.
    """

    def __init__(
        self,
        fabric: Fabric,
        *,
        shipped: ly.PolicyUpdate | None = None,
        rejects: Publisher | None = None,
        on_refused: OnRefused | None = None,
    ) -> None:
        self._on_refused = on_refused
        self._fabric = fabric
        self._shipped = shipped
        self._standing = policy.shipped_standing(shipped)
        self._reader = fabric.reader({_PLACE: "begin"}, rejects=rejects)
        self._caught_up = False

    @property
    def standing(self) -> Standing:
        """The standing as far as it was read."""
        return self._standing

    def read(self) -> Standing:
        """Return the standing as the log has it at the time of the call.

        Raises:
            NotReadyError, BrokerUnavailable: the topic could not be read to its end.
        """
        self._fold(self._reader.read_to_end())
        self._caught_up = True
        return self._standing

    def latest(self, wait_seconds: float = 0.0) -> Standing:
        """Return the standing as far as it has arrived, once it was read to the end; raises as `read`.

        Waits up to `wait_seconds` for the next event.
        """
        if not self._caught_up:
            return self.read()
        self._fold(self._reader.read(wait_seconds))
        return self._standing

    def update(self, version: str) -> ly.PolicyUpdate:
        """Return the update that made a version of the standing.

        Raises:
            UsageError: there is no such version, as far as was read.
            NotReadyError, BrokerUnavailable: it could not be read.
            IntegrityError: the log does not hold it any more.
        """
        standing = self._standing
        known = standing.versions.get(version)
        if known is None:
            raise unknown_version(version, standing)
        if known.offset == SHIPPED:
            assert self._shipped is not None, "only what is shipped has no offset"
            return self._shipped
        deadline = Deadline(_UPDATE_SECONDS)
        with self._fabric.reader({_PLACE: known.offset}) as reader:
            while not deadline.expired:
                for event in reader.read(min(1.0, deadline.remaining_seconds), limit=1):
                    if isinstance(event.message, ly.PolicyUpdate) and event.meta.event_id == known.event_id:
                        return event.message
                if reader.positions()[_PLACE] > known.offset:
                    raise IntegrityError(
                        f"the weights of version {version} cannot be had",
                        cause=f"{_TOPIC}-0-{known.offset} no longer holds its update, or its key was revoked",
                        next_step="`esper verify` says what is wrong with the record",
                    )
        raise NotReadyError(f"the weights of version {version} cannot be had", cause="the broker did not send them")

    def close(self) -> None:
        """Release the connection; closing twice does nothing."""
        self._reader.close()

    def _fold(self, events: Iterable[Event]) -> None:
        for event in events:
            self._standing, refusal = policy.fold(self._standing, event.message, event.offset)
            if refusal is not None:
                self._reader.set_aside(event, reason=ly.DEAD_LETTER_REASON_REFUSED, detail=str(refusal))
                if self._caught_up and self._on_refused is not None:
                    self._on_refused(event.meta, refusal)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def unknown_version(version: str, standing: Standing) -> UsageError:
    """Return the error for a version that was never made, or not so that it can be decided with."""
    known = list(standing.versions)
    listed = ", ".join(known[-5:]) if known else "none"
    return UsageError(
        f"there is no learned version {version!r}",
        cause=f"versions that can be decided with: {'..., ' if len(known) > 5 else ''}{listed}",
        next_step="`esper policy list` shows all",
    )
