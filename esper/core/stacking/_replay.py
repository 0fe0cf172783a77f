"""The steps of an epoch, one after the other or as replays of one that was recorded.

A step of a stack of small hosts is some hundred small operations: asking a GPU for each costs more than computing it.
All steps of an epoch but the last ask for the same operations on the same tensors, so that one is recorded (a CUDA
graph) and asked for again by one call. What differs from step to step is read from tables at a cursor that lies on the
device (`StepClock`).
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Protocol

import torch
import torch.utils.deterministic

from esper.core.stacking._steps import StepClock

_logger = logging.getLogger("esper.core.stacking")

#: Recording costs about two steps; with fewer to replay it is not worth it.
_REPLAYS_MIN: Final = 4

Work = Callable[[], None]


class Recorder(Protocol):
    """Records what a piece of work asks of a device, without doing it, to do it as often as is wanted."""

    def running(self) -> AbstractContextManager[None]:
        """Have all work inside the block done where what is recorded is replayed."""

    def record(self, work: Work) -> Work:
        """Return what does `work` again on the same tensors; it is called inside `running`, once it was done before.

        Raises:
            RuntimeError: it asks for something that cannot be recorded; nothing was done.
        """


@dataclass
class ReplayCounts:
    """How the steps so far were taken."""

    eager: int = 0
    recorded: int = 0
    replayed: int = 0
    refused: int = 0


class StepLoop:
    """Takes the steps of each epoch, on the same tensors in the same order whether they are replayed or not.

    `clock` must be a captured one where there is a recorder. A step that cannot be recorded is taken as it is.
    """

    def __init__(self, clock: StepClock, recorder: Recorder | None) -> None:
        assert recorder is None or clock.captured, "a replay reads its step from the device"
        self._clock = clock
        self._recorder = recorder
        self._structure: Hashable = None
        self._replay: Work | None = None
        self.counts = ReplayCounts()

    def run(self, take: Work, *, steps: int, alike: int, structure: Hashable) -> None:
        """Call `take` with the clock at each of `steps` steps, or replay it.

        Args:
            take: Takes the step at which the clock stands.
            steps: How many there are.
            alike: The first so many do the same operations on tensors of the same shapes.
            structure: Whatever was recorded holds as long as this stays equal.
        """
        if self._recorder is None:
            self._eagerly(take, range(steps))
            return
        with self._recorder.running():
            done = 0
            if structure != self._structure and alike > _REPLAYS_MIN:
                self._eagerly(take, range(1))  # Whatever is done for the first time is not done in a recording.
                self._clock.advance()
                self._clock.go_to(1)
                self._replay, self._structure, done = self._recorded(take, self._recorder), structure, 1
            if self._replay is not None and structure == self._structure:
                self._clock.go_to(done)
                for _ in range(done, alike):
                    self._replay()
                self.counts.replayed += alike - done
                done = alike
            self._eagerly(take, range(done, steps))

    def _eagerly(self, take: Work, steps: range) -> None:
        for step in steps:
            self._clock.go_to(step)
            take()
        self.counts.eager += len(steps)

    def _recorded(self, take: Work, recorder: Recorder) -> Work | None:
        def work() -> None:
            take()
            self._clock.advance()

        try:
            replay = recorder.record(work)
        except RuntimeError as error:
            self.counts.refused += 1
            _logger.warning("a stack's step cannot be replayed and is computed operation by operation: %s", error)
            return None
        self.counts.recorded += 1
        return replay


class CudaRecorder:
    """CUDA graphs on a stream of their own, whose memory they share: they are replayed one after the other."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        cuda: Any = torch.cuda  # mypy finds no types for its streams.
        self._stream: torch.cuda.Stream = cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        with self.running():
            self._tick()
            # A pool that no graph holds any more cannot be used again.
            self._anchor = self._captured(self._tick)

    def _tick(self) -> None:
        torch.zeros(1, device=self._device).add_(1.0)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Have all work inside the block done on the graphs' stream, between what was asked for before and after."""
        around = torch.cuda.current_stream(self._device)
        switches: Any = torch.utils.deterministic  # A module whose one property mypy does not see.
        filled = switches.fill_uninitialized_memory
        self._stream.wait_stream(around)
        # One operation more for every fresh tensor otherwise; nothing here reads what nobody wrote.
        switches.fill_uninitialized_memory = False
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            switches.fill_uninitialized_memory = filled
            around.wait_stream(self._stream)

    def record(self, work: Work) -> Work:
        """Return what replays `work`, with all tensors that it makes in the graphs' memory."""
        return self._captured(work).replay

    def _captured(self, work: Work) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        collects = gc.isenabled()
        gc.disable()  # What it frees might ask something of the device that a recording does not allow.
        try:
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()
        finally:
            if collects:
                gc.enable()
        return graph


@lru_cache(maxsize=8)
def recorder_for(device: torch.device) -> Recorder | None:
    """Return what records steps on a device; None where asking costs little beside computing."""
    return CudaRecorder(device) if device.type == "cuda" else None
