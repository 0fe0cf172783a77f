"""Slots of compiled hosts: nothing is compiled anew while seeds come, blend, stay and go."""

from __future__ import annotations

import copy
from collections import Counter
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import clear_compilation_metrics, counters, get_compilation_metrics
from torch.nn import functional

from esper.core.errors import IntegrityError
from esper.kasmina import add_sockets, is_compiled
from esper.kasmina.grafting._sockets import socket_of
from esper.leyline import messages as ly
from tests.campaigns import WHOLE
from tests.kasmina.support import HOSTS, PROBE, InputStatistics, Loop, all_bytes, batch, optimizer_bytes, seeded
from tests.kasmina.test_compiled import evaluated, step

#: Where a graph ends in the middle of a forward, torch itself looks at the gradient of an activation, and warns.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
#: `make faults` compiles to machine code as well.
BACKENDS = ["aot_eager", *(["inductor"] if WHOLE else [])]


def socketed(name: str = "mlp", backend: str = "aot_eager") -> tuple[Loop, Any]:
    """Return a loop over a host with sockets, and the host compiled in one graph, warm in both modes."""
    torch.compiler.reset()
    factory, slot = HOSTS[name]
    loop = Loop(seeded(factory), [slot])
    add_sockets(loop.model, loop.manager._slots.values())
    compiled = torch.compile(loop.model, backend=backend, fullgraph=True)
    for _ in range(2):
        step(loop, compiled)
        evaluated(loop, compiled)
    return loop, compiled


def epochs(loop: Loop, compiled: Any, count: int) -> None:
    """Train epochs of six steps through the compiled host; the last edge is left open."""
    for number in range(count):
        if number:
            loop.manager.handle_command(None, epoch=loop.epoch, append=loop.log.append)
        for _ in range(6):
            step(loop, compiled)
        loop.epoch += 1
        for event in loop.manager.end_epoch(loop.epoch):
            loop.manager.fold(event)


