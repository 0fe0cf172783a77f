"""A stack as the log holds it, and what its members are worth when it is computed again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from esper.core.errors import IntegrityError
from esper.core.stacks import stack_of
from esper.leyline import messages as ly
from esper.oona import AtTime, Event, Fabric, Position, offsets_at
from esper.weatherlight._run_record import OtherEnvironment, RunRecord

if TYPE_CHECKING:
    from torch import Tensor

    from esper.tolaria import Comparison, Elsewhere, Past
    from esper.tolaria.stack import StackGraftsFactory

_TOPICS: Final = ("run-requests", "runs", "system-state")
_READ_SECONDS: Final = 600.0
#: Requests of a stack are appended together; the clocks of brokers differ a little.
_EARLIER_MS: Final = 60_000

Tell = Callable[[int], None]


@dataclass(frozen=True)
class StackRecord:
    """Requests and pasts of all members, in their order."""

    requests: Sequence[ly.TrainingRunRequested]
    pasts: Sequence[Past]

    def place_of(self, run_id: str) -> int:
        """Return which member a run is."""
        return next(index for index, request in enumerate(self.requests) if request.run_id == run_id)


def read_stack(fabric: Fabric, member: ly.TrainingRunRequested) -> StackRecord:
    """Return what the log holds of the stack that a run was a member of.

    Raises:
        IntegrityError: the log lacks the request of a member, or an epoch of one.
        BrokerUnavailable: no broker answered for `settings.broker_retry_seconds`.
    """
    from esper.tolaria import past_of
    from esper.tolaria.stack import check_recorded_whole

    members = stack_of(member)
    by_run: dict[str, list[Event]] = {run_id: [] for run_id in members}
    with fabric.reader(_places(fabric, members, since_ms=member.meta.time.ToMilliseconds())) as reader:
        for event in reader.read_to_end(_READ_SECONDS):
            if event.meta.subject in by_run:
                by_run[event.meta.subject].append(event)
    requests: dict[int, ly.TrainingRunRequested] = {}
    for index, run_id in enumerate(members):
        for event in by_run[run_id]:
            if isinstance(event.message, ly.TrainingRunRequested):
                requests.setdefault(index, event.message)
    check_recorded_whole(requests, member.stack)
    return StackRecord([requests[index] for index in range(len(members))], [past_of(by_run[run]) for run in members])


def _places(fabric: Fabric, members: Sequence[str], *, since_ms: int) -> dict[Position, int]:
    places = sorted({(topic, fabric.partition_of(topic, run_id)) for topic in _TOPICS for run_id in members})
    return dict(offsets_at(fabric, AtTime(max(0, since_ms - _EARLIER_MS)), places))


def stack_grafts(fabric: Fabric) -> StackGraftsFactory:
    """Return what makes the grafts of a repeat: kernels by their digests alone."""
    from esper.core.kernel import DirectoryBlobStore
    from esper.urza import UrzaRuntime
    from esper.weatherlight._stack_grafting import stacked_controller

    runtime = UrzaRuntime(fabric, store=DirectoryBlobStore(fabric.home.blobs))
    return lambda setup: stacked_controller(setup, runtime)


def compare_member(
    fabric: Fabric, record: RunRecord, *, anyway: bool, on_epoch: Tell | None
) -> tuple[Comparison, tuple[Elsewhere, ...]]:
    """Compute a member's whole stack again; return how the member compares, and what was otherwise than here.

    Raises:
        OtherEnvironment: numerics, code or data are other than recorded, and nothing was asked for `anyway`.
        IntegrityError: another member does not repeat; or the log lacks what it takes.
        KernelUnavailable: no store holds a kernel that was grafted.
    """
    from esper.tolaria import differences
    from esper.tolaria.stack import prepared_stack, re_execute_stack

    stack = read_stack(fabric, record.request)
    with prepared_stack(stack.requests) as setup:
        others = differences(record.past.starts, setup.environment())
    if others and not anyway:
        raise OtherEnvironment(record.run_id, others)
    member = stack.place_of(record.run_id)
    try:
        found = re_execute_stack(stack.requests, stack.pasts, stack_grafts(fabric), member=member, on_epoch=on_epoch)
    except IntegrityError as error:
        if others:
            raise OtherEnvironment(record.run_id, others, found=str(error)) from error
        raise
    return found, others


def member_weights(
    fabric: Fabric, record: RunRecord, epoch: int, *, on_epoch: Tell | None
) -> tuple[dict[str, Tensor], str]:
    """Return a member's network at the end of an epoch and its digest, its whole stack computed again.

    Raises as `weights_of_member`.
    """
    from esper.tolaria.stack import weights_of_member

    stack = read_stack(fabric, record.request)
    weights, digest = weights_of_member(
        stack.requests,
        stack.pasts,
        epoch,
        stack_grafts(fabric),
        member=stack.place_of(record.run_id),
        on_epoch=on_epoch,
    )
    return dict(weights), digest
