"""Random interleavings of commands, epochs and faults against the whole manager."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from torch import nn

from esper.core.ports import EdgeDecision
from esper.kasmina import GateLimits, KasminaConfig, is_allowed
from esper.kasmina.lifecycle._lifecycle import (
    ATTACHED_STAGES,
    BARRED_STAGES,
    FALLING_STAGES,
    JOINT_STAGES,
    SeedRecord,
    shortens,
)
from esper.kasmina.testing import InMemoryRuntime
from esper.leyline import messages as ly
from tests.kasmina.reborn import reborn
from tests.kasmina.support import FACTORIES, PROBE, Loop, outputs

SLOTS = ["0", "2"]
SEED_IDS = st.sampled_from([f"{slot}.{number}" for slot in SLOTS for number in (1, 2, 3)])
EMBARGO = 2
LEAVING = [ly.SEED_OP_CULL, ly.SEED_OP_CANCEL]
LIMITS = GateLimits(training_epochs_min=1, shadow_loss_rise_max=99.0, gain_min=-99.0, prune_rise_max=99.0)
CONFIG = KasminaConfig(blend_steps=2, limits=LIMITS, embargo_epochs=EMBARGO, isolation_open_epochs=2)
OPERATIONS = st.sampled_from(ly.SeedOperation.values())


def host() -> nn.Module:
    """Return the host; of the same weights each time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 3))


