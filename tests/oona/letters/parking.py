"""Helpers of the tests of parking: members whose handlers fail where they are told to, and what they handled."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import cast

from esper.leyline import messages as ly
from esper.oona import Consumer, DeadLetterRow, Event, Fabric, LetterBoard, Publisher, redrive
from tests.oona.log import packet, poll_until

TOPIC = "system-state"
Step = tuple[str, int]


class Poisoned:
    """A handler that notes the epochs of its runs in the order in which it handles them, and fails on poison."""

    def __init__(self, runs: Iterable[str], poison: Iterable[Step] = ()) -> None:
        self.runs = frozenset(runs)
        self.poison = set(poison)
        self.handled: dict[str, list[int]] = defaultdict(list)

    def __call__(self, event: Event) -> None:
        if event.meta.subject not in self.runs:
            return
        epoch = cast("ly.SystemStatePacket", event.message).current_epoch
        if (event.meta.subject, epoch) in self.poison:
            raise ZeroDivisionError(f"poison {epoch}")
        self.handled[event.meta.subject].append(epoch)

    @property
    def count(self) -> int:
        """How many events were handled."""
        return sum(map(len, self.handled.values()))


def join(
    fabric: Fabric, group: str, handler: Poisoned, *, instance: str = "member-0", publisher: Publisher | None = None
) -> Consumer:
    """Return a member that reads `system-state`."""
    return fabric.consumer(
        group=group,
        instance=instance,
        topics=[TOPIC],
        handlers={ly.SystemStatePacket: handler},
        publisher=publisher or fabric.publisher("tamiyo"),
    )


def publish_steps(fabric: Fabric, steps: Iterable[Step]) -> None:
    """Append one packet for each (run, epoch), in order."""
    with fabric.publisher("tolaria") as publisher:
        for run_id, epoch in steps:
            publisher.submit(packet(run_id, epoch), key=run_id)
        publisher.flush()


def rows_of(fabric: Fabric, group: str) -> list[DeadLetterRow]:
    """Return the rows of one group, ended ones included."""
    return [row for row in LetterBoard.read(fabric).rows() if row.group == group]


def order_all(fabric: Fabric, group: str) -> int:
    """Order the redrive of everything that a group has parked; return how many orders that took."""
    board = LetterBoard.read(fabric)
    parked = [row for row in board.rows() if row.group == group and row.state == "parked"]
    with fabric.publisher("cli") as publisher:
        for row in parked:
            redrive(board, publisher, (row.topic, row.partition, row.offset), group=group)
    return len(parked)


def poll_until_nothing_is_parked(consumer: Consumer, *, seconds: float = 60.0) -> None:
    """Poll until the member has worked off what was parked."""
    poll_until(consumer, lambda: consumer.metrics().parked_records == 0, seconds=seconds)
