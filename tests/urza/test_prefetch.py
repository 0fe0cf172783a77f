"""Kernels brought near before they are ordered, on the real broker: who asks, how often, and what comes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from esper.core.clock import SYSTEM_CLOCK, Deadline
from esper.core.kernel import DirectoryBlobStore
from esper.core.ports import FetchedKernel, KernelUnavailable, PrefetchingRuntime
from esper.kasmina import KasminaPrefetchCoordinator
from esper.leyline import messages as ly
from esper.oona import Fabric
from esper.urza import UrzaRuntime
from tests.urza.harness import DEADLINE_SECONDS, Log, forge, fresh_request, urza


@pytest.fixture
def log(fabric: Fabric) -> Log:
    """Return the log of a kernel that is new."""
    return Log(fabric, fresh_request())


@pytest.fixture
def runtime(fabric: Fabric) -> UrzaRuntime:
    """Return the runtime of a worker that may ask for kernels."""
    return UrzaRuntime(fabric, store=DirectoryBlobStore(fabric.home.blobs), publisher=fabric.publisher("kasmina"))


def until(look: Callable[[], FetchedKernel | None]) -> FetchedKernel:
    deadline = Deadline(DEADLINE_SECONDS)
    while not deadline.expired:
        kernel = look()
        if kernel is not None:
            return kernel
        SYSTEM_CLOCK.sleep(0.02)
    raise AssertionError("no kernel came")


def test_a_prefetch_asks_once_and_finds_the_reply(fabric: Fabric, runtime: UrzaRuntime, log: Log) -> None:
    """Goal: the trio of messages, ahead of the order. Method: look until it is there, then fetch it."""
    assert isinstance(runtime, PrefetchingRuntime)
    assert runtime.prefetch(log.request, run_id="run-7") is None, "nobody makes kernels yet"
    with urza(fabric), forge(fabric):
        kernel = until(lambda: runtime.prefetch(log.request, run_id="run-7"))
        fetched = runtime.fetch_kernel(log.request, run_id="run-7", wait_seconds=0.5)
    (asked,) = log.of(ly.KernelPrefetchRequest)
    (ready,) = log.of(ly.KernelArtifactReady)
    assert (asked.training_run_id, ready.request_id) == ("run-7", asked.request_id)
    assert ready.artifact_ref == kernel.artifact_ref == fetched.artifact_ref
    assert kernel.module is not None
    assert fetched.module is not None
    assert kernel.module is not fetched.module
    for one, other in zip(kernel.module.parameters(), fetched.module.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_fetch_waits_for_the_reply_that_was_asked_for(fabric: Fabric, runtime: UrzaRuntime, log: Log) -> None:
    """Goal: a late prefetch is not asked twice. Method: look once, then order; the log holds one request."""
    assert runtime.prefetch(log.request, run_id="run-7") is None
    with urza(fabric), forge(fabric):
        fetched = runtime.fetch_kernel(log.request, run_id="run-7", wait_seconds=DEADLINE_SECONDS)
        assert runtime.prefetch(log.request, run_id="run-7") is not None, "the catalogue has it"
    assert fetched.artifact_ref
    assert len(log.of(ly.KernelPrefetchRequest)) == 1


def test_a_refusal_ends_a_prefetch_with_its_reason(fabric: Fabric, runtime: UrzaRuntime) -> None:
    """Goal: a kernel that cannot be made is said to be so. Method: ask ahead for a blueprint that nobody has."""
    wanted = fresh_request("BP999", growth_rate=2.5)
    assert runtime.prefetch(wanted, run_id="run-1") is None
    with urza(fabric), forge(fabric), pytest.raises(KernelUnavailable) as caught:
        until(lambda: runtime.prefetch(wanted, run_id="run-1"))
    assert caught.value.reason == "unknown_blueprint"


def test_nobody_to_ask_ahead(fabric: Fabric, log: Log) -> None:
    """Goal: a runtime that may not ask says so. Method: one without a publisher."""
    with pytest.raises(KernelUnavailable) as caught:
        UrzaRuntime(fabric, store=DirectoryBlobStore(fabric.home.blobs)).prefetch(log.request, run_id="run-1")
    assert caught.value.reason == "not_in_catalogue"


def test_the_coordinator_and_a_fetch_share_one_runtime(fabric: Fabric, runtime: UrzaRuntime, log: Log) -> None:
    """Goal: two threads, one runtime. Method: one kernel is brought near while another is fetched."""
    other = fresh_request()
    kept: list[FetchedKernel] = []
    with urza(fabric), forge(fabric):
        coordinator = KasminaPrefetchCoordinator(runtime, run_id="run-7", keep=kept.append)
        coordinator.expect([log.request])
        unforeseen = coordinator.fetch(other, wait_seconds=DEADLINE_SECONDS)
        assert coordinator.settle(DEADLINE_SECONDS)
        foreseen = coordinator.fetch(log.request, wait_seconds=DEADLINE_SECONDS)
        coordinator.close()
    assert [kernel.artifact_ref for kernel in kept] == [foreseen.artifact_ref]
    assert unforeseen.artifact_ref != foreseen.artifact_ref
    counts = coordinator.counts
    assert (counts.requested, counts.ready, counts.hits, counts.misses, counts.late) == (1, 1, 1, 1, 0)
    assert len(log.of(ly.KernelPrefetchRequest)) == 1


def test_opened_artifacts_can_be_let_go(fabric: Fabric, runtime: UrzaRuntime, log: Log) -> None:
    """Goal: memory can be had back. Method: open one, clear, and open it again from the store."""
    with urza(fabric), forge(fabric):
        first = runtime.fetch_kernel(log.request, run_id="run-7", wait_seconds=DEADLINE_SECONDS)
        assert runtime.clear() > 0
        assert runtime.clear() == 0
        again = runtime.fetch_kernel(log.request, run_id="run-7", wait_seconds=DEADLINE_SECONDS)
    assert again.artifact_ref == first.artifact_ref
    assert runtime.close_epoch(1) == 0
