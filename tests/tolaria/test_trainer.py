"""The epoch loop: what it computes, in which order it asks and changes, and what it counts."""

from __future__ import annotations

import math
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from esper.core.clock import ManualClock
from esper.core.digest import module_digest
from esper.core.ids import derive_id
from esper.core.rng import derive_seed
from esper.leyline import messages as ly
from esper.tolaria import (
    Evaluation,
    MemoryJournal,
    RunInterrupted,
    StaticController,
    TolariaTrainer,
    TrainingDiverged,
    TrainingResult,
    evaluate,
    multiply_adds_per_sample,
    prepared,
)
from esper.tolaria.loop._packet import HOOK_LATENCY_MS_ALERT, EpochStats, epoch_telemetry
from tests.tolaria.small import NudgingController, Policy, request, rings, scripted

CONTINUE, SEED = ly.COMMAND_CONTINUE, ly.COMMAND_SEED


def train(
    policy: Policy | None = None, *, faults: frozenset[int] = frozenset(), **fields: object
) -> tuple[TrainingResult, MemoryJournal, NudgingController]:
    """Train the small task in memory under a controller that nudges the host when a seed is commanded."""
    journal = MemoryJournal(policy=policy)
    with prepared(request(**fields)) as setup:
        controller = NudgingController(setup, faults=faults)
        return TolariaTrainer(setup, controller, journal).run(), journal, controller


def digests(journal: MemoryJournal) -> list[str]:
    return [packet.weights_digest for packet in journal.packets]


def test_without_growth_the_loop_is_plain_pytorch() -> None:
    """Goal: recording changes nothing. Method: the textbook loop, written out here, ends with the same digest."""
    asked = request(epochs=2)
    with prepared(asked) as setup:
        model, optimizer, task = setup.model, setup.optimizer, rings()
        order = torch.Generator().manual_seed(derive_seed(asked.seed, "order"))
        step, steps = 0, 2 * math.ceil(len(task.train) / 32)
        for epoch in (1, 2):
            torch.manual_seed(derive_seed(asked.seed, "epoch", epoch))
            model.train()
            for rows in torch.split(torch.randperm(len(task.train), generator=order), 32):
                optimizer.param_groups[0]["lr"] = 3e-3 * 0.5 * (1 + math.cos(math.pi * step / steps))
                optimizer.zero_grad()
                F.cross_entropy(model(task.train.inputs[rows]), task.train.targets[rows]).backward()
                optimizer.step()
                step += 1
        expected = module_digest(model)
    with prepared(asked) as setup:
        result = TolariaTrainer(setup, StaticController(), MemoryJournal()).run()
    assert result.digest == expected


def test_training_learns() -> None:
    """Goal: the loop trains. Method: 20 epochs of an easy task; the test part agrees with the packets."""
    result, journal, _ = train(scripted(), epochs=20, hyperparameters={"learning_rate": 0.03})
    assert result.epochs == 20
    assert result.test.accuracy > 0.85
    assert journal.packets[-1].training_loss < 0.7 * journal.packets[0].training_loss
    assert result.validation.loss == journal.packets[-1].validation_loss
    assert result.digest != digests(journal)[0]


def test_one_request_gives_one_result_and_another_seed_another() -> None:
    """Goal: a run is a function of its request and outcomes. Method: twice the same seed, once another."""
    commands = scripted(SEED, CONTINUE, SEED)
    first, again, other = train(commands), train(commands), train(commands, seed=12)
    assert digests(first[1]) == digests(again[1])
    assert first[0] == again[0]
    assert all(left != right for left, right in zip(digests(first[1]), digests(other[1]), strict=True))
    assert len(set(digests(first[1]))) == 3


def test_a_command_changes_the_network_from_its_epoch_on() -> None:
    """Goal: outcomes decide. Method: a seed commanded at epoch 2 leaves epochs 1 and 2 as they were, not 3."""
    _, plain, _ = train(scripted())
    _, grown, _ = train(scripted(CONTINUE, SEED))
    assert digests(plain)[:2] == digests(grown)[:2]
    assert digests(plain)[2] != digests(grown)[2]


def test_what_an_edge_draws_does_not_reach_the_next_epoch() -> None:
    """Goal: a policy's or kernel's use of torch's stream moves no dropout mask. Method: draw at every edge."""

    def drawing(packet: ly.SystemStatePacket) -> ly.AdaptationCommand | None:
        torch.rand(packet.current_epoch)
        return scripted()(packet)

    assert digests(train(drawing)[1]) == digests(train(scripted())[1])