class RandomCommands(RuleBasedStateMachine):
    """Throws commands at a small host at random edges.

    Goal: whatever is ordered in whatever order, stages move only along the table, every edge has one decision, every
    refused move is an event, culled seeds fade and are reset when their embargo is over and not before, and the host
    without its seeds is never changed by an order. Method: rules order any operation on any seed or slot, in any blend
    mode, prune, tune, let edges pass, poison seeds, breach their isolation, hold on to one that is culled, and go on
    from a checkpoint in a new host; invariants compare the manager with a second telling of its log.
    """

    @initialize()
    def start(self) -> None:
        """Begin a run; the gates' limits are wide, so that seeds get far."""
        torch.manual_seed(0)
        model = host()
        self.runtime = InMemoryRuntime(FACTORIES)
        self.loop = Loop(model, SLOTS, config=CONFIG, runtime=self.runtime)
        self.names = set(model.state_dict())
        self.edges = 0
        self.kept: dict[str, nn.Module] = {}

    def next_edge(self) -> None:
        """Train two steps and come to the next edge."""
        self.loop.train_epoch(2)

    def settled(self, decision: EdgeDecision, before: Mapping[str, SeedRecord]) -> None:
        """Hold an edge's resets against the embargo: exactly those are tried that are due; who is held stays."""
        epoch, after = self.loop.epoch, self.loop.manager.lifecycle.seeds
        self.edges += 1
        barred = {seed_id: record for seed_id, record in before.items() if record.stage in BARRED_STAGES}
        waited = {seed_id: epoch - record.stage_epoch for seed_id, record in barred.items()}
        due = {seed_id for seed_id, epochs in waited.items() if epochs and epochs % EMBARGO == 0}
        verdicts = {f"SEED_GATE_G5_RESET:{seed_id}": seed_id not in self.kept for seed_id in due}
        assert {name: passed for name, passed in decision.gate_verdicts.items() if "G5" in name} == verdicts
        for seed_id, record in barred.items():
            stuck = ly.SEED_STAGE_RESETTING if seed_id in due else record.stage
            assert after[seed_id].stage == (ly.SEED_STAGE_DORMANT if seed_id in due - set(self.kept) else stuck)

    def ordered(self, operation: ly.SeedOperation, **fields: object) -> None:
        """Order something at a new edge."""
        self.next_edge()
        self.carried_out(lambda: self.loop.order(operation, **fields))

    def carried_out(self, give: Callable[[], EdgeDecision]) -> None:
        """Give an order at this edge, and check what every decision must keep."""
        before = dict(self.loop.manager.lifecycle.seeds)
        bare = self.bare_outputs()
        decision = give()
        self.settled(decision, before)
        moved = (ly.SeedStageChanged, ly.SeedTuned)
        told = [event for event in decision.events if isinstance(event, moved) and event.command_id]
        refused = [event for event in decision.events if isinstance(event, ly.SeedMoveRejected) and event.command_id]
        if decision.result == ly.COMMAND_RESULT_APPLIED:
            assert told
            assert not refused
            assert not decision.reason
        else:
            assert decision.result == ly.COMMAND_RESULT_REJECTED
            assert decision.reason
            assert not told
            assert len(refused) == (decision.reason != "unsupported_seed_operation")
            reset = {seed_id for seed_id, record in before.items() if record.stage in BARRED_STAGES}
            after = self.loop.manager.lifecycle.seeds
            assert after.keys() == before.keys()
            assert all(after[seed_id] == before[seed_id] for seed_id in before.keys() - reset)
        assert torch.equal(self.bare_outputs(), bare), "an order does not touch the host's own weights"

    def bare_outputs(self) -> torch.Tensor:
        """Return what the host gives with every hook off."""
        hooks = {module: dict(module._forward_hooks) for module in self.loop.model.modules()}
        for module in hooks:
            module._forward_hooks.clear()
        try:
            return outputs(self.loop.model)
        finally:
            for module, kept in hooks.items():
                module._forward_hooks.update(kept)

    @rule(slot=st.sampled_from([*SLOTS, "nowhere"]), blueprint=st.sampled_from([*FACTORIES, "NOBODY", ""]))
    def germinate(self, slot: str, blueprint: str) -> None:
        """Germinate anything anywhere."""
        self.ordered(ly.SEED_OP_GERMINATE, slot=slot, blueprint=blueprint)

    @rule(operation=OPERATIONS, seed_id=SEED_IDS)
    def order(self, operation: ly.SeedOperation, seed_id: str) -> None:
        """Order any operation on any seed, known or not."""
        self.ordered(operation, seed_id=seed_id)

    @rule(slot=st.sampled_from(SLOTS))
    def germinate_and_hold(self, slot: str) -> None:
        """Germinate a seed that waits for START_TRAINING."""
        self.ordered(ly.SEED_OP_GERMINATE, slot=slot, blueprint="BYPASS", hold=True)

    @rule(seed_id=SEED_IDS, mode=st.sampled_from(ly.BlendMode.values()), curve=st.sampled_from(ly.AlphaCurve.values()))
    def graft(self, seed_id: str, mode: ly.BlendMode, curve: ly.AlphaCurve) -> None:
        """Graft in any mode along any curve."""
        self.ordered(ly.SEED_OP_START_GRAFTING, seed_id=seed_id, blend_mode=mode, alpha_curve=curve)

    @rule(seed_id=SEED_IDS, factor=st.sampled_from([0.1, 2.0, 99.0]), epochs=st.sampled_from([1.0, 3.0]))
    def tune(self, seed_id: str, factor: float, epochs: float) -> None:
        """Change how a seed learns."""
        self.ordered(ly.SEED_OP_FINE_TUNE, seed_id=seed_id, parameters={"rate_factor": factor, "epochs": epochs})

    @rule(seed_id=SEED_IDS, steps=st.sampled_from([0.0, 1.0, 7.0]), operation=st.sampled_from(LEAVING))
    def leave(self, seed_id: str, steps: float, operation: ly.SeedOperation) -> None:
        """Take a seed off, at once or slowly."""
        self.ordered(operation, seed_id=seed_id, parameters={"fall_steps": steps})

    @rule(seed_id=SEED_IDS)
    def prune(self, seed_id: str) -> None:
        """Prune what may be no fossil."""
        self.next_edge()
        self.carried_out(lambda: self.loop.prune(seed_id))

    @rule()
    def go_on_elsewhere(self) -> None:
        """Leave the process at an edge and go on from its checkpoint; nobody holds on to anything there."""
        self.next_edge()
        self.loop = reborn(self.loop, host, config=CONFIG, runtime=self.runtime)
        self.kept.clear()
        self.passed()

    @rule()
    def idle(self) -> None:
        """Let an edge pass without a command."""
        self.next_edge()
        self.passed()

    def passed(self) -> None:
        """Command nothing at this edge."""
        before = dict(self.loop.manager.lifecycle.seeds)
        decision = self.loop.manager.handle_command(None, epoch=self.loop.epoch, append=self.loop.log.append)
        assert decision.result == ly.COMMAND_RESULT_NONE
        self.loop.outcomes.append(ly.CommandOutcome(epoch=self.loop.epoch, gate_verdicts=decision.gate_verdicts))
        self.settled(decision, before)

    @rule(seed_id=SEED_IDS)
    def hold(self, seed_id: str) -> None:
        """Hold on to a seed that is growing, so that its reset must fail."""
        live = self.loop.manager._bed.live.get(seed_id)
        if live is not None and self.loop.manager.lifecycle.stage_of(seed_id) != ly.SEED_STAGE_FOSSILIZED:
            self.kept[seed_id] = live.seed

    @rule(seed_id=SEED_IDS)
    def let_go(self, seed_id: str) -> None:
        """Let go of what was held."""
        self.kept.pop(seed_id, None)

    @rule(seed_id=SEED_IDS, times=st.integers(1, 4))
    def breach(self, seed_id: str, times: int) -> None:
        """Write to a seed during the host's step; it is counted each time, and three in a row open the breaker."""
        manager = self.loop.manager
        live = manager._bed.live.get(seed_id)
        if live is None or manager.lifecycle.stage_of(seed_id) == ly.SEED_STAGE_FOSSILIZED:
            return
        before = manager.figures()["kasmina.isolation.violations"]
        for _ in range(times):
            manager.before_step()
            with torch.no_grad():
                next(iter(live.seed.parameters())).add_(1e-6)
            manager.after_step(*PROBE[0])
        assert manager.figures()["kasmina.isolation.violations"] == before + times
        assert times < 3 or manager.figures()["kasmina.isolation.breaker_open"] == 1.0

    @rule(seed_id=SEED_IDS)
    def advance(self, seed_id: str) -> None:
        """Order the usual next move of a seed, so that long lives happen."""
        usual = {
            ly.SEED_STAGE_GERMINATED: ly.SEED_OP_START_TRAINING,
            ly.SEED_STAGE_TRAINING: ly.SEED_OP_START_GRAFTING,
            ly.SEED_STAGE_BLENDING: ly.SEED_OP_STABILIZE,
            ly.SEED_STAGE_SHADOWING: ly.SEED_OP_EVALUATE,
            ly.SEED_STAGE_PROBATIONARY: ly.SEED_OP_FOSSILIZE,
        }
        operation = usual.get(self.loop.manager.lifecycle.stage_of(seed_id))
        if operation is not None:
            self.next_edge()
            self.ordered(operation, seed_id=seed_id)

    @rule(seed_id=SEED_IDS)
    def poison(self, seed_id: str) -> None:
        """Spoil a seed that is growing; the next edge must cull it."""
        live = self.loop.manager._bed.live.get(seed_id)
        if live is not None and self.loop.manager.lifecycle.stage_of(seed_id) != ly.SEED_STAGE_FOSSILIZED:
            with torch.no_grad():
                next(iter(live.seed.parameters())).fill_(float("nan"))
            self.next_edge()
            assert self.loop.manager.lifecycle.stage_of(seed_id) == ly.SEED_STAGE_EMBARGOED

    @invariant()
    def the_log_tells_the_whole_story(self) -> None:
        """Stages follow the table in the log, and the manager is where the log says."""
        stages: dict[str, ly.SeedLifecycleStage] = {}
        for event in self.loop.log:
            if isinstance(event, ly.SeedStageChanged):
                assert event.from_stage == stages.get(event.seed_id, ly.SEED_STAGE_DORMANT)
                assert is_allowed(event.from_stage, event.to_stage) or shortens(event)
                stages[event.seed_id] = event.to_stage
        assert {summary.seed_id: summary.stage for summary in self.loop.manager.summaries()} == stages
        ids = [event.meta.event_id for event in self.loop.log]
        assert len(set(ids)) == len(ids) == self.loop.manager.lifecycle.events
        assert len(self.loop.outcomes) == self.edges

    @invariant()
    def the_host_holds_what_the_stages_say(self) -> None:
        """Hooks, submodules and live seeds are those of the stages, and all weights are finite."""
        manager = self.loop.manager
        stages = {summary.seed_id: summary.stage for summary in manager.summaries()}
        attached = {seed_id for seed_id, stage in stages.items() if stage in ATTACHED_STAGES}
        assert set(manager._bed.live) == attached
        assert sum(len(module._forward_hooks) for module in self.loop.model.modules()) == len(attached)
        heard = JOINT_STAGES | FALLING_STAGES | {ly.SEED_STAGE_FOSSILIZED}
        joined = {seed_id for seed_id in attached if stages[seed_id] in heard}
        extra = {name.split("esper_")[1].split(".")[0] for name in self.loop.model.state_dict() if "esper_" in name}
        assert extra == {seed_id.replace(".", "_") for seed_id in joined}
        assert self.names <= set(self.loop.model.state_dict())
        held = [slot.seed_id for slot in manager.slot_states() if slot.seed_id]
        free = (ly.SEED_STAGE_DORMANT, ly.SEED_STAGE_TERMINATED)
        assert sorted(held) == sorted(seed_id for seed_id in stages if stages[seed_id] not in free)
        for seed_id, live in manager._bed.live.items():
            tuned = manager.lifecycle.seeds[seed_id].tuned_until > self.loop.epoch
            assert tuned or live.trainer.rate_factor == 1.0, "a fine-tuning ends by itself"
        pruned = {id(parameter) for parameter in self.loop.model.parameters()}
        assert {id(each) for group in self.loop.optimizer.param_groups for each in group["params"]} <= pruned
        host = {name: tensor for name, tensor in self.loop.model.state_dict().items() if name in self.names}
        assert all(torch.isfinite(tensor).all() for tensor in host.values())


RandomCommands.TestCase.settings = settings(
    max_examples=20, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
TestRandomCommands = RandomCommands.TestCase
