"""From the log to a candidate in the log: what `esper policy train` does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from esper.core.clock import SYSTEM_CLOCK
from esper.core.errors import IntegrityError, UsageError
from esper.core.ids import new_run_id
from esper.core.policy import POLICY_ID
from esper.leyline import messages as ly
from esper.oona import Fabric, PolicyBoard, Position
from esper.oona.copying import topic_ids
from esper.weatherlight._asked_runs import asked_for
from esper.weatherlight._policies._history import LEARNED_FROM, learned_from, made_by, open_board

if TYPE_CHECKING:
    from esper.core.policy import PolicyNetwork
    from esper.simic.experience import Recorded, RewardWeights
    from esper.simic.training import Candidate, CandidateSettings

#: Steps of a round: few, so that learning ends before it leaves what the log supports.
_KL_TARGET, _ENTROPY = 0.05, 0.01


@dataclass(frozen=True)
class PolicyTraining:
    """What is trained, and from what."""

    #: The version that learning goes on from; empty: a fresh policy.
    parent: str = ""
    #: Offsets; empty: all that the log holds now, or what came after the parent's, where there is one.
    ranges: Sequence[ly.OffsetRange] = ()
    #: The newest so many episodes.
    episodes_max: int = 1_000_000
    #: Names of policies whose runs are learned from; none: all.
    policies: Sequence[str] = ()
    algorithm: str = "ppo"
    seed: int = 0
    rounds: int = 20
    learning_rate: float = 3e-4
    support_min: float = 0.1
    #: Of low-rank adapters through which the parent's actor learns; 0: all of its weights do.
    adapter_rank: int = 0
    #: Weights of the reward's parts by name; those left out keep their defaults.
    rewards: dict[str, float] = field(default_factory=dict)


def train_policy(fabric: Fabric, asked: PolicyTraining) -> dict[str, Any]:
    """Train a candidate, append it as a PolicyUpdate, and return the JSON shape of `esper policy train`.

    The same offsets, code, seed and numerics give the same digest, and with it the same version.

    Raises:
        NotReadyError: the log holds no whole episode there.
        UsageError: there is no such parent, or a setting cannot be used.
        BrokerUnavailable: no broker answered.
    """
    began = SYSTEM_CLOCK.monotonic()
    with open_board(fabric) as board:
        board.read()
        update, candidate, recorded = _trained(fabric, board, asked)
    with fabric.publisher("simic") as publisher:
        update.issued_at.FromNanoseconds(SYSTEM_CLOCK.now_ns())
        publisher.publish(update, key=POLICY_ID)
        publisher.submit(_telemetry(update, candidate), key="simic")
    return _document(update, candidate, recorded, SYSTEM_CLOCK.monotonic() - began)


def train_again(fabric: Fabric, version: str) -> dict[str, Any]:
    """Train a version again from what its update names, and compare; nothing is appended.

    Raises:
        IntegrityError: other weights came out.
        UsageError: there is no such version.
    """
    with open_board(fabric) as board:
        board.read()
        update = board.update(version)
        asked = _asked_by(update)
        again, _, _ = _trained(fabric, board, asked)
    if again.policy_digest != update.policy_digest:
        differ = [
            name
            for name in ("code_version", "dependencies_digest", "numerics")
            if getattr(again, name) != getattr(update, name)
        ]
        raise IntegrityError(
            f"version {version} cannot be made again here",
            cause=f"{again.policy_digest[:12]} came out; other than then: {', '.join(differ) or 'nothing known'}",
            next_step="Check out its code_version, with the same torch on the same kind of processor",
        )
    digests = {"policy_digest": update.policy_digest, "weights_digest": update.weights_digest}
    return {"version": version, **digests, "equal": True}


def _trained(fabric: Fabric, board: PolicyBoard, asked: PolicyTraining) -> tuple[ly.PolicyUpdate, Candidate, Recorded]:
    from esper.core.policy import unpack
    from esper.simic.experience import Part, Reading, Retention, ranges_until_now, read_experience
    from esper.simic.training import registry_of, train_candidate

    parent_update = board.update(asked.parent) if asked.parent else None
    parent: PolicyNetwork | None = unpack(parent_update) if parent_update is not None else None
    ranges = tuple(asked.ranges) or ranges_until_now(fabric, since=_ends_here(fabric, parent_update))
    weights = _weights(asked.rewards)
    retention = Retention(episodes_max=asked.episodes_max, policies=asked.policies or None, part=Part.LEARNING)
    recorded = read_experience(
        fabric,
        ranges,
        Reading(weights=weights, retention=retention),
        registry=registry_of(parent) if parent is not None else None,
    )
    settings = _settings(asked)
    candidate = train_candidate(recorded, settings, seed=asked.seed, parent=parent, reward_weights=weights.as_dict())
    update = _update(asked, settings, candidate, recorded, parent_update)
    update.learned_on.extend(_learned_on(fabric, recorded, parent_update))
    return update, candidate, recorded


def _ends_here(fabric: Fabric, update: ly.PolicyUpdate | None) -> dict[Position, int]:
    """Return where a version's own data end in this log; nothing of a version that was made in another one."""
    ranges = [] if update is None else list(update.training_data)
    here = topic_ids(fabric.cluster, sorted({one.topic for one in ranges}))
    return {(one.topic, one.partition): one.end_offset for one in ranges if one.topic_id in ("", here[one.topic])}


