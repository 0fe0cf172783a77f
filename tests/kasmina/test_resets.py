"""G5 and the reset: a culled seed leaves nothing, and after its embargo the slot is free again."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from esper.core.errors import IntegrityError
from esper.kasmina import KasminaConfig, ResetEvidence, reset_gate
from esper.kasmina.testing import InMemoryRuntime
from esper.leyline import EventMessage
from esper.leyline import messages as ly
from tests.kasmina.support import FACTORIES, Loop, mlp, seeded

EMBARGO = 3
G5 = "SEED_GATE_G5_RESET:1.1"
STAGES = [ly.SEED_STAGE_TRAINING, ly.SEED_STAGE_BLENDING, ly.SEED_STAGE_PROBATIONARY]


def a_loop(runtime: InMemoryRuntime | None = None) -> Loop:
    """Return a host with one slot and a short embargo."""
    config = KasminaConfig(warmup_steps=5, blend_epochs=1.0, embargo_epochs=EMBARGO)
    return Loop(seeded(mlp), ["1"], config=config, runtime=runtime)


def pass_edge(loop: Loop, steps: int = 2) -> list[EventMessage]:
    """Train an epoch and go through its edge without a command; return what the edge said."""
    loop.train_epoch(steps)
    decision = loop.manager.handle_command(None, epoch=loop.epoch, append=loop.log.append)
    outcome = ly.CommandOutcome(epoch=loop.epoch, result=decision.result, gate_verdicts=decision.gate_verdicts)
    loop.outcomes.append(outcome)
    return list(decision.events)


def told(events: list[EventMessage]) -> list[str]:
    """Return moves, gates and refusals as short words."""
    words = []
    for event in events:
        if isinstance(event, ly.SeedStageChanged):
            words.append(ly.SeedLifecycleStage.Name(event.to_stage)[11:])
        elif isinstance(event, ly.GateEvaluated):
            words.append(f"{ly.SeedLifecycleGate.Name(event.gate)[10:12]} {event.passed}")
        elif isinstance(event, ly.SeedMoveRejected):
            words.append(event.reason)
    return words


@pytest.mark.parametrize("stage", STAGES, ids=ly.SeedLifecycleStage.Name)
def test_the_slot_is_free_again_after_the_embargo(stage: ly.SeedLifecycleStage) -> None:
    """Goal: CULLED -> EMBARGOED -> RESETTING -> DORMANT, in epochs. Method: cull at a stage; the slot is barred for
    three edges and not longer, G5 has its evidence, and a second seed germinates there.
    """
    loop = a_loop()
    seed_id = loop.grow("1", stage, steps=20)
    loop.train_epoch(5)
    loop.order(ly.SEED_OP_CULL, seed_id=seed_id, parameters={"fall_steps": 0.0})
    for _ in range(EMBARGO - 1):
        assert pass_edge(loop) == []
        assert loop.manager.slot_states()[0].seed_id == seed_id
    events = pass_edge(loop)
    assert told(events) == ["RESETTING", "G5 True", "DORMANT"]
    assert loop.outcomes[-1].gate_verdicts == {G5: True}
    gate, dormant = events[1], events[2]
    assert isinstance(gate, ly.GateEvaluated)
    assert isinstance(dormant, ly.SeedStageChanged)
    assert list(dormant.gate_event_ids) == [gate.meta.event_id]
    assert dormant.reason == "embargo_over"
    assert loop.manager.slot_states()[0].seed_id == ""
    assert len({event.meta.event_id for event in loop.log}) == len(loop.log) == loop.manager.lifecycle.events
    loop.train_epoch(2)
    second = loop.germinate("1")
    assert (second.result, second.seed_id) == (ly.COMMAND_RESULT_APPLIED, "1.2")
    assert [summary.stage for summary in loop.manager.summaries()] == [ly.SEED_STAGE_DORMANT, ly.SEED_STAGE_TRAINING]


def culled(stage: ly.SeedLifecycleStage = ly.SEED_STAGE_BLENDING) -> tuple[Loop, list[object]]:
    """Return a loop one edge before the reset of a culled seed, and what a fault may keep of it (taken before)."""
    loop = a_loop()
    seed_id = loop.grow("1", stage, steps=20)
    live = loop.manager._bed.live[seed_id]
    loop.train_epoch(5)
    kept: list[object] = [live.seed, live.trainer.optimizer, next(live.seed.parameters()).detach()]
    del live
    loop.order(ly.SEED_OP_CULL, seed_id=seed_id, parameters={"fall_steps": 0.0})
    for _ in range(EMBARGO - 1):
        assert pass_edge(loop) == []
    return loop, kept


def keep(loop: Loop, kept: list[object], fault: str) -> None:
    """Inject one fault: something of the seed is not gone."""
    seed, optimizer, memory = kept
    assert isinstance(seed, nn.Module)
    assert isinstance(memory, torch.Tensor)
    slot = loop.model.get_submodule("1")
    kept.clear()
    if fault == "module":
        kept.append(seed)
    elif fault == "optimizer":
        kept.append(optimizer)
    elif fault == "memory":
        kept.append(memory)
    elif fault == "submodule":
        loop.manager._bed._remains["1.1"].anchor.add_module("esper_1_1", nn.Identity())
    elif fault == "hook":
        slot._forward_hooks[loop.manager._bed._remains["1.1"].hook_id] = lambda *_: None
    elif fault == "host optimizer":
        loop.optimizer.param_groups[0]["params"].append(next(seed.parameters()))


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("module", "objects_alive"),
        ("optimizer", "objects_alive"),
        ("memory", "bytes_alive"),
        ("submodule", "submodules_left"),
        ("hook", "hooks_left"),
        ("host optimizer", "optimizer_entries"),
    ],
)
def test_g5_finds_what_is_left(fault: str, check: str) -> None:
    """Goal: G5 can fail. Method: keep one thing of a culled seed; it stays RESETTING, its slot barred, the rejection is
    an event, and it is tried again after another embargo.
    """
    loop, kept = culled()
    keep(loop, kept, fault)
    events = pass_edge(loop)
    assert told(events) == ["RESETTING", "G5 False", "gate:SEED_GATE_G5_RESET"]
    gate = events[1]
    assert isinstance(gate, ly.GateEvaluated)
    assert check in {each.name for each in gate.checks if not each.passed}
    assert loop.outcomes[-1].gate_verdicts == {G5: False}
    assert loop.manager.slot_states()[0].seed_id == "1.1"
    for _ in range(EMBARGO - 1):
        assert pass_edge(loop) == []
    assert told(pass_edge(loop)) == ["G5 False", "gate:SEED_GATE_G5_RESET"]
    if fault in ("module", "optimizer", "memory"):
        kept.clear()
        for _ in range(EMBARGO - 1):
            assert pass_edge(loop) == []
        assert told(pass_edge(loop)) == ["G5 True", "DORMANT"]


def test_a_cycle_of_references_is_collected_before_g5_judges() -> None:
    """Goal: garbage is not memory that is held. Method: a seed in a reference cycle of its own; the reset passes."""
    loop, kept = culled()
    seed = kept[0]
    assert isinstance(seed, nn.Module)
    seed.__dict__["myself"] = seed
    del seed
    kept.clear()
    assert told(pass_edge(loop)) == ["RESETTING", "G5 True", "DORMANT"]


def test_g5_fails_without_evidence() -> None:
    """Goal: absent evidence blocks. Method: no evidence; and each count of it above zero."""
    clean = dict.fromkeys(ResetEvidence.__dataclass_fields__, 0)
    assert reset_gate(ResetEvidence(**clean)).passed
    assert not reset_gate(None).passed
    for name in clean:
        assert not reset_gate(ResetEvidence(**{**clean, name: 1})).passed


def replayed(outcomes: list[ly.CommandOutcome], runtime: InMemoryRuntime) -> Loop:
    """Re-execute a run from its outcomes."""
    again = a_loop(runtime)
    for outcome in outcomes:
        again.train_epoch(2)
        decision = again.manager.decide(None, epoch=again.epoch, recorded=outcome)
        for event in decision.events:
            again.log.append(event)
            again.manager.fold(event)
    return again


def recorded() -> tuple[Loop, InMemoryRuntime]:
    """Return a run in which a seed was culled and reset."""
    runtime = InMemoryRuntime(FACTORIES)
    loop = a_loop(runtime)
    loop.train_epoch(2)
    loop.germinate("1")
    loop.train_epoch(2)
    loop.order(ly.SEED_OP_CULL, seed_id="1.1")
    for _ in range(EMBARGO):
        pass_edge(loop)
    return loop, runtime


@pytest.mark.parametrize("then", [True, False, None])
def test_a_re_execution_resets_what_the_record_resets(then: bool | None) -> None:
    """Goal: the recorded verdict binds, for memory is a process's own affair; a run from before there were resets has
    none. Method: outcomes with the verdict as it was, turned, and taken out.
    """
    loop, runtime = recorded()
    outcomes = loop.outcomes
    assert outcomes[-1].gate_verdicts == {G5: True}
    if then is None:
        del outcomes[-1].gate_verdicts[G5]
    else:
        outcomes[-1].gate_verdicts[G5] = then
    stages = {True: ly.SEED_STAGE_DORMANT, False: ly.SEED_STAGE_RESETTING, None: ly.SEED_STAGE_EMBARGOED}
    again = replayed(outcomes, runtime)
    assert again.manager.lifecycle.stage_of("1.1") == stages[then]
    if then:
        assert [event.meta.event_id for event in again.log] == [event.meta.event_id for event in loop.log]


def test_a_record_that_resets_what_was_not_culled_is_refused() -> None:
    """Goal: a false record is found. Method: an outcome that resets a seed nobody knows."""
    loop, runtime = recorded()
    loop.outcomes[0].gate_verdicts["SEED_GATE_G5_RESET:9.9"] = True
    with pytest.raises(IntegrityError, match="not under embargo"):
        replayed(loop.outcomes, runtime)


def test_a_seed_culled_in_another_life_is_reset_in_this_one() -> None:
    """Goal: a restored run frees its slots too. Method: a checkpoint between cull and reset, restored into a fresh
    manager; the reset comes at the same edge.
    """
    runtime = InMemoryRuntime(FACTORIES)
    loop = a_loop(runtime)
    loop.train_epoch(2)
    loop.germinate("1")
    loop.train_epoch(2)
    loop.order(ly.SEED_OP_CULL, seed_id="1.1")
    loop.train_epoch(2)
    saved = loop.manager.checkpoint()
    again = a_loop(runtime)
    again.manager.restore(saved)
    again.epoch = loop.epoch
    for each in (loop, again):
        each.manager.handle_command(None, epoch=each.epoch, append=each.log.append)
        assert pass_edge(each) == []
        assert told(pass_edge(each)) == ["RESETTING", "G5 True", "DORMANT"]
