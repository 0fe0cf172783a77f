"""Kernels that may not be grafted: tried out on copies, in quarantine, and rejected; the host notices nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import psutil
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from esper.core import quarantine
from esper.core.errors import IntegrityError
from esper.core.ids import derive_id
from esper.core.ports import EdgeDecision
from esper.karn import catalogue
from esper.kasmina import KasminaConfig
from esper.kasmina.bed._quarantine import slot_batch
from esper.kasmina.grafting._passes import HostPasses
from esper.kasmina.grafting._slots import discover_slots
from esper.leyline import messages as ly
from esper.oona import Fabric
from tests.campaigns import WHOLE
from tests.core.quarantine.support import PATIENT, lowest
from tests.kasmina.kernels import RealKernels
from tests.kasmina.support import HOSTS, PROBE, RUN_ID, Loop, all_bytes, batch, mlp, optimizer_bytes, outputs, seeded

CONFIG = KasminaConfig(warmup_steps=5, blend_epochs=1.0, quarantine=PATIENT)
DESCRIPTORS = {name: blueprint.descriptor() for name, blueprint in catalogue().items()}


def a_loop(runtime: RealKernels | None = None, **options: object) -> Loop:
    """Return a run over two slots whose quarantine has patience."""
    return Loop(
        seeded(mlp),
        ["1", "2"],
        runtime=runtime or RealKernels(),  # type: ignore[arg-type]  # another runtime of the same port
        config=CONFIG,
        descriptors=DESCRIPTORS,
        **options,  # type: ignore[arg-type]  # of Loop's own
    )


def germinate(loop: Loop, blueprint_id: str, slot: str = "1") -> EdgeDecision:
    """Command a germination with every parameter at its lower bound."""
    return loop.germinate(slot, blueprint_id, **lowest(catalogue()[blueprint_id]))


def test_a_hazard_is_tried_out_on_copies_and_rejected() -> None:
    """Goal: GERMINATE of a quarantine_only blueprint ends in a verdict and a rejection. Method: NaN injection; the two
    events, what they say, and that no seed, hook, parameter or memory of it is on the host.
    """
    loop = a_loop()
    loop.train_epoch()
    hooks = sum(len(module._forward_hooks) for module in loop.model.modules())
    decision = germinate(loop, "BP045")
    assert (decision.result, decision.reason) == (ly.COMMAND_RESULT_REJECTED, "quarantined:not_finite")
    found, rejection = decision.events
    assert isinstance(found, ly.KernelQuarantined)
    assert isinstance(rejection, ly.SeedMoveRejected)
    assert (found.verdict, found.slot, found.seed_id) == (ly.QUARANTINE_VERDICT_NOT_FINITE, "1", "1.1")
    assert (found.training_run_id, found.attempt, found.epoch, found.command_id) == (RUN_ID, 1, 1, "command-1")
    assert found.blueprint_id == "BP045"
    assert found.artifact_ref == decision.kernel_digest
    assert found.steps == 3
    assert found.figures["limit_steps"] == PATIENT.steps
    assert rejection.reason == decision.reason
    assert [event.meta.event_id for event in decision.events] == [derive_id(RUN_ID, "seed", 1, n) for n in range(2)]
    assert loop.manager.seed_states() == []
    assert loop.manager.slot_states()[0].seed_id == ""
    assert loop.manager.parameters() == 0
    assert sum(len(module._forward_hooks) for module in loop.model.modules()) == hooks
    # The slot is free, and what may be grafted still is.
    loop.train_epoch()
    assert germinate(loop, "BP009").result == ly.COMMAND_RESULT_APPLIED
    assert loop.log[-1].meta.event_id == derive_id(RUN_ID, "seed", 2, 5)


#: Every hazard, and the word that its quarantine ends in.
VERDICTS = {
    "BP043": "explosion",
    "BP044": "vanished",
    "BP045": "not_finite",
    "BP046": "hang",
    "BP047": "memory",
    "BP048": "deadlock",
    "BP049": "race",
    "BP050": "unstable",
}
#: `make test` meets one that ends by itself and one that is killed.
MET = VERDICTS if WHOLE else ("BP043", "BP047")


def test_every_hazard_is_met() -> None:
    """Goal: no hazard is forgotten. Method: the catalogue's tier against this file's words."""
    assert VERDICTS.keys() == {name for name, each in catalogue().items() if each.tier == "HIGH_RISK"}


@pytest.mark.campaign
@pytest.mark.timeout(600)
@pytest.mark.parametrize("blueprint_id", MET)
def test_the_host_is_equal_to_one_that_never_met_it(blueprint_id: str) -> None:
    """Goal: a host keeps its bits, its optimiser, its random stream and its process. Method: the same run with and
    without a hazard commanded in its middle; weights, buffers, moments, losses and the stream at the end, byte for
    byte; threads and child processes as before, and one event with the verdict that the name promises.
    """
    ends, here = [], psutil.Process()
    for hazard in ("", blueprint_id):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(11)
            loop = a_loop()
            loop.train_epoch()
            if hazard:
                children = here.children(recursive=True)
                before = all_bytes(loop.model), torch.get_rng_state().tolist(), threading.active_count()
                decision = germinate(loop, hazard)
                assert decision.reason == f"quarantined:{VERDICTS[hazard]}"
                assert [type(event) for event in decision.events] == [ly.KernelQuarantined, ly.SeedMoveRejected]
                assert (all_bytes(loop.model), torch.get_rng_state().tolist(), threading.active_count()) == before
                assert here.children(recursive=True) == children
            loop.train_epoch(20)
            ends.append(
                (
                    all_bytes(loop.model),
                    optimizer_bytes(loop.optimizer),
                    loop.losses,
                    torch.get_rng_state().tolist(),
                    outputs(loop.model).tolist(),
                    loop.manager.multiply_adds,
                )
            )
    assert ends[0] == ends[1]


def test_an_unapproved_experiment_runs_in_quarantine_and_an_approved_one_is_grafted() -> None:
    """Goal: approval decides where an EXPERIMENTAL kernel runs. Method: the same blueprint, harmless, without and with
    a person's word; the first completes in quarantine and is rejected all the same.
    """
    experiment = next(
        name for name, each in catalogue().items() if each.tier == "EXPERIMENTAL" and "vector" in each.layouts
    )
    loop = a_loop()
    loop.train_epoch()
    decision = germinate(loop, experiment)
    assert (decision.result, decision.reason) == (ly.COMMAND_RESULT_REJECTED, "quarantined:completed"), decision.events
    approved = a_loop(RealKernels(approved=[experiment]))
    approved.train_epoch()
    assert germinate(approved, experiment).result == ly.COMMAND_RESULT_APPLIED
    assert approved.manager.seed_states()[0].stage == ly.SEED_STAGE_TRAINING


def test_approval_does_not_let_a_hazard_out() -> None:
    """Goal: what is only for quarantine stays there. Method: a hazard that a person approved."""
    loop = a_loop(RealKernels(approved=["BP044"]))
    loop.train_epoch()
    assert germinate(loop, "BP044").reason == "quarantined:vanished"


def test_a_runtime_that_knows_no_approvals_grafts_nothing_risky() -> None:
    """Goal: Kasmina refuses by its own descriptors where whoever fetched says nothing. Method: a runtime that hands
    over a built module of an EXPERIMENTAL blueprint and no bytes to try out.
    """
    experiment = next(
        name for name, each in catalogue().items() if each.tier == "EXPERIMENTAL" and "vector" in each.layouts
    )
    loop = a_loop(RealKernels(known=False))
    loop.train_epoch()
    decision = germinate(loop, experiment)
    assert decision.reason == "blueprint_refused:approval_required"
    assert [type(event) for event in decision.events] == [ly.SeedMoveRejected]
    loop.train_epoch()
    assert germinate(loop, "BP009").result == ly.COMMAND_RESULT_APPLIED


def test_re_execution_takes_the_verdict_and_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: a recorded run is computed again without meeting the hazard. Method: the recorded outcomes with a runtime
    and a quarantine that refuse to be asked; equal digests, events and work.
    """
    live = a_loop()
    live.train_epoch()
    germinate(live, "BP045")
    live.train_epoch()
    germinate(live, "BP009", slot="2")
    live.train_epoch()

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a hazard ran again")

    monkeypatch.setattr("esper.kasmina.bed._quarantine.run_in_quarantine", never)
    again = a_loop(RealKernels())
    again.manager._examiner._runtime = live.manager._examiner._runtime
    asked = live.manager._examiner._runtime.asked  # type: ignore[attr-defined]  # RealKernels has it
    asked.clear()
    for epoch, recorded in enumerate(live.outcomes, 1):
        again.train_epoch()
        decision = again.manager.decide(None, epoch=epoch, recorded=recorded)
        for event in decision.events:
            again.log.append(event)
            again.manager.fold(event)
        assert (decision.result, decision.reason, decision.kernel_digest) == (
            recorded.result,
            recorded.reason,
            recorded.kernel_digest,
        )
    again.train_epoch()
    assert asked == [live.outcomes[1].kernel_digest]
    assert [event.meta.event_id for event in again.log] == [event.meta.event_id for event in live.log]
    assert all_bytes(again.model) == all_bytes(live.model)
    assert again.manager.multiply_adds == live.manager.multiply_adds