@pytest.mark.parametrize("name", ["mlp", "residual", "twice"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_whole_life_compiles_nothing(name: str, backend: str) -> None:
    """Goal: no recompile while grafting. Method: two lives, to fossil and to cull, where torch refuses to compile."""
    loop, compiled = socketed(name, backend)
    (spec,) = loop.manager._slots.values()
    compiled_before = dict(counters["stats"])
    clear_compilation_metrics()
    # Machine code fuses what eager code rounds in between.
    close = {"rtol": 0.0, "atol": 0.0} if backend == "aot_eager" else {"rtol": 1e-4, "atol": 1e-5}
    heard = []
    with torch.compiler.set_stance("fail_on_recompile"):
        loop.epoch = 1
        first = loop.germinate(spec.slot).seed_id
        for operation in (ly.SEED_OP_START_GRAFTING, ly.SEED_OP_CULL):
            epochs(loop, compiled, 2)
            assert loop.order(operation, seed_id=first).result == ly.COMMAND_RESULT_APPLIED
            heard.append(list(loop.model.state_dict()))
        epochs(loop, compiled, 8)  # It fades, goes, and its slot rests.
        heard.append(list(loop.model.state_dict()))
        decision = loop.germinate(spec.slot)
        assert decision.result == ly.COMMAND_RESULT_APPLIED, decision.reason
        second = decision.seed_id
        for operation in (
            ly.SEED_OP_START_GRAFTING,
            ly.SEED_OP_STABILIZE,
            ly.SEED_OP_EVALUATE,
            ly.SEED_OP_FOSSILIZE,
        ):
            epochs(loop, compiled, 2)
            torch.testing.assert_close(evaluated(loop, compiled), evaluated(loop, loop.model), **close)
            moved = loop.order(operation, seed_id=second)
            assert moved.result == ly.COMMAND_RESULT_APPLIED, moved.reason
        epochs(loop, compiled, 1)
        torch.testing.assert_close(evaluated(loop, compiled), evaluated(loop, loop.model), **close)
    assert dict(counters["stats"]) == compiled_before
    assert compiled_of_us() == []
    assert heard[0] != heard[2]
    assert loop.manager.lifecycle.stage_of(second) == ly.SEED_STAGE_FOSSILIZED


def compiled_of_us() -> list[str]:
    """Return the functions of Esper's seeds that torch compiled since the metrics were cleared, one for each time."""
    metrics = get_compilation_metrics()
    return [
        str(each.co_name) for each in metrics if str(each.co_filename).endswith(("_seed.py", "_graft.py", "_passes.py"))
    ]


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace")
@pytest.mark.parametrize("guarded", [True, False], ids=["as it is", "a seed that torch may trace"])
def test_torch_traces_no_seed(guarded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: no version of torch compiles a seed, draw after draw. Method: ask a blending seed from a frame that torch
    gave up, where it traces what that calls; without the guard it compiles what counts draws until its limit.
    """
    if not guarded:
        monkeypatch.setattr("esper.kasmina.grafting._sockets.EagerHook", lambda hook: hook)
    loop, compiled = socketed()
    seed_id = loop.grow("1", ly.SEED_STAGE_BLENDING)
    for _ in range(2):
        step(loop, compiled)
    seed, module = loop.manager._bed.live[seed_id].seed, loop.model.get_submodule("1")
    socket = socket_of(module)
    assert socket is not None
    assert seed.alpha > 0.0
    assert seed.training

    def asked(source: Tensor, output: Tensor) -> Tensor | None:
        return socket.hear((source,), output)

    given_up = torch.compiler.disable(asked, recursive=False)
    torch.manual_seed(3)
    source, output = torch.randn(4, 12), torch.randn(4, 8)
    traced = torch.compile(lambda source, output: given_up(source, output * 2.0), backend="aot_eager")
    draws = seed._draws
    clear_compilation_metrics()
    for _ in range(5):
        assert isinstance(traced(source, output), Tensor)
    assert seed._draws == draws + 5
    times = Counter(compiled_of_us())
    assert bool(times) == (not guarded)
    assert guarded or max(times.values()) >= 5, "a function that counts draws is compiled for each"


def test_without_sockets_a_graft_compiles_anew() -> None:
    """Goal: the test above can fail. Method: the same graft on a host that was compiled without sockets."""
    torch.compiler.reset()
    loop = Loop(seeded(HOSTS["mlp"][0]), ["1"])
    compiled = torch.compile(loop.model, backend="aot_eager")
    step(loop, compiled)
    before = counters["stats"]["unique_graphs"]
    loop.grow("1", ly.SEED_STAGE_BLENDING)
    step(loop, compiled)
    step(loop, compiled)
    assert counters["stats"]["unique_graphs"] > before


@pytest.mark.parametrize("name", ["mlp", "residual", "twice"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_compiled_host_does_not_feel_its_slots(name: str, backend: str) -> None:
    """Goal: byte equality. Method: 60 steps compiled: without Kasmina, with empty sockets, with a seed in TRAINING."""
    factory, slot = HOSTS[name]
    states = {}
    for case in ("alone", "empty", "training"):
        torch.compiler.reset()
        loop = Loop(seeded(factory), [slot])
        host = list(loop.model.state_dict())
        if case != "alone":
            add_sockets(loop.model, loop.manager._slots.values())
        if case == "training":
            loop.epoch = 1
            loop.germinate(slot)
        compiled = torch.compile(loop.model, backend=backend)
        torch.manual_seed(5)
        for _ in range(60):
            step(loop, compiled)
        weights = all_bytes(loop.model)
        states[case] = ({f"0:{name}": weights[f"0:{name}"] for name in host}, optimizer_bytes(loop.optimizer))
        steps = [live.trainer.steps for live in loop.manager._bed.live.values()]
        assert steps == ([60] if case == "training" else [])
    assert states["empty"] == states["alone"]
    assert states["training"] == states["alone"]


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_seeds_work_under_mixed_precision_and_accumulation(precision: str) -> None:
    """Goal: AMP, a scaler, two parts a step. Method: a blending seed, compiled and eager, none compiled anew."""
    states = []
    for through_compiled in (False, True):
        loop, compiled = (
            socketed("residual") if through_compiled else (Loop(seeded(HOSTS["residual"][0]), ["block"]), None)
        )
        loop.steps = 2
        model = compiled if through_compiled else loop.model
        if not through_compiled:
            for number in range(2):
                loop.steps = number
                step(loop, loop.model)
                evaluated(loop, loop.model)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=10_000)
        autocast = torch.autocast("cpu", torch.bfloat16) if precision == "bfloat16" else nullcontext()

        def amp_step(loop: Loop = loop, model: Any = model, scaler: Any = scaler, autocast: Any = autocast) -> None:
            loop.manager.before_step()
            loop.optimizer.zero_grad()
            for part in range(2):
                inputs, targets = batch(2 * loop.steps + part)
                with autocast:
                    loss = functional.cross_entropy(model(inputs), targets) / 2
                scaler.scale(loss).backward()
            scaler.unscale_(loop.optimizer)
            nn.utils.clip_grad_norm_([p for g in loop.optimizer.param_groups for p in g["params"]], 0.5)
            scaler.step(loop.optimizer)
            scaler.update()
            loop.manager.scale_gradients(1.0 / 256.0)
            loop.manager.after_step(inputs, targets)
            loop.steps += 1

        amp_step()  # Compiled for this precision here.
        with torch.compiler.set_stance("fail_on_recompile") if through_compiled else nullcontext():
            loop.epoch = 1
            seed_id = loop.germinate("block").seed_id
            for _ in range(2):
                for _ in range(6):
                    amp_step()
                loop.epoch += 1
                assert not loop.manager.end_epoch(loop.epoch)
            moved = loop.order(ly.SEED_OP_START_GRAFTING, seed_id=seed_id)
            assert moved.result == ly.COMMAND_RESULT_APPLIED, moved.reason
            for _ in range(12):
                amp_step()
        (live,) = loop.manager._bed.live.values()
        assert live.seed.alpha > 0.9
        assert live.trainer.steps == 24 - 1, "at alpha 0 the first joint step has no gradient"
        states.append(loop.model.state_dict())
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-4, atol=1e-5, msg=name)


def test_a_copy_of_a_host_with_sockets_has_its_own() -> None:
    """Goal: deepcopy, as for an EMA, keeps working. Method: change the original's seed, look at the copy."""
    loop, compiled = socketed()
    loop.grow("1", ly.SEED_STAGE_FOSSILIZED)
    twin = copy.deepcopy(loop.model)
    ours, others = socket_of(loop.model.get_submodule("1")), socket_of(twin.get_submodule("1"))
    assert ours is not None
    assert others is not None
    assert ours.handle != others.handle
    twin.eval()
    (statistics,) = [module for module in twin.modules() if isinstance(module, InputStatistics)]
    mean = statistics.mean.clone()

    def of_twin() -> Tensor:
        statistics.mean.copy_(mean)
        with torch.no_grad():
            outputs: Tensor = twin(PROBE[0][0])
        return outputs

    before = of_twin()
    (live,) = loop.manager._bed.live.values()
    with torch.no_grad():
        for parameter in live.seed.parameters():
            parameter.add_(1.0)
    assert not torch.equal(evaluated(loop, compiled), before)
    assert torch.equal(of_twin(), before)


def test_a_backward_that_comes_too_late_is_refused() -> None:
    """Goal: no seed learns in silence from nothing. Method: begin the next step between a forward and its backward."""
    loop, compiled = socketed()
    loop.grow("1", ly.SEED_STAGE_FOSSILIZED)
    inputs, targets = batch(0)
    loss = functional.cross_entropy(compiled(inputs), targets)
    loop.manager.before_step()
    with pytest.raises(IntegrityError, match="cannot learn from this backward"):
        loss.backward()


def test_what_compiled_in_place_is_seen() -> None:
    """Goal: both ways to compile count. Method: compile a part by `nn.Module.compile`."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert not is_compiled(model)
    model[1].compile(backend="eager")
    assert is_compiled(model)
