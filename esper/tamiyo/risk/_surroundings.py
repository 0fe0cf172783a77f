"""What bears on a decision beside the run's own history: blueprints and emergencies, as the log has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from esper.core.approvals import UNREGISTERED, Approvals, refusal


@dataclass(frozen=True, slots=True)
class BlueprintFacts:
    """What the catalogue says of one blueprint; `refusal` is empty where it may be grafted."""

    risk: float
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Alarm:
    """An emergency signal in force that calls for conservative mode; without a run it is about all."""

    event_id: str
    origin: str
    reason: str
    run_id: str = ""


@dataclass(frozen=True)
class Surroundings:
    """Everything that the gate is told from outside; equal ones give equal decisions."""

    #: What is registered, by id; one that is missing was never registered.
    blueprints: Mapping[str, BlueprintFacts] = field(default_factory=dict)
    #: False where the catalogue could never be read, so that nothing is known of any blueprint.
    catalogue_known: bool = True
    alarms: tuple[Alarm, ...] = ()
    #: Why the packet no longer shows how its run stands; empty where it does.
    superseded: str = ""

    @property
    def refused(self) -> frozenset[str]:
        """The blueprints that every mask bars."""
        return frozenset(name for name, facts in self.blueprints.items() if facts.refusal)


#: Where no log says anything.
NOTHING_SAID: Final = Surroundings()


def blueprint_facts(said: Approvals) -> dict[str, BlueprintFacts]:
    """Return what the log's word on blueprints means for grafting.

    One that somebody spoke of but nobody registered is not among them: whether it exists is for the makers of
    kernels to say.
    """
    facts = {}
    for name, standing in said.items():
        found = refusal(said, name)
        if found is not None and found.reason == UNREGISTERED:
            continue
        risk = float(standing.descriptor.risk) if standing.descriptor is not None else 0.0
        facts[name] = BlueprintFacts(risk, found.reason if found is not None else "")
    return facts
