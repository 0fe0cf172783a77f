"""What the learned policy of an evaluation was trained on, as its pedigree in the log says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Final

from esper.core.errors import EsperError
from esper.leyline import messages as ly
from esper.oona import Event, Fabric, Position
from esper.oona.copying import topic_ids
from esper.weatherlight._asked_runs import asked_for

if TYPE_CHECKING:
    from esper.simic.trials import Plan, TrainedOn, TrialRun

_READ_SECONDS: Final = 600.0
_POLL_SECONDS: Final = 1.0


def cells_learned_from(fabric: Fabric, plan: Plan, runs: Iterable[TrialRun]) -> dict[str, TrainedOn]:
    """Return, by the digest of each policy that decided the arm `learned`, the cells whose runs it was trained on.

    Versions that it was trained from count with what they were trained on. Where the log does not hold all of that (a
    parent's PolicyUpdate, the ranges that updates name, the request of a run in them), the policy's own update is
    believed, which is signed, or came with the package; a policy whose update says nothing either is left out.

    Raises:
        BrokerUnavailable, IntegrityError, NotReadyError: the log cannot be read.
    """
    from esper.simic.trials import LEARNED, TrainedOn
    from esper.tamiyo import drawn_digest

    digests = {decider.digest for run in runs if run.place.arm == LEARNED for decider in run.deciders}
    updates = _updates(fabric) if digests else {}
    _, parameters = plan.policy_of(LEARNED)
    drawn = {drawn_digest(update, parameters): update for update in updates.values()}
    found = {}
    for digest in digests & set(drawn):
        update = drawn[digest]
        line = _line_of(update.policy_digest, updates)
        ran = None if line is None else _runs_in(fabric, line)
        cells = None if ran is None else _cells_of(fabric, plan, ran)
        if cells is not None:
            found[digest] = TrainedOn(cells)
        elif update.learned_on:
            asked = (tuple(each.split("/", 1)) for each in update.learned_on)
            found[digest] = TrainedOn(_as_cells(plan, asked), said=True)
    return found


def _updates(fabric: Fabric) -> dict[str, ly.PolicyUpdate]:
    from esper.tamiyo import shipped_policy

    shipped = shipped_policy()
    with fabric.reader({("policy", number): "begin" for number in range(fabric.topics["policy"].partitions)}) as reader:
        messages = [event.message for event in reader.read_to_end(_READ_SECONDS)]
    found = {} if shipped is None else {shipped.policy_digest: shipped}
    for message in messages:
        if isinstance(message, ly.PolicyUpdate):
            found.setdefault(message.policy_digest, message)
    return found


def _line_of(digest: str, updates: Mapping[str, ly.PolicyUpdate]) -> list[ly.PolicyUpdate] | None:
    """Return a version and all that it descends from; None where one of them is not known."""
    line: list[ly.PolicyUpdate] = []
    while digest:  # ends with the first of the line, or where one comes back
        update = updates.get(digest)
        if update is None or update in line:
            return None
        line.append(update)
        digest = update.parent_policy_digest
    return line


def _runs_in(fabric: Fabric, line: Iterable[ly.PolicyUpdate]) -> frozenset[str] | None:
    """Return the runs whose records lie in the ranges of a line; None where these are another log's, or none."""
    ranges = [each for update in line for each in update.training_data]
    if not ranges or any(each.topic not in fabric.topics for each in ranges):
        return None
    here = topic_ids(fabric.cluster, sorted({each.topic for each in ranges}))
    if any(each.topic_id and each.topic_id != here[each.topic] for each in ranges):
        return None
    held = fabric.cluster.watermarks({(each.topic, each.partition) for each in ranges})
    found: set[str] = set()
    for each in ranges:
        place: Position = (each.topic, each.partition)
        low, high = held[place]
        if each.first_offset < low or each.end_offset > high:
            return None
        found |= {event.meta.subject for event in _read(fabric, place, each.first_offset, each.end_offset)}
    return frozenset(found)


def _read(fabric: Fabric, place: Position, first: int, end: int) -> list[Event]:
    if first >= end:
        return []
    events: list[Event] = []
    with fabric.reader({place: first}) as reader:
        while reader.positions()[place] < end:  # the log holds this offset, so it is reached
            events += reader.read(_POLL_SECONDS, limit=2_000, only=lambda record: record.offset < end)
    return events


def _cells_of(fabric: Fabric, plan: Plan, run_ids: frozenset[str]) -> frozenset[str] | None:
    """Return the plan's cells that runs trained on, and tasks and hosts besides; None where a request is missing."""
    asked = asked_for(fabric, run_ids)
    return _as_cells(plan, set(asked.values())) if set(asked) == run_ids else None


def _as_cells(plan: Plan, asked: Iterable[tuple[str, ...]]) -> frozenset[str]:
    """Return the plan's names of tasks and hosts; those that are no cell of it keep their own."""
    found = set()
    for task, host in asked:
        same = [cell.name for cell in plan.cells if cell.task == task and _same_host(task, cell.host, host)]
        found |= set(same or [f"{task}/{host}"])
    return frozenset(found)


@cache
def _same_host(task: str, one: str, other: str) -> bool:
    """Return whether two names of a task's hosts mean networks of the same shapes: "mlp" is some "mlp:8"."""
    from esper.tolaria import load_task, with_host

    if one == other:
        return True
    try:
        shapes = [
            {
                name: value.shape
                for name, value in with_host(load_task(task), host).host(host).module.state_dict().items()
            }
            for host in (one, other)
        ]
    except EsperError:
        return False
    return shapes[0] == shapes[1]
