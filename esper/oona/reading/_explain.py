"""Why an event stands in the log and what followed from it, told by the causation ids of the events around it.

A run's events form one long chain, as each epoch's state follows from the outcome before. What is told of an event
is its step of that chain: state -> decision -> command -> gates -> outcome -> report. A state packet begins a step;
what it followed from, and the state that followed, are named as the step's edges.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from esper.leyline import messages as ly
from esper.leyline import short_name
from esper.oona._cluster import Position
from esper.oona._events import Event
from esper.oona.reading._cat import EventObject, event_object, of_key
from esper.oona.reading._find import by_append_time
from esper.oona.reading._range import mentions, no_such_event, scan, whole_log
from esper.oona.reading._summaries import summary_of

if TYPE_CHECKING:
    from esper.oona._fabric import Fabric

#: Part that a type plays, in the order in which a step is told.
ROLES: Final = {
    "TrainingRunRequested": "request",
    "TrainingRunClaimed": "claim",
    "TrainingRunStarted": "start",
    "SystemStatePacket": "state",
    "DecisionMade": "decision",
    "AdaptationCommand": "command",
    "GateEvaluated": "gate",
    "KernelQuarantined": "quarantine",
    "SeedStageChanged": "move",
    "SeedMoveRejected": "refusal",
    "SeedTuned": "tuning",
    "CommandOutcome": "outcome",
    "KernelCatalogUpdate": "kernel",
    "FieldReport": "report",
}
#: Gates, trials in quarantine, moves and refusals of one command are told in the order of their offsets.
_RANKS: Final = {role: rank for rank, role in enumerate(ROLES.values())} | dict.fromkeys(
    ("gate", "quarantine", "move", "refusal", "tuning"), 6
)
_RANK_OF_OTHERS: Final = 100
#: Links that one explanation follows upwards; a chain that is longer loops.
_LINKS_MAX: Final = 1_000


@dataclass(frozen=True)
class ChainEvent:
    """One event of a chain: the part it plays, what it says, and how deep in the tree it stands."""

    role: str
    summary: str
    depth: int
    #: event_id of the event above it in the tree; "" for the first.
    parent_id: str
    event: EventObject

    def document(self) -> dict[str, Any]:
        """Return it as one flat JSON object, the event's own fields included."""
        return {
            "role": self.role,
            "summary": self.summary,
            "depth": self.depth,
            "parent_id": self.parent_id,
            **self.event,
        }


@dataclass(frozen=True)
class Explanation:
    """One step: `chain` in telling order, each event after the one that it follows from."""

    event_id: str
    key: str
    chain: tuple[ChainEvent, ...]
    #: What the first event of the chain followed from; None where a person began it.
    caused_by: ChainEvent | None
    #: The steps that follow from this one.
    leads_to: tuple[ChainEvent, ...]
    #: Causation ids of the chain that no authentic event has.
    missing: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """Return it as a JSON document."""
        return {
            "event_id": self.event_id,
            "key": self.key,
            "caused_by": None if self.caused_by is None else self.caused_by.document(),
            "chain": [link.document() for link in self.chain],
            "leads_to": [link.document() for link in self.leads_to],
            "missing": list(self.missing),
        }


def explain_event(fabric: Fabric, event_id: str, *, key: str | None = None) -> Explanation:
    """Return the step of the authentic event `event_id`.

    The event is looked for in the whole log, or among the records of `key` where that is given, which is faster.
    Its step is read from the partitions that share its key; what it followed from elsewhere is looked up by id.

    Raises:
        UsageError: no authentic event has the id.
        BrokerUnavailable: no broker answered.
    """
    places = whole_log(fabric) if key is None else _places_of_key(fabric, key)
    named = list(_read(fabric, places, event_id))
    asked = next((event for event in named if event.meta.event_id == event_id), None)
    if asked is None:
        raise no_such_event(event_id)
    pool = Pool.of(_neighbours(fabric, asked))
    pool.add(event for event in named if event.meta.causation_id == event_id)
    root, missing = _root(fabric, pool, pool.events.get(event_id, asked))
    pool.kernels.update(_kernels(fabric, pool, root))
    return tell(pool, root, event_id, missing=missing)


@dataclass
class Pool:
    """The events around a step, by id; of several with one id the first one counts."""

    events: dict[str, Event] = field(default_factory=dict)
    #: Catalogue's entry of each kernel that an outcome grafted, by its digest.
    kernels: dict[str, Event] = field(default_factory=dict)

    @classmethod
    def of(cls, events: Iterable[Event]) -> Pool:
        """Return a pool of these events."""
        pool = cls()
        pool.add(events)
        return pool

    def add(self, events: Iterable[Event]) -> None:
        """Take events in; those that are known stay as they are."""
        for event in sorted(events, key=by_append_time):
            self.events.setdefault(event.meta.event_id, event)

    def parent_id(self, event: Event) -> str:
        """Return the id of the event that this one stands under; "" for none.

        A command stands under the decision that it names. A move that a fault forced names no cause: it stands
        under the packet that reports it. All others follow their causation.
        """
        message = event.message
        if isinstance(message, ly.AdaptationCommand) and message.decision_id in self.events:
            return message.decision_id
        if isinstance(message, ly.GateEvaluated | ly.SeedStageChanged) and not event.meta.causation_id:
            return self._packet_of(message.run_id, message.epoch)
        return event.meta.causation_id

    def children(self) -> Mapping[str, list[Event]]:
        """Return the events that stand under each, in telling order; under an outcome also the kernel it grafted."""
        children: dict[str, list[Event]] = {}
        for event_id, event in self.events.items():
            children.setdefault(self.parent_id(event), []).append(event)
            if kernel := self.kernels.get(kernel_of(event)):
                children.setdefault(event_id, []).append(kernel)
        for family in children.values():
            family.sort(key=lambda event: (_RANKS.get(role_of(event), _RANK_OF_OTHERS), *by_append_time(event)))
        return children

    def _packet_of(self, run_id: str, epoch: int) -> str:
        for event_id, event in self.events.items():
            packet = event.message
            if isinstance(packet, ly.SystemStatePacket) and packet.current_epoch == epoch:
                return event_id if packet.training_run_id == run_id else ""
        return ""


