"""The small interfaces in which subsystems meet without importing each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

from esper.core.errors import OperationFailed
from esper.leyline import messages as ly
from esper.leyline.registry import EventMessage

if TYPE_CHECKING:
    from torch import Tensor, nn

    from esper.core.checkpoint import Saved
    from esper.core.kernel import KernelArtifact


#: Why a command is not applied, as far as it matters beyond whoever judged it: an operator's command whose epochs
#: lie ahead; one that was used before; one that its producer sat on.
COMMAND_NOT_YET: Final = "not_yet"
COMMAND_REPLAYED: Final = "nonce_replayed"
COMMAND_STALE: Final = "stale_command"


class KernelUnavailable(OperationFailed):
    """No kernel could be had for a request; `reason` is a short machine-readable word."""

    def __init__(self, what: str, *, reason: str, cause: str = "", next_step: str = "") -> None:
        super().__init__(what, cause=cause or reason, next_step=next_step)
        self.reason = reason


@dataclass(frozen=True)
class FetchedKernel:
    """A kernel: the digest that names it, what the fetch cost, and its module, ready to graft.

    One with a `refusal` ("quarantine_only", "approval_required", ...: the words of `esper.core.approvals`) has no
    module: nobody builds it here. Its verified bytes are its `artifact`, which may run in quarantine.
    """

    module: nn.Module | None
    artifact_ref: str
    manifest: ly.ArtifactManifest
    latency_ms: float
    artifact: KernelArtifact | None = None
    refusal: str = ""
    #: As the log registered the blueprint last; None where whoever fetched does not follow that topic.
    descriptor: ly.BlueprintDescriptor | None = None


class BlueprintRuntime(Protocol):
    """Where grafting gets its kernels from."""

    def fetch_kernel(self, request: ly.KernelRequestSpec, *, run_id: str, wait_seconds: float) -> FetchedKernel:
        """Return the kernel for `request`, asking for it to be made when it is not there.

        Raises:
            KernelUnavailable: it was refused, or not there within `wait_seconds`.
        """

    def fetch_by_digest(self, artifact_ref: str) -> FetchedKernel:
        """Return the very kernel of this digest, as a re-execution needs it.

        Raises:
            KernelUnavailable: no store holds it.
            IntegrityError: what is stored under the digest is something else.
        """


@runtime_checkable
class PrefetchingRuntime(BlueprintRuntime, Protocol):
    """A runtime that can also bring a kernel near before anybody waits for it.

    A thread of its own calls `prefetch`, while the training thread may call the other methods.
    """

    def prefetch(self, request: ly.KernelRequestSpec, *, run_id: str) -> FetchedKernel | None:
        """Return the kernel once it is there; until then see to it that it is made, and return None at once.

        Asks for one kernel once, however often it is called. Draws from no random stream of the process.

        Raises:
            KernelUnavailable: it cannot be had.
        """


@dataclass(frozen=True)
class EdgeDecision:
    """What an epoch's edge comes to: the events to append, in order, and the verdict on the command."""

    result: ly.CommandResult
    reason: str = ""
    seed_id: str = ""
    kernel_digest: str = ""
    events: Sequence[EventMessage] = ()
    gate_verdicts: Mapping[str, bool] = field(default_factory=dict)
    #: What was chosen that request and command left open, by name; a re-execution takes it from the outcome.
    choices: Mapping[str, float] = field(default_factory=dict)


class GraftController(Protocol):
    """What a trainer needs of the one who grafts (Kasmina).

    A trainer calls, per step: `before_step`, its own forward, backward and optimiser step, `after_step`;
    per epoch: `end_epoch`, `decide`, and `fold` for every event once it is acknowledged by the log.
    """

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the controller's own passes so far: shadow, seed and gate work."""

    def multiply_adds_per_sample(self) -> int:
        """Multiply-adds that one sample's forward now spends in seeds."""

    def parameters(self) -> int:
        """Parameters of the seeds that now take part in the forward."""

    def state(self) -> Mapping[str, Tensor]:
        """Return weights and buffers of every seed that exists, by name, for the run's state digest.

        Those that the host module holds itself (a fossilised seed registered in it) are not repeated.
        """

    def slot_states(self) -> list[ly.SlotState]:
        """Return every slot with what holds it."""

    def seed_states(self) -> list[ly.SeedState]:
        """Return every seed that was germinated and is not gone."""

    def summaries(self) -> list[ly.SeedSummary]:
        """Return every seed of the run with its last stage, culled ones included."""

    def figures(self) -> Mapping[str, float]:
        """Return what the controller counts over the run, by metric name ("kasmina.isolation.violations")."""

    def notices(self) -> Sequence[ly.TelemetryEvent]:
        """Return what happened since the last call that people should hear of; it steers nothing."""

    def close(self) -> None:
        """End what works beside the run; the network stays as it is. Called once, when the attempt is over."""

    def before_step(self) -> None:
        """Clear what the seeds' gradients hold, before the host's backward."""

    def after_step(self, inputs: Tensor, targets: Tensor) -> None:
        """Train what is in training on this batch, after the host's optimiser step."""

    def end_epoch(self, epoch: int) -> list[EventMessage]:
        """Measure evidence on the probe; return moves that faults force, to be appended and then folded."""

    def decide(
        self,
        command: ly.AdaptationCommand | None,
        *,
        epoch: int,
        recorded: ly.CommandOutcome | None = None,
        ruled: EdgeDecision | None = None,
    ) -> EdgeDecision:
        """Judge `command` without changing anything; with `ruled`, the trainer's verdict, add the edge's own moves.

        With `recorded` (re-execution) the recorded verdict binds: the same kernel digest is taken and
        gates that now measure otherwise raise `IntegrityError`.
        """

    def fold(self, event: EventMessage) -> None:
        """Let an acknowledged event change the model."""

    def settle(self, outcome: ly.CommandOutcome) -> None:
        """Let an acknowledged outcome change what holds growth back, once the edge's events are folded."""

    def growth(self) -> ly.GrowthState | None:
        """Return what holds growth back in the coming epoch; None where nothing does."""

    def prepare_return(self, saved: Saved, *, epoch: int, to_epoch: int) -> list[EventMessage]:
        """Return what is to be said of seeds when the run returns to a checkpoint; change nothing yet.

        Raises:
            IntegrityError: the content does not fit this run.
            KernelUnavailable: no store holds a kernel that was grafted then.
        """

    def rewind(self, saved: Saved) -> None:
        """Stand as when `saved` was taken, in place; the trainer then fills in the host's and `state`'s tensors."""

    def go_on(self, *, to_epoch: int) -> None:
        """After `rewind`: go on at the edge at which the run returned; ids, work done and held growth stay."""

    def checkpoint(self) -> Saved:
        """Return all that `restore` needs besides the tensors of `state` and of the host, before an edge's decision.

        Every event that `end_epoch` returned is folded by then. Equal states give equal content.
        """

    def restore(self, saved: Saved) -> None:
        """Put a fresh controller's seeds back on the host; the trainer then fills in the host's and `state`'s tensors.

        Raises:
            IntegrityError: the content does not fit this run.
            KernelUnavailable: no store holds a kernel that was grafted.
        """