def test_a_trial_that_cannot_be_held_is_a_rejection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: without a process there is no graft and no crash. Method: an interpreter that is not there."""
    monkeypatch.setattr("sys.executable", "/nonexistent/python")
    loop = a_loop()
    loop.train_epoch()
    decision = germinate(loop, "BP045")
    assert decision.reason == "quarantined:crashed"
    found = decision.events[0]
    assert isinstance(found, ly.KernelQuarantined)
    assert "no process could be started" in found.detail


def test_a_module_that_was_refused_is_never_planted() -> None:
    """Goal: a re-execution that is handed no module says so. Method: a record that names a kernel the runtime now
    refuses to build.
    """

    class Refusing(RealKernels):
        def _opened(self, artifact_ref: str) -> object:  # type: ignore[override]  # without its module
            return replace(super()._opened(artifact_ref), module=None, refusal="withdrawn")

    runtime = Refusing()
    live = a_loop(runtime)
    live.train_epoch()
    germinate(live, "BP009")
    again = a_loop(runtime)
    again.train_epoch()
    with pytest.raises(IntegrityError, match="withdrawn"):
        again.manager.decide(None, epoch=1, recorded=live.outcomes[0])


Loss = Callable[[Tensor, Tensor], Tensor]


@pytest.mark.parametrize(("factory", "slot"), HOSTS.values(), ids=HOSTS)
@pytest.mark.parametrize("loss", [functional.cross_entropy, None], ids=["loss", "no-loss"])
def test_what_goes_into_quarantine_is_a_copy_of_what_the_slot_sees(
    factory: Callable[[], nn.Module], slot: str, loss: Loss | None
) -> None:
    """Goal: activations and gradients are those of the slot, and copies. Method: a plain forward and backward of the
    host in eval mode beside it, and the host's bytes, gradients, hooks and modes before and after.
    """
    model = seeded(factory).train()
    spec = discover_slots(model, batch(0)[0], [slot])[0]
    before, hooks = all_bytes(model), [len(module._forward_hooks) for module in model.modules()]
    with torch.no_grad():
        content = slot_batch(model, HostPasses(model), spec, PROBE[0], loss)
    taken = safetensors.torch.load(content)
    assert all_bytes(model) == before
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    source, target = _plainly(seeded(factory).eval(), spec.module, loss)
    assert torch.allclose(taken["inputs"], source[:32], atol=1e-6)
    if loss is not None:
        # The mean over 32 samples here, as the trial has them.
        assert torch.allclose(taken["targets"], -target, atol=1e-6)


def _plainly(model: nn.Module, name: str, loss: Loss | None) -> tuple[Tensor, Tensor]:
    """Return the first input of the module and the gradient at its first output, by torch's own hooks."""
    seen: list[Tensor] = []
    gradients: list[Tensor] = []

    def watch(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(args[0].detach().clone())
        if len(seen) == 1:
            output.register_hook(gradients.append)

    model.get_submodule(name).register_forward_hook(watch)
    inputs, targets = (tensor[:32] for tensor in PROBE[0])
    outcome = model(inputs)
    if loss is not None:
        torch.autograd.backward(loss(outcome, targets))
    return seen[0], gradients[0] if gradients else torch.empty(0)


@pytest.mark.parametrize(("blueprint_id", "verdict"), [("BP045", "not_finite"), ("BP048", "deadlock")])
def test_a_quarantine_is_in_the_log(fabric: Fabric, blueprint_id: str, verdict: str) -> None:
    """Goal: a quarantine is an event that anyone can read. Method: Kasmina's own decision appended to the real broker
    as kasmina and folded, then read back and compared.
    """
    loop = a_loop()
    loop.train_epoch()
    key = loop.manager._run_id = f"{RUN_ID}-{blueprint_id}"
    publisher = fabric.publisher("kasmina")
    command = ly.AdaptationCommand(
        command_id="order",
        command_type=ly.COMMAND_SEED,
        seed_operation=ly.CommandSeedOperation(
            operation=ly.SEED_OP_GERMINATE,
            blueprint_id=blueprint_id,
            slot="2",
            parameters=lowest(catalogue()[blueprint_id]),
        ),
    )
    before = all_bytes(loop.model)
    decision = loop.manager.handle_command(
        command,
        epoch=1,
        append=lambda event: publisher.publish(event, key=key),
    )
    assert decision.reason == f"quarantined:{verdict}"
    assert all_bytes(loop.model) == before
    place = ("seed-events", fabric.partition_of("seed-events", key))
    with fabric.reader({place: "begin"}) as reader:
        read = [event.message for event in reader.read_to_end() if event.meta.subject == key]
    assert [type(message) for message in read] == [ly.KernelQuarantined, ly.SeedMoveRejected]
    assert read[0].verdict == ly.QuarantineVerdict.Value(f"QUARANTINE_VERDICT_{verdict.upper()}")
    assert read[0].meta.source == "kasmina"
    assert dict(read[0].figures)["limit_wall_seconds"] == quarantine.QuarantineLimits(wall_seconds=60.0).wall_seconds
