"""Ranks: the processes that train one network together, and what they must agree on.

A process by itself is a run of one rank, for which nothing here does anything. What goes between ranks is bytes and
numbers, never pickled objects. Every call is made by all ranks, in one order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn

from esper.core.errors import IntegrityError, OperationFailed

#: A message between ranks; the largest are checkpoints.
_MESSAGE_BYTES_MAX = 1 << 36


class RankLost(OperationFailed):
    """A rank died, hung or stopped; the others end as well."""


class Ranks:
    """One process by itself; `ProcessRanks` is several."""

    rank: int = 0
    size: int = 1
    #: How gradients travel, "gloo" or "nccl"; nothing where they need not.
    backend: str = ""

    @property
    def leads(self) -> bool:
        """Whether this process speaks for all of them."""
        return self.rank == 0

    @property
    def salt(self) -> tuple[int, ...]:
        """What makes random streams of a rank its own; nothing where there is one."""
        return () if self.size == 1 else (self.rank,)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradients that parameters have by their means over all ranks."""

    def means(self, values: Sequence[float]) -> list[float]:
        """Return the mean of each number over all ranks, the same bits everywhere."""
        return list(values)

    def totals(self, values: Sequence[float]) -> list[float]:
        """Return the sum of each number over all ranks."""
        return list(values)

    def highest(self, values: Sequence[float]) -> list[float]:
        """Return the highest of each number over all ranks."""
        return list(values)

    def share_buffers(self, model: nn.Module) -> None:
        """Give every rank the first one's buffers."""

    def told(self, parts: Sequence[bytes] = ()) -> list[bytes]:
        """Return what the first rank gave."""
        return list(parts)

    def check_equal(self, what: str, digest: str) -> None:
        """Raise IntegrityError on every rank unless all have the same digest (64 hexadecimal digits)."""


ALONE = Ranks()


