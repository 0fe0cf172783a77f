"""A run that asks for a learned version is refused before it is asked for, when the log holds no such version."""

from __future__ import annotations

from collections.abc import Mapping

from esper.oona import Fabric


def check_learned(fabric: Fabric, policy: str, parameters: Mapping[str, float]) -> None:
    """Raise when the log holds no version that `learned` or `learned@VERSION` could be; any other policy passes.

    Raises:
        NotReadyError: no learned version decides, or the log could not be read.
        UsageError: there is no such version, or not with these parameters.
    """
    from esper.tamiyo import LearnedPolicies, check_policy, is_learned

    if not is_learned(policy):
        return
    with LearnedPolicies(fabric) as learned:
        learned.read()
        check_policy(policy, parameters, learned=learned)
