"""What the topic `policy` says of each version, for people."""

from __future__ import annotations

from typing import Any

from esper.core.errors import UsageError
from esper.core.policy import POLICY_ID, SHIPPED, Standing, Version, fold, shipped_standing
from esper.leyline import messages as ly
from esper.oona import Fabric, PolicyBoard

#: Hyperparameters whose names begin so name the policies whose runs were learned from.
LEARNED_FROM = "policy."
_Word = ly.PolicyValidated | ly.PolicyPromoted | ly.PolicyRolledBack


def made_by(update: ly.PolicyUpdate) -> dict[str, Any]:
    """Return a version's pedigree."""
    return {
        "version": update.tamiyo_policy_version,
        "policy_digest": update.policy_digest,
        "weights_digest": update.weights_digest,
        "parent": update.parent_policy_version or None,
        "algorithm": update.algorithm,
        "seed": update.seed,
        "learned_on": list(update.learned_on),
        "episodes": update.episodes,
        "transitions": update.transitions,
        "code_version": update.code_version,
        "observation_schema": update.observation_schema,
        "bytes": len(update.payload),
        "scores": dict(sorted(update.scores.items())),
        "training_data": [ranged(one) for one in update.training_data],
    }


def learned_from(update: ly.PolicyUpdate) -> tuple[str, ...]:
    """Return the names of the policies whose runs a version learned from; none: any."""
    return tuple(
        sorted(name.removeprefix(LEARNED_FROM) for name in update.hyperparameters if name.startswith(LEARNED_FROM))
    )


def ranged(one: ly.OffsetRange) -> dict[str, Any]:
    """Return a range of offsets."""
    return {
        "topic": one.topic,
        "partition": one.partition,
        "first_offset": one.first_offset,
        "end_offset": one.end_offset,
    }


def policy_list(fabric: Fabric) -> list[dict[str, Any]]:
    """Return one row for each version that can be decided with, in the order of the log.

    Raises:
        BrokerUnavailable, NotReadyError: the topic could not be read.
    """
    updates, words, standing = _said(fabric)
    rows = []
    for name, version in standing.versions.items():
        update = updates.get(name)
        rows.append(
            {
                "version": name,
                "status": _status(version, standing, words.get(name, [])),
                "parent": (update.parent_policy_version or None) if update is not None else None,
                "algorithm": update.algorithm if update is not None else None,
                "episodes": update.episodes if update is not None else None,
                "policy_digest": version.digest,
            }
        )
    return rows


def policy_show(fabric: Fabric, version: str) -> dict[str, Any]:
    """Return a version's pedigree and all that became of it.

    Raises:
        UsageError: there is no such version.
    """
    updates, words, standing = _said(fabric)
    if version not in updates:
        raise UsageError(
            f"there is no learned version {version!r}",
            cause=f"known: {', '.join(list(updates)[-5:]) or 'none'}",
            next_step="`esper policy list` shows all",
        )
    update, said = updates[version], words.get(version, [])
    return {
        **made_by(update),
        "status": _status(standing.versions[version], standing, said),
        "hyperparameters": dict(sorted(update.hyperparameters.items())),
        "history": [_word(one) for one in said],
    }


def open_board(fabric: Fabric) -> PolicyBoard:
    """Return the board with the version that comes with the package, as Tamiyo has it."""
    from esper.tamiyo import shipped_policy

    return PolicyBoard(fabric, shipped=shipped_policy())


def _said(fabric: Fabric) -> tuple[dict[str, ly.PolicyUpdate], dict[str, list[_Word]], Standing]:
    """Return the update of each version, what was said of it later in the order of the log, and where all stand."""
    from esper.tamiyo import shipped_policy

    shipped = shipped_policy()
    standing = shipped_standing(shipped)
    updates: dict[str, ly.PolicyUpdate] = {} if shipped is None else {shipped.tamiyo_policy_version: shipped}
    words: dict[str, list[_Word]] = {}
    with fabric.reader({("policy", 0): "begin"}) as reader:
        for event in reader.read_to_end():
            message = event.message
            standing, refusal = fold(standing, message, event.offset)
            if isinstance(message, ly.PolicyUpdate):
                if message.policy_id == POLICY_ID and refusal is None:
                    updates.setdefault(message.tamiyo_policy_version, message)
            elif isinstance(message, _Word) and message.policy_id == POLICY_ID:
                words.setdefault(message.tamiyo_policy_version, []).append(message)
    return updates, words, standing


def _status(version: Version, standing: Standing, words: list[_Word]) -> str:
    if standing.current == version:
        return "active"
    if not words:  # What comes with the package decided from the beginning.
        return "retired" if version.offset == SHIPPED else "candidate"
    last = words[-1]
    if isinstance(last, ly.PolicyValidated):
        return "validated" if last.passed else "rejected"
    return "retired" if isinstance(last, ly.PolicyPromoted) else "rolled_back"


def _word(one: _Word) -> dict[str, Any]:
    found: dict[str, Any] = {"event_id": one.meta.event_id, "time": one.meta.time.ToJsonString(), "reason": one.reason}
    if isinstance(one, ly.PolicyValidated):
        return {
            "event": "validated" if one.passed else "rejected",
            **found,
            "incumbent": one.incumbent_policy_version or None,
            "checks": [checked(each) for each in one.checks],
            "scores": dict(sorted(one.scores.items())),
        }
    if isinstance(one, ly.PolicyPromoted):
        return {"event": "promoted", **found, "issued_by": one.issued_by, "instead_of": one.previous_policy_version}
    return {
        "event": "rolled_back",
        **found,
        "issued_by": one.issued_by,
        "restored": one.restored_policy_version or None,
        "breaches": [checked(each) for each in one.breaches],
    }


def checked(one: ly.GateCheck) -> dict[str, Any]:
    """Return a figure and its bound."""
    return {
        "name": one.name,
        "value": one.value,
        "comparison": one.comparison,
        "bound": one.bound,
        "passed": one.passed,
    }