def _weights(given: dict[str, float]) -> RewardWeights:
    from esper.simic.experience import RewardWeights

    known = RewardWeights().as_dict()
    strange = sorted(set(given) - set(known))
    if strange:
        raise UsageError(
            f"a reward has no part {strange[0]!r}",
            cause=f"its parts are: {', '.join(sorted(known))}",
            next_step="correct the name or leave it out",
        )
    return replace(RewardWeights(), **given)


def _settings(asked: PolicyTraining) -> CandidateSettings:
    from esper.simic.learning import Objective, Settings
    from esper.simic.training import CandidateSettings, OfflineSettings

    if asked.adapter_rank and not asked.parent:
        raise UsageError(
            "a fresh policy has nothing to adapt",
            cause=f"adapters of rank {asked.adapter_rank} were asked for without a parent",
            next_step="name one by --parent, or leave --adapter-rank out",
        )
    if asked.algorithm not in [one.value for one in Objective]:
        raise UsageError(
            f"there is no algorithm {asked.algorithm!r}",
            cause=f"known: {', '.join(one.value for one in Objective)}",
            next_step="choose one of them",
        )
    one_round = Settings(
        objective=Objective(asked.algorithm),
        epochs=1,
        minibatch_steps=512,
        kl_target=_KL_TARGET,
        entropy_weight=_ENTROPY,
    )
    return CandidateSettings(
        offline=OfflineSettings(
            round=one_round,
            rounds=asked.rounds,
            learning_rate=asked.learning_rate,
            support_min=asked.support_min,
        ),
        adapter_rank=asked.adapter_rank,
    )


def _learned_on(fabric: Fabric, recorded: Recorded, parent: ly.PolicyUpdate | None) -> list[str]:
    """Return task and host of all that a version and its line learned from; nothing where a part is not known."""
    asked = asked_for(fabric, recorded.run_ids)
    if set(asked) != set(recorded.run_ids) or (parent is not None and not parent.learned_on):
        return []
    before = set() if parent is None else set(parent.learned_on)
    return sorted(before | {f"{task}/{host}" for task, host in asked.values()})


def _update(
    asked: PolicyTraining,
    settings: CandidateSettings,
    candidate: Candidate,
    recorded: Recorded,
    parent: ly.PolicyUpdate | None,
) -> ly.PolicyUpdate:
    import torch

    from esper.core.numerics import code_version, dependencies_digest, numerics_fingerprint
    from esper.core.policy import OBSERVATION_SCHEMA, PAYLOAD_VERSION

    packed = candidate.packed
    figures = settings.figures() | {
        "rounds": asked.rounds,
        "episodes_max": asked.episodes_max,
        "learning_rate": asked.learning_rate,
        "support_min": asked.support_min,
    }
    last = candidate.training.rounds[-1] if candidate.training.rounds else None
    scores = {
        "effective_episodes": candidate.training.effective_episodes,
        "rounds_done": float(len(candidate.training.rounds)),
        "mean_return": float(recorded.experience.in_rows(recorded.experience.rewards).sum(dim=1).mean()),
    }
    if last is not None:
        scores |= {name: float(value) for name, value in vars(last).items() if value == value}
    return ly.PolicyUpdate(
        version=PAYLOAD_VERSION,
        policy_id=POLICY_ID,
        training_run_id=new_run_id(),
        tamiyo_policy_version=f"{candidate.packed.policy_digest[:12]}",
        payload=packed.payload,
        policy_digest=packed.policy_digest,
        weights_digest=packed.weights_digest,
        specification=packed.specification,
        observation_schema=OBSERVATION_SCHEMA,
        parent_policy_version=parent.tamiyo_policy_version if parent is not None else "",
        parent_policy_digest=parent.policy_digest if parent is not None else "",
        training_data=recorded.ranges,
        code_version=code_version(),
        dependencies_digest=dependencies_digest(),
        seed=asked.seed,
        numerics=numerics_fingerprint(torch.device("cpu")),
        algorithm=asked.algorithm,
        hyperparameters=figures | {f"{LEARNED_FROM}{name}": 1.0 for name in asked.policies},
        scores=scores,
        episodes=recorded.experience.episodes,
        transitions=len(recorded.experience),
    )