def test_the_edge_keeps_its_order() -> None:
    """Goal: faults, state, decision, outcome, fold, in this order. Method: one list of every call in one epoch."""
    calls: list[str] = []

    class Listening(MemoryJournal):
        def append_seed_events(self, epoch: int, events: object) -> None:
            calls.append("append seed events")

        def append_state(self, packet: ly.SystemStatePacket) -> None:
            calls.append("append state")
            super().append_state(packet)

        def append_outcome(self, outcome: ly.CommandOutcome) -> None:
            calls.append("append outcome")

    with prepared(request(epochs=1, hyperparameters={"batch_size": 100})) as setup:
        controller = NudgingController(setup, faults=frozenset({1}), calls=calls)
        TolariaTrainer(setup, controller, Listening(policy=scripted(SEED))).run()
    assert calls == [
        *("before_step", "after_step", "before_step", "after_step"),
        *("end_epoch", "append seed events", "fold:SeedStageChanged", "append state"),
        *("decide", "append seed events", "append outcome", "fold:GateEvaluated", "fold:SeedStageChanged"),
    ]


def test_events_have_the_ids_that_every_attempt_gives_them() -> None:
    """Goal: two attempts name their events alike. Method: ids and causes of a run with a fault and a command."""
    _, journal, _ = train(scripted(CONTINUE, SEED), faults=frozenset({2}))
    run = "run-small"
    assert [packet.meta.event_id for packet in journal.packets] == [derive_id(run, "state", e) for e in (1, 2, 3)]
    assert [outcome.meta.event_id for outcome in journal.outcomes] == [derive_id(run, "outcome", e) for e in (1, 2, 3)]
    assert [event.meta.event_id for event in journal.seed_events] == [derive_id(run, "seed", 2, n) for n in (1, 2, 3)]
    assert [event.meta.causation_id for event in journal.seed_events] == ["", "command-event-2", "command-event-2"]
    assert [packet.meta.causation_id for packet in journal.packets] == [
        "0" * 32,
        derive_id(run, "outcome", 1),
        derive_id(run, "outcome", 2),
    ]


def test_each_epoch_has_exactly_one_outcome_that_says_what_became_of_its_command() -> None:
    """Goal: applied, rejected and none are told apart. Method: one epoch of each."""
    _, journal, _ = train(scripted(SEED, None, ly.COMMAND_STRUCTURAL_PRUNING))
    applied, none, rejected = journal.outcomes
    assert (applied.result, applied.reason, applied.seed_id) == (ly.COMMAND_RESULT_APPLIED, "", "body.1")
    assert (applied.command_id, applied.decision_id) == ("command-1", "decision-1")
    assert applied.command.command_type == applied.command_type == SEED
    assert dict(applied.gate_verdicts) == {"SEED_GATE_G0_SANITY": True}
    assert (none.result, none.reason, none.command_id) == (ly.COMMAND_RESULT_NONE, "timeout", "")
    assert not none.HasField("command")
    assert (rejected.result, rejected.reason) == (ly.COMMAND_RESULT_REJECTED, "unsupported_command")
    assert [outcome.epoch for outcome in journal.outcomes] == [1, 2, 3]
    assert [outcome.state_event_id for outcome in journal.outcomes] == [p.meta.event_id for p in journal.packets]


def test_the_packet_tells_the_whole_epoch() -> None:
    """Goal: every figure is measured. Method: recompute what can be, bound what cannot."""
    result, journal, _ = train(scripted())
    last = journal.packets[-1]
    assert (last.current_epoch, last.epochs_planned, last.global_step) == (3, 3, 21)
    assert (last.task, last.host, last.policy, last.seed) == (request().task, "mlp", "script", 11)
    assert last.parameters == result.parameters == sum(p.numel() for p in rings().host("mlp").module.parameters())
    assert last.multiply_adds_per_sample == result.multiply_adds_per_sample == 2 * 8 + 8 * 2
    assert last.multiply_adds == result.multiply_adds == 3 * 32 * 200 * 3
    assert set(last.training_metrics) == {"training_accuracy", "gradient_norm", "learning_rate"}
    assert 0.5 < last.training_metrics["training_accuracy"] <= 1.0
    assert 0.0 < last.training_metrics["gradient_norm"] < 10.0
    assert last.hardware_context.device_type == "cpu"
    assert last.hardware_context.total_memory_gb > last.hardware_context.available_memory_gb > 0


def test_telemetry_names_the_figures_of_the_brief() -> None:
    """Goal: metrics that alerts stand on exist. Method: the names of one epoch's telemetry, and its values."""
    _, journal, _ = train(scripted())
    figures = {point.name: point.value for point in journal.telemetry[-1].metrics}
    assert {
        "tolaria.training.loss",
        "tolaria.training.accuracy",
        "tolaria.training.latency_ms",
        "tolaria.seeds.active",
        "tolaria.epoch_hook.latency_ms",
    } <= figures.keys()
    assert figures["tolaria.training.loss"] == journal.packets[-1].training_loss
    assert figures["tolaria.training.latency_ms"] > 0
    assert figures["tolaria.training.samples_per_second"] > 0