def kernel_of(event: Event) -> str:
    """Return the digest of the kernel that an outcome grafted; "" for all other events."""
    return event.message.kernel_digest if isinstance(event.message, ly.CommandOutcome) else ""


def role_of(event: Event) -> str:
    """Return the part that an event plays in a chain; its type's name for those that play none."""
    name = short_name(event.meta.type)
    return ROLES.get(name, name)


def tell(pool: Pool, root: Event, event_id: str, *, missing: Sequence[str] = ()) -> Explanation:
    """Return the step that begins with `root`, out of the events of `pool`; pure."""
    children = pool.children()
    chain: list[ChainEvent] = []
    leads_to: list[ChainEvent] = []
    waiting: list[tuple[Event, int, str]] = [(root, 0, "")]
    told: set[str] = set()
    while waiting:  # ends when every event under the root was told once
        event, depth, parent_id = waiting.pop()
        own_id = event.meta.event_id
        if own_id in told:
            continue
        told.add(own_id)
        if depth and _begins_step(event):
            leads_to.append(_link(event, 0, parent_id))
            continue
        chain.append(_link(event, depth, parent_id))
        waiting += [(child, depth + 1, own_id) for child in reversed(children.get(own_id, []))]
    above = pool.events.get(pool.parent_id(root))
    return Explanation(
        event_id=event_id,
        key=root.meta.subject,
        chain=tuple(chain),
        caused_by=None if above is None else _link(above, 0, pool.parent_id(above)),
        leads_to=tuple(leads_to),
        missing=tuple(missing),
    )


def _begins_step(event: Event) -> bool:
    return isinstance(event.message, ly.SystemStatePacket)


def _link(event: Event, depth: int, parent_id: str) -> ChainEvent:
    return ChainEvent(role_of(event), summary_of(event.message), depth, parent_id, event_object(event))


def _root(fabric: Fabric, pool: Pool, event: Event) -> tuple[Event, list[str]]:
    """Return the first event of the step, fetching causes that stand elsewhere, and the ids that nobody has."""
    for _ in range(_LINKS_MAX):
        above = pool.parent_id(event)
        if above and above not in pool.events:
            pool.add(_elsewhere(fabric, above))
        if not above or _begins_step(event):
            break
        if above not in pool.events:
            return event, [above]
        event = pool.events[above]
    above = pool.parent_id(event)
    return event, [above] if above and above not in pool.events else []


def _elsewhere(fabric: Fabric, event_id: str) -> list[Event]:
    """Return an event that stands under another key, with its neighbours; nothing when there is none."""
    found = next(
        (event for event in _read(fabric, whole_log(fabric), event_id) if event.meta.event_id == event_id), None
    )
    return [] if found is None else [found, *_neighbours(fabric, found)]


def _read(fabric: Fabric, places: Sequence[Position], event_id: str) -> list[Event]:
    """Return the authentic events that are, or name, `event_id`, by append time."""
    events = scan(fabric, dict.fromkeys(places, 0), _ends(fabric, places), only=mentions(event_id))
    return sorted(events, key=by_append_time)


def _neighbours(fabric: Fabric, event: Event) -> list[Event]:
    """Return the events of the topics that are keyed as the event's is, of its key."""
    kind = fabric.topics[event.topic].key
    places = [
        (spec.name, fabric.partition_of(spec.name, event.meta.subject)) for spec in fabric.topics if spec.key == kind
    ]
    return list(scan(fabric, dict.fromkeys(places, 0), _ends(fabric, places), only=of_key(event.meta.subject)))


def _kernels(fabric: Fabric, pool: Pool, root: Event) -> dict[str, Event]:
    """Return the catalogue's first entry of each kernel that the outcomes of this step grafted, by its digest."""
    own = [pool.events[link.event["event_id"]] for link in tell(pool, root, "").chain]
    digests = {digest for event in own if (digest := kernel_of(event))}
    if not digests:
        return {}
    places = fabric.topics.partitions(fabric.topics.topic_of(ly.KernelCatalogUpdate.DESCRIPTOR.full_name).name)
    found: dict[str, Event] = {}
    for event in scan(fabric, dict.fromkeys(places, 0), _ends(fabric, places)):
        if isinstance(event.message, ly.KernelCatalogUpdate) and event.message.artifact_ref in digests:
            found.setdefault(event.message.artifact_ref, event)
    return found


def _places_of_key(fabric: Fabric, key: str) -> list[Position]:
    return [(spec.name, fabric.partition_of(spec.name, key)) for spec in fabric.topics]


def _ends(fabric: Fabric, places: Sequence[Position]) -> dict[Position, int]:
    return {place: high for place, (_, high) in fabric.cluster.watermarks(places).items()}
