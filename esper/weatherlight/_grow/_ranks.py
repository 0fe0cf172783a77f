"""A loop under torch's DistributedDataParallel: the first rank speaks with the log, the others live its edges again.

What the first rank appended, and the kernel that it names, goes to the others once the log has acknowledged it; each
checks the kernel against its digest and repeats the edge as a re-execution does, bound by the recorded outcome.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, NoReturn

from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from esper.core.eager import uncompiled
from esper.core.errors import IntegrityError, UsageError
from esper.core.ids import sha256_hex
from esper.core.kernel import (
    BlobMissing,
    BlobStore,
    KernelArtifact,
    get_artifact,
    load_kernel,
    manifest_bytes,
    parse_manifest,
)
from esper.core.ports import FetchedKernel, KernelUnavailable
from esper.core.ranks import ALONE, ProcessRanks, RankLost, Ranks
from esper.leyline import EventMessage
from esper.leyline import messages as ly
from esper.tolaria import Answer, TrainingJournal

_READY: Final = b"ready"
_BROKEN: Final = b"broken"


def bare(model: nn.Module) -> nn.Module:
    """Return the module within torch's wrappers: those that compile, and the one that averages gradients."""
    while True:  # ends: every turn takes a wrapper off
        inner = uncompiled(model)
        if isinstance(inner, DistributedDataParallel):
            inner = inner.module
        if inner is model:
            return model
        model = inner


def is_wrapped_compiled(model: nn.Module) -> bool:
    """Return whether `torch.compile` made one of the wrappers."""
    inner = uncompiled(model)
    if isinstance(inner, DistributedDataParallel):
        return inner is not model or uncompiled(inner.module) is not inner.module
    return inner is not model


def _wrapper(model: nn.Module) -> DistributedDataParallel | None:
    inner = uncompiled(model)
    return inner if isinstance(inner, DistributedDataParallel) else None


def ranks_of(model: nn.Module, *, wait_seconds: float) -> Ranks:
    """Return the ranks that train `model`, which must be wrapped where there are several.

    Raises:
        UsageError: there are several and the model is not wrapped, or its buffers are not shared.
        RankLost: not all of them came.
    """
    wrapper = _wrapper(model)
    if wrapper is None:
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            raise UsageError(
                f"a {type(model).__name__} cannot be grown by {distributed.get_world_size()} ranks",
                cause="torch.distributed is initialised, and the model is not wrapped in DistributedDataParallel",
                next_step="give grow the wrapper; other ways to spread a model over ranks are not supported",
            )
        return ALONE
    if wrapper.process_group.size() == 1:
        return ALONE
    if not wrapper.broadcast_buffers and any(True for _ in wrapper.module.buffers()):
        raise UsageError(
            "ranks with buffers of their own cannot be grown",
            cause="DistributedDataParallel was made with broadcast_buffers=False, and the model has buffers",
            next_step="leave broadcast_buffers as it is, True",
        )
    return ProcessRanks(wrapper.process_group, wait_seconds=wait_seconds)


def total_of(ranks: Ranks, count: int) -> int:
    """Return the sum of every rank's count."""
    (total,) = ranks.totals([float(count)])
    return int(total)


# -- the start --------------------------------------------------------------------------------------------------


@contextmanager
def starting(ranks: Ranks) -> Iterator[None]:
    """On the first rank: whatever keeps the block from coming to its end is told to the others, who then end too."""
    try:
        yield
    except BaseException as error:
        _tell_broken(ranks, error)
        raise


def _tell_broken(ranks: Ranks, error: BaseException) -> None:
    if ranks.size > 1:
        with suppress(RankLost):  # What ended this rank is what its caller is to see.
            ranks.told([_BROKEN, f"{type(error).__name__}: {error}".encode()])


def tell_start(ranks: Ranks, run_id: str) -> None:
    """On the first rank: say that the log knows the run."""
    if ranks.size > 1:
        ranks.told([_READY, run_id.encode()])


def await_start(ranks: Ranks) -> str:
    """On the other ranks: return the run's id once the log knows it.

    Raises:
        RankLost: the first rank could not start, or did not come.
    """
    word, said = ranks.told()
    if word != _READY:
        raise _stopped(said)
    return said.decode()


def _stopped(said: bytes) -> RankLost:
    return RankLost("the first rank stopped", cause=said.decode(errors="replace"), next_step="See its own output")


@contextmanager
def ended_by_torchrun(ranks: Ranks) -> Iterator[None]:
    """Turn SIGTERM into RankLost within the block: by it torchrun ends every rank when one is gone."""

    def end(*_: object) -> NoReturn:
        raise RankLost(
            f"rank {ranks.rank} of {ranks.size} was told to stop",
            cause="SIGTERM, as torchrun sends it when another rank is gone",
            next_step="See the other ranks' output",
        )

    if ranks.size == 1 or threading.current_thread() is not threading.main_thread():
        yield
        return
    before: Any = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# -- edges ------------------------------------------------------------------------------------------------------