def _asked_by(update: ly.PolicyUpdate) -> PolicyTraining:
    """Return what was asked for when a version was made."""
    from esper.core.policy import parse_specification

    figures = update.hyperparameters
    missing = sorted({"rounds", "episodes_max", "learning_rate", "support_min"} - set(figures))
    if missing:
        raise UsageError(
            f"version {update.tamiyo_policy_version} cannot be trained again",
            cause=f"its update does not say {', '.join(missing)}",
            next_step="It was not made by `esper policy train`",
        )
    return PolicyTraining(
        parent=update.parent_policy_version,
        ranges=tuple(update.training_data),
        episodes_max=int(figures["episodes_max"]),
        policies=learned_from(update),
        algorithm=update.algorithm,
        seed=update.seed,
        rounds=int(figures["rounds"]),
        learning_rate=figures["learning_rate"],
        support_min=figures["support_min"],
        adapter_rank=int(figures.get("adapter_rank", 0)),
        rewards=dict(parse_specification(update.specification).reward_weights),
    )


def _telemetry(update: ly.PolicyUpdate, candidate: Candidate) -> ly.TelemetryPacket:
    """Return Simic's figures: the end of the training, and each round's curve."""
    packet = ly.TelemetryPacket(packet_id=new_run_id(), source_subsystem="simic", level=ly.TELEMETRY_LEVEL_INFO)
    packet.timestamp.FromNanoseconds(SYSTEM_CLOCK.now_ns())
    about = {"policy_version": update.tamiyo_policy_version}
    training = candidate.training
    figures = {
        "simic.training.episodes": float(update.episodes),
        "simic.training.transitions": float(update.transitions),
        "simic.training.iterations": float(len(training.rounds)),
        "simic.training.reward": update.scores["mean_return"],
        "simic.training.effective_episodes": training.effective_episodes,
    }
    for name, value in figures.items():
        packet.metrics.add(name=name, value=value, unit="1", attributes=about)
    for number, one in enumerate(training.rounds, start=1):
        at = about | {"round": str(number)}
        packet.metrics.add(name="simic.training.loss", value=one.policy_loss + one.value_loss, unit="1", attributes=at)
        for field_name, (name, unit) in _CURVES.items():
            value = float(getattr(one, field_name))
            if math.isfinite(value):
                packet.metrics.add(name=name, value=value, unit=unit, attributes=at)
    return packet


#: Figures of a round -> metric and unit.
_CURVES = {
    "policy_loss": ("simic.policy.loss", "1"),
    "value_loss": ("simic.value.loss", "1"),
    "entropy": ("simic.policy.entropy", "nats"),
    "kl_proximal": ("simic.policy.kl_proximal", "nats"),
    "kl_behaviour": ("simic.policy.kl_behaviour", "nats"),
    "clip_share": ("simic.policy.clip_share", "1"),
    "effective_share": ("simic.policy.effective_share", "1"),
    "explained_variance": ("simic.value.explained_variance", "1"),
    "gradient_norm": ("simic.training.gradient_norm", "1"),
}


def _document(update: ly.PolicyUpdate, candidate: Candidate, recorded: Recorded, seconds: float) -> dict[str, Any]:
    training = candidate.training
    return {
        **made_by(update),
        "rounds": [{name: getattr(one, name) for name in ("passes", *_CURVES)} for one in training.rounds],
        "ended": training.ended.value,
        "effective_episodes": training.effective_episodes,
        "left_out": dict(recorded.left_out),
        "seconds": seconds,
    }
