"""Cases for the gate, made of as little as each rule looks at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from esper.leyline import messages as ly
from esper.tamiyo._facts import DecisionFacts, PacketFacts, SeedFacts, decision_facts, packet_facts
from esper.tamiyo.risk import NOTHING_SAID, Case, RiskLimits, Surroundings

RUN = "run-risk"
CALM = (1.0, 0.9, 0.85, 0.8, 0.78, 0.76)
SPIKE = (*CALM, 1.2)


def packets(losses: Sequence[float], *, seeds: Sequence[SeedFacts] = (), planned: int = 40) -> list[PacketFacts]:
    """Return a history with these validation losses; the last packet shows the seeds."""
    history = [
        packet_facts(
            ly.SystemStatePacket(
                meta=ly.EventMeta(event_id=f"state-{epoch}"),
                current_epoch=epoch,
                attempt=1,
                epochs_planned=planned,
                validation_loss=loss,
                parameters=400,
                multiply_adds=1_000 * epoch,
            )
        )
        for epoch, loss in enumerate(losses, start=1)
    ]
    return [*history[:-1], replace(history[-1], seeds=tuple(seeds))]


def seed(
    stage: ly.SeedLifecycleStage = ly.SEED_STAGE_BLENDING,
    *,
    alpha: float = 0.5,
    parameters: float = 3_000.0,
    blueprint_id: str = "BP021",
) -> SeedFacts:
    """Return the seed `a.1`."""
    return SeedFacts("a.1", "a", stage, blueprint_id, alpha, 1, 1, None, (("parameters", parameters),))


def order(operation: ly.SeedOperation | None = None, *, blueprint_id: str = "BP021") -> ly.AdaptationCommand:
    """Return what a policy proposes: an operation on the seed `a.1`, a germination, or "continue"."""
    command = ly.AdaptationCommand(
        version=1, command_id="the-command", command_type=ly.COMMAND_CONTINUE, training_run_id=RUN,
        epoch=7, issued_by="tamiyo", decision_id="the-decision",
    )  # fmt: skip
    if operation is None:
        return command
    command.command_type = ly.COMMAND_SEED
    command.seed_operation.operation = operation
    if operation == ly.SEED_OP_GERMINATE:
        command.seed_operation.blueprint_id, command.seed_operation.slot = blueprint_id, "a"
    else:
        command.target_seed_id = "a.1"
    return command


def case(
    proposed: ly.AdaptationCommand,
    history: Sequence[PacketFacts],
    *,
    earlier: Sequence[DecisionFacts] = (),
    limits: Mapping[str, float] | None = None,
    surroundings: Surroundings = NOTHING_SAID,
    can_pause: bool = True,
) -> Case:
    """Return a case of the run."""
    given = RiskLimits.from_parameters({f"risk.{name}": value for name, value in (limits or {}).items()})
    return Case(proposed, history, earlier, given, surroundings, RUN, can_pause)


def overridden(epoch: int, command: ly.AdaptationCommand) -> DecisionFacts:
    """Return an earlier decision in whose place the gate put a command."""
    made = ly.DecisionMade(epoch=epoch, proposed=order(), overridden=True, override_reason="because")
    made.executed.CopyFrom(command)
    return decision_facts(made)
