"""How two versions differ: what they were made from, how far apart their weights are, how differently they decide."""

from __future__ import annotations

from typing import Any

from esper.leyline import messages as ly
from esper.oona import Fabric
from esper.weatherlight._policies._history import open_board


def policy_diff(fabric: Fabric, one: str, other: str, *, ranges: tuple[ly.OffsetRange, ...] = ()) -> dict[str, Any]:
    """Return the JSON shape of `esper policy diff`.

    Divergences are KL(one || other) in nats a decision, over the states that the second was trained on, or those in
    `ranges`; None where the two cannot order the same, or the log no longer holds them.

    Raises:
        UsageError: there is no such version.
    """
    with open_board(fabric) as board:
        board.read()
        first, second = board.update(one), board.update(other)
    said = {name: [getattr(each, name) for each in (first, second)] for name in _FIELDS}
    figures = [dict(each.hyperparameters) for each in (first, second)]
    return {
        "versions": [one, other],
        "equal": first.policy_digest == second.policy_digest,
        "differs": {name: values for name, values in said.items() if values[0] != values[1]},
        "hyperparameters": {
            name: [figures[0].get(name), figures[1].get(name)]
            for name in sorted({*figures[0], *figures[1]})
            if figures[0].get(name) != figures[1].get(name)
        },
        "weights": _apart(first, second),
        "divergence": _divergence(fabric, first, second, ranges or tuple(second.training_data)),
    }


_FIELDS = (
    "policy_digest",
    "parent_policy_version",
    "algorithm",
    "seed",
    "code_version",
    "dependencies_digest",
    "observation_schema",
    "specification",
    "episodes",
)


def _apart(first: ly.PolicyUpdate, second: ly.PolicyUpdate) -> dict[str, float]:
    """Return the norm of the difference of each tensor that both have, in units of the first one's norm."""
    from esper.core.policy import unpack

    states = [unpack(each).state_dict() for each in (first, second)]
    found = {}
    for name, tensor in states[0].items():
        twin = states[1].get(name)
        if twin is None or twin.shape != tensor.shape:
            continue
        away = float((tensor - twin).norm())
        if away:
            found[name] = away / max(float(tensor.norm()), 1e-12)
    return found


def _divergence(
    fabric: Fabric, first: ly.PolicyUpdate, second: ly.PolicyUpdate, ranges: tuple[ly.OffsetRange, ...]
) -> dict[str, float] | None:
    import torch

    from esper.core.errors import NotReadyError
    from esper.core.policy import HEADS, unpack
    from esper.simic.experience import Reading, read_experience
    from esper.simic.learning import divergence, masked_log_probabilities
    from esper.simic.training import registry_of

    networks = [unpack(each) for each in (first, second)]
    if registry_of(networks[0]) != registry_of(networks[1]):
        return None
    try:
        recorded = read_experience(fabric, ranges, Reading(), registry=registry_of(networks[0]))
    except NotReadyError:
        return None
    if recorded.registry != registry_of(networks[0]):
        return None
    experience = recorded.experience
    with torch.no_grad():
        heads = [
            [
                masked_log_probabilities(logits, mask)
                for logits, mask in zip(network(experience.observations).logits, experience.masks, strict=True)
            ]
            for network in networks
        ]
    each = {
        name: float(divergence([mine.exp()], [theirs]).mean())
        for name, mine, theirs in zip(HEADS, heads[0], heads[1], strict=True)
    }
    return {**each, "all": sum(each.values())}