class ProcessRanks(Ranks):
    """The ranks of a process group of torch.

    `gradients` is the group that gradients travel in (None: the default group), whose own time limit holds for them;
    everything else goes through a gloo group of its own, in which no rank waits longer than `wait_seconds`.

    Raises:
        RankLost: from every call, when a rank is gone or does not come.
    """

    def __init__(self, gradients: distributed.ProcessGroup | None = None, *, wait_seconds: float) -> None:
        self._wait_seconds = wait_seconds
        self._gradients = gradients
        self.rank, self.size = distributed.get_rank(gradients), distributed.get_world_size(gradients)
        self.backend = str(distributed.get_backend(gradients))
        with self._guarded("meeting"):
            members = distributed.get_process_group_ranks(gradients)
            limit = timedelta(seconds=wait_seconds)
            control = distributed.new_group(members, backend="gloo", timeout=limit)
        assert isinstance(control, distributed.ProcessGroup), "this process is one of its members"
        self._control = control

    @contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError) as error:
            raise RankLost(
                f"rank {self.rank} of {self.size} cannot go on",
                cause=f"{what}: {str(error).splitlines()[0][:300]}",
                next_step=f"Another rank is gone or did not come within {self._wait_seconds:g} s; see its own output",
            ) from error

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradients that parameters have by their means; all ranks must have the same ones."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if not gradients:
            return
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        # Its own group where it is gloo's, so that a reduction of the host's never waits behind one of these.
        group = self._control if self.backend == "gloo" else self._gradients
        with self._guarded("averaging gradients"):
            distributed.all_reduce(flat, group=group)
        flat.div_(self.size)
        at = 0
        for gradient in gradients:
            gradient.copy_(flat[at : at + gradient.numel()].view_as(gradient))
            at += gradient.numel()

    def means(self, values: Sequence[float]) -> list[float]:
        return [total / self.size for total in self.totals(values)]

    def totals(self, values: Sequence[float]) -> list[float]:
        return self._reduced(values, distributed.ReduceOp.SUM)

    def highest(self, values: Sequence[float]) -> list[float]:
        return self._reduced(values, distributed.ReduceOp.MAX)

    def _reduced(self, values: Sequence[float], operation: distributed.ReduceOp.RedOpType) -> list[float]:
        if not values:
            return []
        numbers = torch.tensor(list(values), dtype=torch.float64)
        with self._guarded("adding up"):
            distributed.all_reduce(numbers, op=operation, group=self._control)
        return [float(number) for number in numbers]

    def share_buffers(self, model: nn.Module) -> None:
        with self._guarded("sharing buffers"), torch.no_grad():
            for buffer in model.buffers():
                # As bytes: gloo does not know every dtype.
                shared = buffer.detach().cpu().reshape(-1).view(torch.uint8).clone()
                distributed.broadcast(shared, self._first(), group=self._control)
                buffer.copy_(shared.view(buffer.dtype).view_as(buffer))

    def told(self, parts: Sequence[bytes] = ()) -> list[bytes]:
        """Return the first rank's `parts` on every rank."""
        with self._guarded("telling"):
            (count,) = self._integers([len(parts)], 1)
            sizes = self._integers([len(part) for part in parts], count)
            if sum(sizes) > _MESSAGE_BYTES_MAX:
                raise ValueError(f"{sum(sizes)} bytes are too many")
            whole = torch.empty(sum(sizes), dtype=torch.uint8)
            if self.leads and len(whole):
                whole = torch.frombuffer(bytearray(b"".join(parts)), dtype=torch.uint8)
            if len(whole):
                distributed.broadcast(whole, self._first(), group=self._control)
            content, ends = whole.numpy().tobytes(), [sum(sizes[: index + 1]) for index in range(count)]
            return [content[end - size : end] for size, end in zip(sizes, ends, strict=True)]

    def _integers(self, values: Sequence[int], count: int) -> list[int]:
        numbers = torch.tensor(list(values) if self.leads else [0] * count, dtype=torch.int64)
        if count:
            distributed.broadcast(numbers, self._first(), group=self._control)
        return [int(number) for number in numbers]

    def _first(self) -> int:
        return distributed.get_global_rank(self._control, 0)

    def check_equal(self, what: str, digest: str) -> None:
        mine = torch.frombuffer(bytearray(bytes.fromhex(digest)), dtype=torch.uint8)
        theirs = [torch.empty_like(mine) for _ in range(self.size)]
        with self._guarded("comparing digests"):
            distributed.all_gather(theirs, mine, group=self._control)
        found = [each.numpy().tobytes().hex() for each in theirs]
        if len(set(found)) > 1:
            named = ", ".join(f"rank {rank} has {each[:16]}" for rank, each in enumerate(found))
            raise IntegrityError(
                f"the ranks do not agree on {what}",
                cause=named,
                next_step="Ranks must start from one network and change it by averaged gradients alone",
            )


class EndOfBackward:
    """Averages gradients that torch's own reduction does not know of, once at the end of each backward.

    Within the backward, so that a loop that clips or unscales after it sees the averaged ones.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._watched: dict[nn.Parameter, torch.utils.hooks.RemovableHandle] = {}
        self._queued = False

    def watch(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average the gradients of these parameters from now on."""
        if self._ranks.size == 1:
            return
        for parameter in parameters:
            if parameter not in self._watched:
                self._watched[parameter] = parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]  # unannotated in torch
                    self._arrived
                )

    def forget(self, parameters: Iterable[nn.Parameter]) -> None:
        """Leave these parameters alone."""
        for parameter in parameters:
            if (handle := self._watched.pop(parameter, None)) is not None:
                handle.remove()

    def begin(self) -> None:
        """Forget a backward that broke off."""
        self._queued = False

    def _arrived(self, _parameter: Tensor) -> None:
        if not self._queued:
            self._queued = True
            torch.autograd.Variable._execution_engine.queue_callback(self._average)  # noqa: SLF001 - as torch's own wrappers do

    def _average(self) -> None:
        self._queued = False
        self._ranks.average_gradients(self._watched)
