"""The kernels at hand on the run's device: budget, ages in epochs, and that nothing computed depends on them."""

from __future__ import annotations

import torch
from torch import nn

from esper.core.digest import module_state, state_digest
from esper.kasmina import KasminaConfig, KernelCache
from esper.kasmina.household._kernel_cache import module_bytes
from esper.leyline import messages as ly
from tests.kasmina.support import Loop, mlp, seeded


def body(values: int) -> nn.Module:
    """Return a module of `values` float32 numbers."""
    return nn.Linear(values, 1, bias=False)


def test_the_longest_unused_goes_first() -> None:
    """Goal: LRU in a byte budget. Method: three bodies of 40 bytes in 100, one of them used in between."""
    cache = KernelCache(bytes_max=100, epochs_max=9)
    one, two, three = body(10), body(10), body(10)
    cache.put("one", one)
    cache.put("two", two)
    assert cache.get("one") is one
    cache.put("three", three)
    assert ("one" in cache, "two" in cache, "three" in cache) == (True, False, True)
    assert cache.get("two") is None
    assert (cache.hits, cache.misses, cache.evictions, cache.bytes, len(cache)) == (1, 1, 1, 80, 2)


def test_what_is_larger_than_the_budget_is_not_held() -> None:
    """Goal: one huge kernel does not empty the cache. Method: a body of 400 bytes beside one of 40 in 100."""
    cache = KernelCache(bytes_max=100, epochs_max=9)
    cache.put("small", body(10))
    cache.put("huge", body(100))
    assert ("small" in cache, "huge" in cache, cache.bytes, cache.evictions) == (True, False, 40, 0)
    none = KernelCache(bytes_max=0, epochs_max=1)
    none.put("small", body(10))
    assert len(none) == 0


def test_the_same_digest_is_counted_once() -> None:
    """Goal: bytes add up. Method: one digest put twice, then cleared."""
    cache = KernelCache(bytes_max=100, epochs_max=9)
    cache.put("one", body(10))
    cache.put("one", body(10))
    assert (len(cache), cache.bytes, cache.evictions) == (1, 40, 0)
    assert cache.clear() == 40
    assert (len(cache), cache.bytes, cache.evictions) == (0, 0, 1)


def test_ages_are_epochs_since_the_last_use() -> None:
    """Goal: what nobody asks for goes after its epochs, and no earlier. Method: one body used, one not."""
    cache = KernelCache(bytes_max=1000, epochs_max=3)
    cache.put("used", body(10))
    cache.put("idle", body(10))
    assert cache.close_epoch(1) == 0
    cache.get("used")
    assert cache.close_epoch(2) == 0
    assert cache.close_epoch(3) == 1
    assert ("used" in cache, "idle" in cache) == (True, False)
    assert cache.close_epoch(4) == 1


def test_shared_tensors_count_once() -> None:
    """Goal: sizes are those of memory. Method: a body that has one layer twice, and a buffer."""
    layer = body(10)
    both = nn.Sequential(layer, layer)
    both.register_buffer("mean", torch.zeros(5))
    assert module_bytes(both) == 40 + 20


def life(cache_bytes: int, cache_epochs: int = 20) -> tuple[Loop, str]:
    """Graft one kernel twice, with a cull in between, and return the loop and the digest that it ends with."""
    config = KasminaConfig(warmup_steps=2, embargo_epochs=1, cache_bytes_max=cache_bytes, cache_epochs_max=cache_epochs)
    loop = Loop(seeded(mlp), ["1", "2"], config=config)
    for slot in ("1", "1"):
        loop.train_epoch(3)
        assert loop.germinate(slot).result == ly.COMMAND_RESULT_APPLIED
        loop.train_epoch(3)
        held = next(iter(loop.manager.lifecycle.in_stages({ly.SEED_STAGE_TRAINING}))).seed_id
        if slot == "1" and len(loop.manager.summaries()) == 1:
            loop.order(ly.SEED_OP_CULL, seed_id=held)
            for _ in range(2):
                loop.train_epoch(3)
                loop.manager.handle_command(None, epoch=loop.epoch, append=loop.log.append)
    return loop, state_digest({**module_state(loop.model), **loop.manager.state()})


def test_what_is_held_changes_nothing_that_is_computed() -> None:
    """Goal: the cache is about time alone. Method: one life with room, without, and forgetful."""
    with_room, without, forgetful = life(1 << 20), life(0), life(1 << 20, cache_epochs=1)
    assert with_room[1] == without[1] == forgetful[1]
    figures = with_room[0].manager.figures()
    assert (figures["kasmina.cache.hits"], figures["kasmina.cache.misses"]) == (1.0, 1.0)
    assert without[0].manager.figures()["kasmina.cache.hits"] == 0.0
    assert forgetful[0].manager.figures()["kasmina.cache.evictions"] >= 1.0


def test_a_held_body_is_never_trained() -> None:
    """Goal: what is held stays what its digest says. Method: train a seed made from it, then compare with a new one."""
    loop, _ = life(1 << 20)
    ((digest, _),) = loop.manager._house.kernels._held.items()
    held = loop.manager._house.kernels.get(digest)
    fresh = loop.manager._examiner._runtime.fetch_by_digest(digest).module
    assert held is not None
    assert fresh is not None
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, held.state_dict()[name]), name


def test_the_end_of_the_run_lets_go() -> None:
    """Goal: nothing outlives the run. Method: close the manager, twice."""
    loop, _ = life(1 << 20)
    assert len(loop.manager._house.kernels) == 1
    loop.manager.close()
    loop.manager.close()
    assert len(loop.manager._house.kernels) == 0
