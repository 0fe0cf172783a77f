"""Emergency signals: what they say, and which of them are in force; pure.

A signal is in force for a fixed time after the broker took it, or until its origin says NOTICE. Nothing latches:
which level holds is a function of the signals and of the time that is asked about.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from esper.leyline import messages as ly
from esper.leyline import short_name

#: From this level on the fabric spares itself: it sheds telemetry.
CONSERVATIVE_FROM: Final = ly.EMERGENCY_LEVEL_CONSERVATIVE
#: Origins that are remembered; beyond, the one whose signal ends first is forgotten.
_ORIGINS_MAX: Final = 1_000
_REASON_CHARACTERS_MAX: Final = 500


@dataclass(frozen=True)
class Standing:
    """What one origin last raised, and until when it holds, in milliseconds since the epoch."""

    level: ly.EmergencyLevel
    until_ms: float
    reason: str
    origin: str = ""
    #: The run that it is about; empty: all.
    run_id: str = ""
    #: The signal's event.
    event_id: str = ""


@dataclass(frozen=True)
class EmergencyState:
    """The signals in force, by origin and run; every method returns a new state."""

    hold_seconds: float
    standing: Mapping[tuple[str, str], Standing] = field(default_factory=dict)

    def fold(self, signal: ly.EmergencySignal, append_time_ms: int) -> EmergencyState:
        """Return the state after a signal: NOTICE ends what its origin raised, a lower one does not lower it.

        A NOTICE that names a run ends what its origin raised about that run, any other all that its origin raised.
        """
        standing = {place: held for place, held in self.standing.items() if held.until_ms > append_time_ms}
        place = (signal.origin, signal.run_id)
        earlier = standing.get(place)
        if signal.level <= ly.EMERGENCY_LEVEL_NOTICE:
            standing = {of: held for of, held in standing.items() if not _ends(signal, held)}
        elif earlier is None or earlier.level <= signal.level:
            until_ms = append_time_ms + self.hold_seconds * 1000
            standing[place] = Standing(
                signal.level, until_ms, signal.reason, signal.origin, signal.run_id, signal.meta.event_id
            )
        if len(standing) > _ORIGINS_MAX:
            del standing[min(standing, key=lambda of: standing[of].until_ms)]
        return EmergencyState(self.hold_seconds, standing)

    def level(self, now_ms: float) -> ly.EmergencyLevel:
        """Return the highest level in force; UNSPECIFIED when there is none."""
        levels = [held.level for held in self.standing.values() if held.until_ms > now_ms]
        return max(levels, default=ly.EMERGENCY_LEVEL_UNSPECIFIED)

    def in_force(self, now_ms: float) -> bool:
        """Return whether some signal calls for conservative mode."""
        return bool(self.calls(now_ms))

    def calls(self, now_ms: float) -> tuple[Standing, ...]:
        """Return the signals that call for conservative mode now, in the order in which they were first raised."""
        return tuple(
            held for held in self.standing.values() if held.until_ms > now_ms and held.level >= CONSERVATIVE_FROM
        )


def _ends(notice: ly.EmergencySignal, held: Standing) -> bool:
    return held.origin == notice.origin and notice.run_id in ("", held.run_id)


def emergency_signal(
    level: ly.EmergencyLevel,
    reason: str,
    *,
    origin: str,
    run_id: str = "",
    origin_event_id: str = "",
    attributes: Mapping[str, str] | None = None,
) -> ly.EmergencySignal:
    """Return a signal, its meta still empty."""
    return ly.EmergencySignal(
        level=level,
        reason=reason[:_REASON_CHARACTERS_MAX],
        origin=origin,
        origin_event_id=origin_event_id,
        run_id=run_id,
        attributes=dict(attributes or {}),
    )


def alarm_for(meta: ly.EventMeta, *, origin: str, run_scoped: bool) -> ly.EmergencySignal:
    """Return the signal that an event of CRITICAL priority calls for.

    It is heard first but reroutes nothing and turns on nothing: the event itself stays in its own topic.
    """
    reason = f"critical {short_name(meta.type)} of {meta.subject}"
    run_id = meta.subject if run_scoped else ""
    return emergency_signal(
        ly.EMERGENCY_LEVEL_ELEVATED, reason, origin=origin, run_id=run_id, origin_event_id=meta.event_id
    )
