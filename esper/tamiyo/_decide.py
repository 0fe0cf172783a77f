"""From a run's state and one packet to a decision and its command; no clock, no I/O, no randomness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from esper.core.errors import IntegrityError, UsageError
from esper.core.ids import EventId, derive_id
from esper.core.policy import OBSERVATION_SCHEMA
from esper.core.rng import derive_seed, stream_of
from esper.leyline import messages as ly
from esper.tamiyo._actions import CONTINUE, GERMINATE, SEED_OPERATIONS, Action, Head, action_space, barred_while
from esper.tamiyo._facts import PacketFacts
from esper.tamiyo._noop import NoopPolicy
from esper.tamiyo._observation import Observation, observe
from esper.tamiyo._policy import NoLearnedPolicy, Policy, Proposal, appointed_by, draws, foresees
from esper.tamiyo._registry import LearnedVersions, make_policy
from esper.tamiyo._state import RunState
from esper.tamiyo.risk import NOTHING_SAID, RiskLimits, Surroundings, Verdict, judge
from esper.tamiyo.risk import Case as RiskCase

#: Version of the meaning of AdaptationCommand and its fields.
COMMAND_VERSION = 1
#: Who issues the commands, as `issued_by` and as the source in the meta.
SOURCE = "tamiyo"


@dataclass(frozen=True)
class Decision:
    """A decision and its command, both without what a publisher fills in (meta except event_id, issue time)."""

    made: ly.DecisionMade
    #: What the run gets: the proposed command, or the one that the risk gate put in its place.
    command: ly.AdaptationCommand
    verdict: Verdict


def decision_id_of(run_id: str, state_event_id: str) -> EventId:
    """Return the id of the one decision about a packet."""
    return derive_id(run_id, "decision", state_event_id)


def command_id_of(run_id: str, decision_id: str) -> EventId:
    """Return the id of the one command of a decision."""
    return derive_id(run_id, "command", decision_id)


def policy_of(state: RunState, packet: PacketFacts, learned: LearnedVersions | None = None) -> Policy:
    """Return the policy that the run asks for; one that cannot be had is stood in for by `noop`, with the reason.

    Raises:
        NotReadyError, BrokerUnavailable: the weights of a version that the run names could not be read for now.
    """
    parameters = dict(state.request.parameters) if state.request is not None else {}
    try:
        return make_policy(packet.policy, parameters, learned=learned)
    except (UsageError, NoLearnedPolicy, IntegrityError) as error:
        return NoopPolicy(reasons=(f"nothing is changed: {error}",))


def decide(
    state: RunState, packet: PacketFacts, policy: Policy | None = None, *, surroundings: Surroundings = NOTHING_SAID
) -> Decision:
    """Return the decision about `packet`; the same state up to that packet in the same `surroundings` gives the same.

    Args:
        state: The run as folded; packets after `packet` and decisions at or after it are not looked at.
        packet: One of the state's packets.
        policy: Decides in place of the one that the run asks for, as a test or a comparison wants.
        surroundings: What the log says of blueprints and emergencies. The masks bar the blueprints that may not be
            grafted now; what else follows from it, the decision says as the reason of an override.
    """
    policy = policy or policy_of(state, packet)
    forked = state.request.forked_epochs if state.request is not None else 0
    history = state.history(packet.epoch)
    observation = observe(history, state.decisions.values(), forked_epochs=forked)
    barred = barred_while(held=packet.held, breaker_open=packet.breaker_open)
    space = action_space(observation, policy.options, refused=surroundings.refused, barred=barred)
    rng_seed = derive_seed(packet.random_seed, SOURCE, packet.epoch)
    if draws(policy):
        proposal = policy.draw(observation, space, stream_of(rng_seed))
    else:
        proposal = policy.propose(observation, space)
    decision_id = decision_id_of(state.run_id, packet.event_id)
    command = _command(state.run_id, packet, proposal.action, decision_id)
    if proposal.action.operation != GERMINATE and foresees(policy):
        command.candidates.extend(_germination(action) for action in policy.candidates(observation, space))
    made = _made(state.run_id, packet, policy, observation, proposal, command)
    made.rng_seed, made.rng_counter = rng_seed, len(proposal.heads) if draws(policy) else 0
    if proposal.value is not None:
        made.value_estimate = proposal.value
    verdict = judge(_risk_case(state, history, command, surroundings))
    if verdict.command is None:
        return Decision(made, command, verdict)
    made.overridden, made.override_reason = True, verdict.reason
    made.executed.CopyFrom(verdict.command)
    return Decision(made, verdict.command, verdict)


def _risk_case(
    state: RunState, history: Sequence[PacketFacts], command: ly.AdaptationCommand, surroundings: Surroundings
) -> RiskCase:
    request = state.request
    return RiskCase(
        proposed=command,
        history=history,
        earlier=[made for epoch, made in state.decisions.items() if epoch < history[-1].epoch],
        limits=RiskLimits.of(dict(request.parameters)) if request is not None else RiskLimits(),
        surroundings=surroundings,
        run_id=state.run_id,
        can_pause=request is None or not request.stacked,
    )


def _command(run_id: str, packet: PacketFacts, action: Action, decision_id: EventId) -> ly.AdaptationCommand:
    command = ly.AdaptationCommand(
        version=COMMAND_VERSION,
        command_id=command_id_of(run_id, decision_id),
        command_type=ly.COMMAND_CONTINUE,
        training_run_id=run_id,
        epoch=packet.epoch,
        issued_by=SOURCE,
        decision_id=decision_id,
    )
    if action.operation == CONTINUE:
        return command
    command.command_type = ly.COMMAND_SEED
    if action.option is not None:
        command.seed_operation.CopyFrom(_germination(action))
    else:
        command.seed_operation.operation = SEED_OPERATIONS[action.operation]
        command.seed_operation.parameters.update(action.parameters)
        command.target_seed_id = _seed_in(packet, action.slot)
    return command


def _germination(action: Action) -> ly.CommandSeedOperation:
    assert action.option is not None, "a germination has its blueprint"
    return ly.CommandSeedOperation(
        operation=SEED_OPERATIONS[action.operation],
        slot=action.slot,
        blueprint_id=action.option.blueprint_id,
        parameters={**dict(action.parameters), **dict(action.option.parameters)},
    )


def _seed_in(packet: PacketFacts, name: str) -> str:
    slot = next(slot for slot in packet.slots if slot.slot == name)
    seed = packet.occupant(slot)
    assert seed is not None, f"the action space let an operation on the empty slot {name} pass"
    return seed.seed_id


def _made(
    run_id: str,
    packet: PacketFacts,
    policy: Policy,
    observation: Observation,
    proposal: Proposal,
    command: ly.AdaptationCommand,
) -> ly.DecisionMade:
    heads = [_head(head) for head in proposal.heads]
    return ly.DecisionMade(
        meta=ly.EventMeta(event_id=command.decision_id, causation_id=packet.event_id, subject=run_id),
        run_id=run_id,
        attempt=packet.attempt,
        epoch=packet.epoch,
        state_event_id=packet.event_id,
        policy=policy.name,
        policy_version=policy.version,
        policy_digest=policy.digest,
        observation_schema=OBSERVATION_SCHEMA,
        observation_names=observation.names,
        observation=observation.values,
        heads=heads,
        log_probability=sum(head.log_probability for head in heads),
        proposed=command,
        command_id=command.command_id,
        reasons=proposal.reasons,
        policy_event_id=appointed_by(policy),
    )


def _head(head: Head) -> ly.DecisionHead:
    return ly.DecisionHead(
        name=head.name,
        actions=head.actions,
        mask=head.mask,
        probabilities=head.probabilities,
        chosen=head.chosen,
        log_probability=head.log_probability,
    )
