"""The fold of the topic `policy`: who decides, and what cannot be let stand."""

from __future__ import annotations

import functools
import itertools

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from esper.core.ids import derive_id
from esper.core.policy import SHIPPED, PolicyRefused, Refusal, Standing, fold, shipped_standing
from esper.leyline import messages as ly
from tests.core.policy.support import network, update


@functools.cache
def _update_bytes(version: str, seed: int) -> bytes:
    return update(network(seed), version=version).SerializeToString()


def made(version: str, *, seed: int | None = None, source: str = "simic") -> ly.PolicyUpdate:
    """Return the update of a version; its weights follow from its name where no seed is given."""
    found = ly.PolicyUpdate.FromString(_update_bytes(version, ord(version[0]) if seed is None else seed))
    found.meta.CopyFrom(ly.EventMeta(event_id=derive_id("update", version, str(seed)), source=source))
    return found


def validated(version: str, *, passed: bool = True) -> ly.PolicyValidated:
    """Return the validation of a version."""
    meta = ly.EventMeta(event_id=derive_id("validated", version, str(passed)), source="simic")
    digest = made(version).policy_digest
    return ly.PolicyValidated(
        meta=meta, policy_id="tamiyo", tamiyo_policy_version=version, policy_digest=digest, passed=passed
    )


def promoted(version: str, *, after: str = "", number: int = 0) -> ly.PolicyPromoted:
    """Return the promotion of a version on its validation."""
    return ly.PolicyPromoted(
        meta=ly.EventMeta(event_id=derive_id("promoted", version, after, number), source="simic"),
        policy_id="tamiyo",
        tamiyo_policy_version=version,
        policy_digest=made(version).policy_digest,
        previous_policy_version=after,
        validation_event_id=derive_id("validated", version, "True"),
        issued_by="simic",
    )


def rolled_back(version: str, to: str, *, cause: str = "", source: str = "cli", number: int = 0) -> ly.PolicyRolledBack:
    """Return the rollback of a version, by a person where no cause is given."""
    return ly.PolicyRolledBack(
        meta=ly.EventMeta(event_id=derive_id("rolled", version, to, number, cause), source=source, causation_id=cause),
        policy_id="tamiyo",
        tamiyo_policy_version=version,
        policy_digest=made(version).policy_digest,
        restored_policy_version=to,
        restored_policy_digest=made(to).policy_digest if to else "",
        issued_by="ann",
    )


def folded(*events: Message, begin: Standing | None = None) -> tuple[Standing, list[str]]:
    """Return the standing after the events, and the reasons of refusals in order."""
    standing, reasons = begin or Standing(), []
    for offset, event in enumerate(events):
        standing, refusal = fold(standing, event, offset)
        reasons += [refusal.reason] if refusal else []
    return standing, reasons


def decides(standing: Standing) -> str:
    """Return the name of the version that decides, "" for none."""
    return standing.current.name if standing.current else ""


def test_promotions_and_rollbacks_decide_in_the_order_of_the_log() -> None:
    """Goal: the last word counts. Method: two versions promoted, one rolled back, then all of it given up."""
    one = [made("a"), validated("a"), promoted("a")]
    two = [made("b"), validated("b"), promoted("b", after="a")]
    standing, reasons = folded(*one)
    assert (decides(standing), standing.term.previous, reasons) == ("a", None, [])
    standing, reasons = folded(*one, *two)
    assert decides(standing) == "b"
    assert standing.term.previous is not None
    assert standing.term.previous.name == "a"
    assert standing.term.event_id == promoted("b", after="a").meta.event_id
    standing, reasons = folded(*one, *two, rolled_back("b", "a"))
    assert (decides(standing), standing.term.promoted, reasons) == ("a", False, [])
    standing, reasons = folded(*one, *two, rolled_back("b", "a"), rolled_back("a", ""))
    assert (decides(standing), standing.current, reasons) == ("", None, [])


def test_what_comes_with_the_package_decides_first() -> None:
    """Goal: a home without a promotion has the package's version. Method: begin with one, promote over it, go back."""
    begin = shipped_standing(made("a"))
    assert begin.current is not None
    assert (begin.current.name, begin.current.offset, begin.term.event_id) == ("a", SHIPPED, "")
    standing, reasons = folded(made("b"), validated("b"), promoted("b", after="a"), begin=begin)
    assert (decides(standing), reasons) == ("b", [])
    standing, reasons = folded(made("b"), validated("b"), promoted("b", after="a"), rolled_back("b", "a"), begin=begin)
    assert (decides(standing), reasons) == ("a", [])
    assert shipped_standing(None) == Standing()
    broken = made("a")
    broken.policy_digest = "0" * 64
    with pytest.raises(PolicyRefused):
        shipped_standing(broken)


def _changed(event: Message, **fields: object) -> Message:
    changed = type(event)()
    changed.CopyFrom(event)
    for name, value in fields.items():
        if name == "source":
            changed.meta.source = value
        else:
            setattr(changed, name, value)
    changed.meta.event_id += "x"
    return changed