@pytest.mark.parametrize(("latency_ms", "events"), [(HOOK_LATENCY_MS_ALERT, 0), (HOOK_LATENCY_MS_ALERT + 1, 1)])
def test_a_slow_hook_is_warned_of(latency_ms: float, events: int) -> None:
    """Goal: the budget of the hook is watched. Method: latencies at and above it."""
    stats = EpochStats(
        1, steps=2, samples=64, loss=1.0, accuracy=0.5, gradient_norm=1.0, learning_rate=0.1, seconds=0.0
    )
    seeds = [ly.SeedState(stage=ly.SEED_STAGE_TRAINING), ly.SeedState(stage=ly.SEED_STAGE_EMBARGOED)]
    packet = ly.SystemStatePacket(training_run_id="run-1", seed_states=seeds)
    with prepared(request()) as setup:
        telemetry = epoch_telemetry(setup, stats, packet, hook_latency_ms=latency_ms, now_ns=10**9)
    assert len(telemetry.events) == events
    assert (telemetry.level == ly.TELEMETRY_LEVEL_WARNING) == bool(events)
    figures = {point.name: point.value for point in telemetry.metrics}
    assert figures["tolaria.seeds.active"] == 1.0
    assert figures["tolaria.training.samples_per_second"] == 0.0
    assert telemetry.timestamp.seconds == 1


def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    """Goal: accumulation trades memory for time, not results. Method: 1 and 3 parts, no batch statistics."""

    def losses(parts: int) -> list[float]:
        with prepared(request(hyperparameters={"gradient_accumulation": parts})) as setup:
            setup.model.set_submodule("norm", nn.Identity())
            setup.model.set_submodule("drop", nn.Identity())
            journal = MemoryJournal()
            TolariaTrainer(setup, StaticController(), journal).run()
        return [packet.training_loss for packet in journal.packets]

    assert losses(3) == pytest.approx(losses(1), rel=1e-5)


def test_hashing_may_be_rarer_than_epochs() -> None:
    """Goal: large networks need not be hashed each epoch. Method: every second of three epochs."""
    _, journal, _ = train(scripted(), digest_every_epochs=2)
    assert [bool(digest) for digest in digests(journal)] == [False, True, True]


def test_a_diverged_run_ends_with_the_reason() -> None:
    """Goal: no packet holds a loss that is no number. Method: a host that leaves the finite numbers."""
    journal = MemoryJournal(policy=scripted())
    with prepared(request(host="exploding")) as setup:
        trainer = TolariaTrainer(setup, StaticController(), journal)
        with pytest.raises(TrainingDiverged, match="diverged in epoch 1: the held-out loss is nan"):
            trainer.run()
    assert journal.packets == []
    assert trainer.epochs_finished == 0


def test_a_stop_is_noticed_between_two_steps() -> None:
    """Goal: SIGTERM does not wait for an epoch. Method: stop while the second epoch trains."""
    stop = threading.Event()

    def stopping(packet: ly.SystemStatePacket) -> ly.AdaptationCommand | None:
        stop.set()
        return scripted()(packet)

    with prepared(request()) as setup:
        trainer = TolariaTrainer(setup, StaticController(), MemoryJournal(policy=stopping), stop=stop)
        with pytest.raises(RunInterrupted, match="interrupted in epoch 2"):
            trainer.run()
    assert trainer.epochs_finished == 1


def test_latency_is_measured_on_the_workers_own_clock() -> None:
    """Goal: evidence of the control loop. Method: a manual clock passes 7 ms between state and decision."""
    clock = ManualClock()

    def slow(packet: ly.SystemStatePacket) -> ly.AdaptationCommand | None:
        clock.advance(0.007)
        return scripted()(packet)

    journal = MemoryJournal(policy=slow)
    with prepared(request(epochs=1)) as setup:
        TolariaTrainer(setup, StaticController(), journal, clock=clock).run()
    assert journal.outcomes[0].latency_ms == pytest.approx(7.0)


def test_evaluation_leaves_a_network_as_it_was() -> None:
    """Goal: looking changes nothing. Method: digest, modes and torch's stream around an evaluation."""
    task = rings()
    with prepared(request()) as setup:
        model = setup.model
        model.train()
        model.get_submodule("norm").eval()
        before, stream = module_digest(model), torch.get_rng_state()
        measured = evaluate(model, task.test, task.loss)
        assert module_digest(model) == before
        assert torch.equal(torch.get_rng_state(), stream)
        assert model.training
        assert not model.get_submodule("norm").training
        model.eval()
        outputs = model(task.test.inputs).detach()
        assert measured == Evaluation(
            loss=pytest.approx(float(F.cross_entropy(outputs, task.test.targets))),
            accuracy=float((outputs.argmax(1) == task.test.targets).double().mean()),
        )


def test_multiply_adds_are_those_of_one_sample() -> None:
    """Goal: cost by a known count. Method: a linear layer, a convolution, whatever the batch."""
    linear = nn.Linear(40, 8)
    assert multiply_adds_per_sample(linear, torch.zeros(3, 40)) == 320
    convolution = nn.Conv1d(2, 4, kernel_size=3, padding=1)
    assert multiply_adds_per_sample(convolution, torch.zeros(1, 2, 10)) == 10 * 4 * 2 * 3
