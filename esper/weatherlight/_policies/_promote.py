"""Gates, promotion and rollback: what a person orders about learned versions, each as an event."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from esper.core.errors import NotReadyError, OperationFailed, UsageError
from esper.core.policy import POLICY_ID, Standing, fold
from esper.leyline import messages as ly
from esper.oona import Fabric, PolicyBoard
from esper.weatherlight._policies._canary import canary_runs
from esper.weatherlight._policies._history import checked, learned_from, open_board

if TYPE_CHECKING:
    from esper.simic.promotion import Canary


@dataclass(frozen=True)
class Validation:
    """How a candidate is judged."""

    version: str
    #: Offsets whose held-out runs it is judged on; empty: those that it was trained on, and what came since.
    ranges: Sequence[ly.OffsetRange] = ()
    tasks: Sequence[str] = ("mnist1d", "spirals")
    #: Pairs of runs on each task.
    pairs: int = 20
    epochs: int = 40
    seed: int = 1_000_000
    #: Whose paired runs it must beat where no learned version decides yet.
    rival: str = "random"


def validate_policy(fabric: Fabric, asked: Validation) -> dict[str, Any]:
    """Hold a version against the gates, append the verdict, and return the JSON shape of `esper policy validate`.

    Judged on runs that nobody learned from (`part_of`), against the version that decides; where none does, against the
    policies that collected.

    Raises:
        UsageError: there is no such version.
        NotReadyError: the log holds no whole episode to judge it on.
        OperationFailed: a paired run failed.
    """
    from esper.core.numerics import code_version, deterministic
    from esper.core.policy import unpack
    from esper.simic.experience import Part, Reading, Retention, RewardWeights, read_experience
    from esper.simic.promotion import GateBounds, judge
    from esper.simic.training import registry_of, spoken_in

    with open_board(fabric) as board:
        standing = board.read()
        update = board.update(asked.version)
        current = standing.current
        incumbent = board.update(current.name) if current is not None and current.name != asked.version else None
    network = unpack(update)
    ranges = tuple(asked.ranges) or tuple(update.training_data)
    recorded = read_experience(
        fabric,
        ranges,
        Reading(
            weights=RewardWeights(**network.specification.reward_weights),
            retention=Retention(policies=learned_from(update) or None, part=Part.JUDGING),
        ),
        registry=registry_of(network),
    )
    if recorded.registry != registry_of(network):
        raise NotReadyError(
            f"version {asked.version} cannot be judged on these episodes",
            cause="they hold blueprints that it cannot order",
            next_step="Train a version on them, or name the offsets that it was trained on",
        )
    rival = asked.rival if incumbent is None else f"learned@{incumbent.tamiyo_policy_version}"
    policies = (f"learned@{asked.version}", rival)

    def canary() -> Canary:
        return canary_runs(fabric, policies, tasks=asked.tasks, pairs=asked.pairs, epochs=asked.epochs, seed=asked.seed)

    with deterministic(seed=asked.seed):
        judged = judge(
            update,
            spoken_in(unpack(incumbent), recorded.registry) if incumbent is not None else None,
            recorded.experience,
            GateBounds(canary_pairs_min=20),
            seed=asked.seed,
            canary=canary,
        )
    event = ly.PolicyValidated(
        policy_id=POLICY_ID,
        tamiyo_policy_version=asked.version,
        policy_digest=update.policy_digest,
        passed=judged.passed,
        checks=judged.checks,
        incumbent_policy_version="" if incumbent is None else incumbent.tamiyo_policy_version,
        incumbent_policy_digest="" if incumbent is None else incumbent.policy_digest,
        evaluation_data=ranges,
        code_version=code_version(),
        seed=asked.seed,
        reason=judged.reason,
        scores=judged.scores,
    )
    with fabric.publisher("simic") as publisher:
        publisher.publish(event, key=POLICY_ID, causation_id=update.meta.event_id)
    return {
        "version": asked.version,
        "passed": judged.passed,
        "reason": judged.reason,
        "incumbent": event.incumbent_policy_version or None,
        "rival": policies[1],
        "episodes": recorded.experience.episodes,
        "checks": [checked(one) for one in judged.checks],
        "scores": dict(sorted(judged.scores.items())),
        "event_id": event.meta.event_id,
    }


def promote_policy(
    fabric: Fabric, version: str, *, issued_by: str, reason: str = "", override: bool = False
) -> dict[str, Any]:
    """Let a version decide from now on; return the JSON shape of `esper policy promote`.

    Raises:
        UsageError: there is no such version, or it decides already; or `override` without a reason.
        OperationFailed: it did not pass its gates, and nobody overrides them.
    """
    if override and not reason.strip():
        raise UsageError("the gates are not overridden without a reason", next_step="say why with --reason")
    with open_board(fabric) as board:
        standing = board.read()
        update = board.update(version)
        digest = update.policy_digest
        passed = [event_id for event_id, vouched in standing.validated.items() if vouched == digest]
        if not passed and not override:
            raise OperationFailed(
                f"version {version} is not promoted",
                cause="the log holds no validation that it passed",
                next_step=f"`esper policy validate {version}`; or `--override --reason ...`, which is recorded",
            )
        before = standing.current
        event = ly.PolicyPromoted(
            policy_id=POLICY_ID,
            tamiyo_policy_version=version,
            policy_digest=digest,
            previous_policy_version="" if before is None else before.name,
            previous_policy_digest="" if before is None else before.digest,
            validation_event_id="" if override else passed[-1],
            issued_by=issued_by,
            reason=reason,
        )
        _append(fabric, board, standing, event)
    return {
        "version": version,
        "policy_digest": digest,
        "instead_of": None if before is None else before.name,
        "validated_by": None if override else passed[-1],
        "event_id": event.meta.event_id,
    }


def roll_back_policy(fabric: Fabric, *, issued_by: str, to: str = "", reason: str = "") -> dict[str, Any]:
    """Give up the version that decides; return the JSON shape of `esper policy rollback`.

    What decided before it decides again, or `to`, which must have decided once.

    Raises:
        NotReadyError: no learned version decides.
        UsageError: `to` never decided.
    """
    with open_board(fabric) as board:
        standing = board.read()
        current = standing.current
        if current is None:
            raise NotReadyError("no learned version decides", next_step="`esper policy promote VERSION` lets one")
        restored = standing.versions.get(to) if to else standing.term.previous
        if to and restored is None:
            board.update(to)  # Raises, naming those that there are.
        event = ly.PolicyRolledBack(
            policy_id=POLICY_ID,
            tamiyo_policy_version=current.name,
            policy_digest=current.digest,
            restored_policy_version="" if restored is None else restored.name,
            restored_policy_digest="" if restored is None else restored.digest,
            issued_by=issued_by,
            reason=reason,
        )
        _append(fabric, board, standing, event)
    return {
        "version": current.name,
        "restored": None if restored is None else restored.name,
        "event_id": event.meta.event_id,
    }


def _append(
    fabric: Fabric, board: PolicyBoard, standing: Standing, event: ly.PolicyPromoted | ly.PolicyRolledBack
) -> None:
    """Append an order that the fold would let stand, and see that it did: another may have come between.

    Raises:
        UsageError: it would change nothing.
        OperationFailed: another event came before it, so that it changed nothing.
    """
    trial = copy.deepcopy(event)
    trial.meta.source, trial.meta.event_id = "cli", "trial"
    _, refusal = fold(standing, trial, 0)
    if refusal is not None:
        raise UsageError("the order would change nothing", cause=str(refusal), next_step="`esper policy list`")
    with fabric.publisher("cli") as publisher:
        publisher.publish(event, key=POLICY_ID)
    if event.meta.event_id not in board.read().counted:
        raise OperationFailed(
            "the order changed nothing",
            cause="another event about the same version came before it",
            next_step="`esper policy list` says what decides now",
        )