STANDS = (made("a"), validated("a"), promoted("a"), made("b"), validated("b"), made("c"), validated("c", passed=False))


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (_changed(made("d"), source="tamiyo"), "source"),
        (_changed(made("d"), source="kasmina"), "source"),
        (_changed(validated("c"), source="tamiyo"), "source"),
        (_changed(promoted("b", after="a"), source="tamiyo"), "source"),
        (_changed(rolled_back("a", ""), source="tolaria"), "source"),
        (_changed(made("d"), tamiyo_policy_version="../d"), "version_name"),
        (_changed(made("d"), tamiyo_policy_version=""), "version_name"),
        (_changed(made("d"), version=0), "version"),
        (_changed(made("d"), version=2), "version"),
        (_changed(made("d"), observation_schema="tamiyo.observation.v1"), "schema"),
        (_changed(made("d"), specification="{}"), "schema"),
        (_changed(made("d"), payload=b"\0" * (8 * 1024 * 1024 + 1)), "huge"),
        (_changed(made("d"), payload=made("a").payload), "digest"),
        (_changed(made("d"), weights_digest="0" * 64), "digest"),
        (made("b", seed=99), "version_taken"),
        (_changed(promoted("b", after="a"), tamiyo_policy_version="z"), "unknown_version"),
        (_changed(promoted("b", after="a"), policy_digest="0" * 64), "digest"),
        (_changed(promoted("b", after="a"), validation_event_id="made up"), "not_validated"),
        (_changed(promoted("b", after="a"), validation_event_id=validated("a").meta.event_id), "not_validated"),
        (_changed(promoted("b", after="a"), validation_event_id=""), "not_validated"),
        (_changed(promoted("b", after="a"), validation_event_id="", source="cli", issued_by=""), "not_validated"),
        (
            _changed(promoted("c", after="a"), validation_event_id=validated("c", passed=False).meta.event_id),
            "not_validated",
        ),
        (_changed(promoted("b"), previous_policy_version="c"), "overtaken"),
        (_changed(promoted("a"), previous_policy_version="a"), "already_decides"),
        (rolled_back("b", "a"), "not_current"),
        (_changed(rolled_back("a", ""), policy_digest="0" * 64), "not_current"),
        (rolled_back("a", "b"), "never_decided"),
        (rolled_back("a", "a"), "already_decides"),
        (_changed(rolled_back("a", ""), restored_policy_version="z"), "unknown_version"),
        (rolled_back("a", "", source="tamiyo", cause="another promotion"), "not_current"),
    ],
)
def test_what_cannot_be_let_stand_changes_nothing(event: Message, reason: str) -> None:
    """Goal: every refusal has its reason. Method: one event that is wrong in one way, after seven that stand."""
    before, reasons = folded(*STANDS)
    assert reasons == []
    after, refusal = fold(before, event, len(STANDS))
    assert isinstance(refusal, Refusal)
    assert refusal.reason == reason
    assert str(refusal).startswith(f"{reason}: ")
    assert after == before


def test_a_weight_that_is_no_number_is_refused() -> None:
    """Goal: no NaN decides. Method: an update whose digests are right and whose weights are not finite."""
    import safetensors.torch
    import torch

    from esper.core.policy import policy_digest

    poisoned = made("d")
    tensors = safetensors.torch.load(poisoned.payload)
    next(iter(tensors.values())).view(-1)[0] = torch.nan
    poisoned.payload = safetensors.torch.save(tensors)
    poisoned.policy_digest = policy_digest(poisoned.specification, poisoned.payload)
    assert folded(poisoned)[1] == ["not_finite"]


def test_a_person_may_promote_without_the_gates() -> None:
    """Goal: people have the last word. Method: the promotion of a version that failed, by name, through the cli."""
    event = _changed(promoted("c", after="a"), validation_event_id="", source="cli", issued_by="ann")
    standing, reasons = folded(*STANDS, event)
    assert (decides(standing), reasons) == ("c", [])


def test_other_lines_and_messages_are_no_business_of_this_fold() -> None:
    """Goal: no refusal of what is not addressed here. Method: another policy_id, another message."""
    other = _changed(made("d"), policy_id="another")
    assert folded(other, ly.FieldReport()) == (Standing(), [])


HISTORY = (
    *STANDS,
    promoted("b", after="a"),
    rolled_back("b", "a", source="tamiyo", cause=promoted("b", after="a").meta.event_id),
    promoted("b", after="a", number=2),
    rolled_back("b", ""),
    promoted("a", number=2),
)


@given(st.data())
def test_what_is_said_again_changes_nothing(data: st.DataObject) -> None:
    """Goal: delivery may repeat. Method: every event of a history again, any number of times, at any later place."""
    plain, reasons = folded(*HISTORY)
    assert reasons == []
    places = data.draw(st.lists(st.tuples(st.integers(0, len(HISTORY) - 1), st.integers(0, 12)), max_size=12))
    events = list(HISTORY)
    for which, later in places:
        at = min(len(events), events.index(HISTORY[which]) + 1 + later)
        events.insert(at, HISTORY[which])
    again, reasons = folded(*events)
    assert reasons == []
    assert (again.term, again.versions.keys(), again.tried) == (plain.term, plain.versions.keys(), plain.tried)


@given(st.lists(st.sampled_from(HISTORY), max_size=24), st.integers(0, 24))
def test_any_log_has_one_standing(events: list[Message], cut: int) -> None:
    """Goal: a restart gives the same. Method: any events in any order, folded at once and with a cut.

    Whatever stands there, who decides was made, and was promoted or brought back by the last event that counted.
    """
    whole, _ = folded(*events)
    standing = Standing()
    counted = []
    for offset, event in enumerate(events):
        before = standing
        standing, refusal = fold(standing, event, offset)
        assert refusal is None or standing == before
        counted += [event] if standing.term != before.term else []
    assert standing == whole
    first, _ = folded(*events[:cut])
    for offset, event in enumerate(itertools.islice(events, cut, None), start=cut):
        first, _ = fold(first, event, offset)
    assert first == whole
    if whole.current is not None:
        assert whole.versions[whole.current.name] == whole.current
        assert whole.term.event_id == counted[-1].meta.event_id
        assert whole.current.name in whole.tried