class LeadingJournal:
    """The first rank's journal: what it appended is told to the others."""

    def __init__(self, inner: TrainingJournal, ranks: Ranks, store: BlobStore) -> None:
        self._inner = inner
        self._ranks = ranks
        self._store = store
        self._owes = False

    @contextmanager
    def edge(self) -> Iterator[None]:
        """Tell the others of whatever breaks the edge in the block, so that they do not wait for its outcome."""
        self._owes = True
        try:
            yield
        except BaseException as error:
            if self._owes and not isinstance(error, RankLost):
                _tell_broken(self._ranks, error)
            raise

    def append_seed_events(self, epoch: int, events: Sequence[EventMessage]) -> None:
        self._inner.append_seed_events(epoch, events)

    def append_state(self, packet: ly.SystemStatePacket) -> None:
        self._inner.append_state(packet)

    def await_command(self, packet: ly.SystemStatePacket) -> Answer:
        return self._inner.await_command(packet)

    def append_outcome(self, outcome: ly.CommandOutcome) -> None:
        self._inner.append_outcome(outcome)
        parts = [_READY, outcome.SerializeToString(), *self._kernel(outcome)]
        self._owes = False
        self._ranks.told(parts)

    def append_return(self, outcome: ly.CommandOutcome) -> None:
        self._inner.append_return(outcome)

    def submit_telemetry(self, epoch: int, packet: ly.TelemetryPacket) -> None:
        self._inner.submit_telemetry(epoch, packet)

    def _kernel(self, outcome: ly.CommandOutcome) -> list[bytes]:
        if not outcome.kernel_digest:
            return []
        try:
            artifact = get_artifact(self._store, outcome.kernel_digest)
        except BlobMissing:
            return []
        return [manifest_bytes(artifact.manifest), artifact.spec, artifact.weights]


class ReceivedKernels:
    """Kernels as the first rank sent them; implements `esper.core.ports.BlueprintRuntime` for the others."""

    def __init__(self) -> None:
        self._held: dict[str, KernelArtifact] = {}

    def receive(self, digest: str, parts: Sequence[bytes]) -> None:
        """Keep a kernel that came as manifest, spec and weights.

        Raises:
            IntegrityError: the manifest is not that of `digest`; its parts are checked when the kernel is built.
        """
        manifest, spec, weights = parts
        if sha256_hex(manifest) != digest:
            raise IntegrityError(
                f"a kernel is not what the log calls {digest}",
                cause=f"its manifest has the digest {sha256_hex(manifest)}",
                next_step="See the first rank's output; `esper artifacts verify` looks at its store",
            )
        self._held[digest] = KernelArtifact(parse_manifest(manifest), spec, weights)

    def fetch_kernel(self, request: ly.KernelRequestSpec, *, run_id: str, wait_seconds: float) -> FetchedKernel:
        """Refuse: only the first rank asks for kernels."""
        raise KernelUnavailable(f"no kernel of {request.blueprint_id!r} for run {run_id!r}", reason="not_leading")

    def fetch_by_digest(self, artifact_ref: str) -> FetchedKernel:
        """Return the kernel of this digest with parameters of its own, after every check of `load_kernel`.

        Raises:
            KernelUnavailable: the first rank did not send it.
            IntegrityError: it is not what its manifest says.
        """
        artifact = self._held.get(artifact_ref)
        if artifact is None:
            raise KernelUnavailable(f"kernel {artifact_ref} was not sent", reason="artifact_missing")
        return FetchedKernel(load_kernel(artifact), artifact_ref, artifact.manifest, 0.0, artifact=artifact)


class FollowingJournal:
    """The journal of every other rank: appends nothing, and takes each edge as the first rank recorded it."""

    def __init__(self, ranks: Ranks, kernels: ReceivedKernels) -> None:
        self._ranks = ranks
        self._kernels = kernels

    def append_seed_events(self, epoch: int, events: Sequence[EventMessage]) -> None:
        """Let them pass: the first rank appends them."""

    def append_state(self, packet: ly.SystemStatePacket) -> None:
        """Let it pass: the first rank appends it."""

    def await_command(self, packet: ly.SystemStatePacket) -> Answer:
        """Return the outcome that the first rank appended, which binds.

        Raises:
            RankLost: the first rank stopped or is gone.
            IntegrityError: the outcome is of another edge, or its kernel is another.
        """
        word, said, *kernel = self._ranks.told()
        if word != _READY:
            raise _stopped(said)
        outcome = ly.CommandOutcome.FromString(said)
        if (outcome.run_id, outcome.epoch) != (packet.training_run_id, packet.current_epoch):
            raise IntegrityError(
                f"rank {self._ranks.rank} stands at epoch {packet.current_epoch}",
                cause=f"the first rank is at epoch {outcome.epoch} of run {outcome.run_id}",
                next_step="Let every rank take the same steps and end the same epochs",
            )
        if kernel:
            self._kernels.receive(outcome.kernel_digest, kernel)
        return Answer.of(outcome)

    def append_outcome(self, outcome: ly.CommandOutcome) -> None:
        """Let it pass: the first rank appended it."""

    def append_return(self, outcome: ly.CommandOutcome) -> None:
        """Let it pass: the first rank appends it."""

    def submit_telemetry(self, epoch: int, packet: ly.TelemetryPacket) -> None:
        """Say nothing: the first rank speaks for all."""
