"""A policy that no slot suits: its run would end as it began, so it is said when the slots are known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def unfit(policy: str, parameters: Mapping[str, float], layouts: Iterable[str]) -> str:
    """Return one sentence when slots of these layouts take none of a policy's blueprints; else nothing.

    A policy that grafts nothing at all, and a run without slots, are what was asked for.

    Raises:
        UsageError: there is no such policy, or not with these parameters.
    """
    from esper.tamiyo import is_learned, make_policy

    if is_learned(policy):  # Which blueprints it knows is said by a version that may be another at the next epoch.
        return ""
    options, found = make_policy(policy, parameters).options, sorted(set(layouts))
    wanted = {layout for option in options for layout in option.layouts}
    if not options or not found or any(not option.layouts for option in options) or wanted & set(found):
        return ""
    return (
        f"policy {policy!r} will graft nothing: its blueprints fit slots of layout {_listed(wanted)}, "
        f"and all slots of this run are of layout {_listed(found)}"
    )


def _listed(layouts: Iterable[str]) -> str:
    return " or ".join(repr(layout) for layout in sorted(layouts))
