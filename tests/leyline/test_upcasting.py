"""Older versions of events: chains that are whole, steps that are pure, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from esper.leyline import (
    EVENT_TYPES,
    BadRecord,
    ContractError,
    EventMessage,
    Record,
    Upcaster,
    current_version,
    decode,
    decode_value,
    load_contracts,
    needs_upcast,
    open_event,
    open_record,
)
from esper.leyline import messages as ly
from esper.leyline.contracts import unload_contracts
from esper.leyline.upcasting import (
    SHIPPED_UPCASTERS,
    SHIPPED_VERSIONS,
    Step,
    add_chains,
    build_chains,
    remove_chains,
    upcast,
)
from tests.leyline.users import (
    HEAD,
    POSTED,
    RING,
    VERSION_1,
    VERSION_2,
    VERSION_3,
    compile_contract,
    earlier_class,
    install_steps,
    new_package,
    signed,
)

KNOWN = ["acme.v1.Posted", "acme.v1.Sold"]


@pytest.fixture(autouse=True)
def _only_shipped() -> Iterator[None]:
    yield
    unload_contracts()


def nothing(_: Any) -> None:
    """A step that changes nothing."""


def chain(versions: dict[str, Any], *steps: tuple[str, int]) -> dict[str, tuple[Step, ...]]:
    """Build chains from pairs of type and version."""
    return dict(build_chains(versions, [Upcaster(*step, nothing) for step in steps], known=KNOWN))


def test_a_chain_has_every_step() -> None:
    """Goal: whole chains are taken, in any order. Method: two types, three versions and one."""
    assert chain({"acme.v1.Posted": 3, "acme.v1.Sold": 1}, ("acme.v1.Posted", 2), ("acme.v1.Posted", 1)) == {
        "acme.v1.Posted": (nothing, nothing),
        "acme.v1.Sold": (),
    }
    assert chain({}) == {}
    assert build_chains(SHIPPED_VERSIONS, SHIPPED_UPCASTERS, known=EVENT_TYPES).keys() == SHIPPED_VERSIONS.keys()


@pytest.mark.parametrize(
    ("versions", "steps", "words"),
    [
        ({"acme.v1.Posted": 3}, [2], "its version is 3, but no step leads from version 1 to 2"),
        ({"acme.v1.Posted": 3}, [1], "no step leads from version 2 to 3"),
        ({"acme.v1.Posted": 2}, [], "no step leads from version 1 to 2"),
        ({"acme.v1.Posted": 2}, [1, 1], "there are two of it"),
        ({"acme.v1.Posted": 2}, [1, 2], "it leads to version 3, but the type's version is 2"),
        ({}, [1], "it leads to version 2, but the type's version is 1"),
        ({"acme.v1.Posted": 2}, [1, 0], "versions begin at 1"),
        ({"acme.v1.Posted": 0}, [], "versions are whole numbers from 1 on"),
        ({"acme.v1.Posted": True}, [], "versions are whole numbers from 1 on"),
        ({"acme.v1.Unheard": 1}, [], "no event of these contracts is called so"),
    ],
)
def test_a_chain_with_a_fault_is_refused(versions: dict[str, Any], steps: list[int], words: str) -> None:
    """Goal: no gap, no step twice, none beyond. Method: each fault by itself, on one type."""
    with pytest.raises(ContractError, match=words):
        chain(versions, *[("acme.v1.Posted", version) for version in steps])


def evolved(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict[int, type[EventMessage]]]:
    """Load a contract in its third version; return its type, and its class as code of each version had it."""
    package = new_package()
    classes = {}
    for version, text in {1: VERSION_1, 2: VERSION_2, 3: VERSION_3}.items():
        image, _ = compile_contract(folder, text, package=package, imports=True)
        classes[version] = cast("type[EventMessage]", earlier_class(image, f"{package}.ReviewPosted"))
    monkeypatch.syspath_prepend(folder)
    load_contracts([str(image), install_steps(folder, package, module=f"{package.replace('.', '_')}_history")])
    return f"{package}.ReviewPosted", classes


def test_every_version_reads_as_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: one meaning, whatever wrote it. Method: bytes of three releases, through each way that decodes."""
    name, classes = evolved(tmp_path, monkeypatch)
    assert (current_version(name), needs_upcast(name, 0), needs_upcast(name, 2), needs_upcast(name, 3)) == (
        3,
        True,
        True,
        False,
    )
    fields = {
        0: {"stars": 4, "reviewer": "Ada Lovelace"},
        1: {"stars": 4, "reviewer": "Ada Lovelace"},
        2: {"points": 80, "reviewer": "Ada Lovelace"},
        3: {"points": 80, "given_name": "Ada", "family_name": "Lovelace"},
    }
    for version, content in fields.items():
        event = cast("Any", classes[version or 1])(product_id="p-1", **content)
        record = signed(event, key="p-1", topic="acme-reviews", version=version)
        plain = open_record(record, keyring=RING, allowed=lambda *_: True)
        assert plain.schema_version == version
        meta, opened = open_event(record, keyring=RING, allowed=lambda *_: True, wanted={name})
        for message in (opened, decode(record, plain), decode_value(name, record.value or b"")):
            seen = cast("Any", message)
            assert (seen.points, seen.given_name, seen.family_name) == (80, "Ada", "Lovelace")
            assert (seen.stars, seen.reviewer, seen.meta.schema_version) == (0, "", 3)
            assert seen.meta.event_id == plain.event_id
        assert meta.schema_version == 3


def unreadable(record: Record, name: str) -> tuple[str, str]:
    """Return why an authentic record does not decode; both ways must agree, and leave its meta as it was."""
    meta, message = open_event(record, keyring=RING, allowed=lambda *_: True, wanted={name})
    assert message is None
    assert meta == open_record(record, keyring=RING, allowed=lambda *_: True)
    with pytest.raises(BadRecord) as caught:
        decode(record, meta)
    return ly.DeadLetterReason.Name(caught.value.reason).removeprefix("DEAD_LETTER_REASON_"), caught.value.detail


def test_a_newer_version_is_authentic_and_not_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: proof needs no version, meaning does. Method: a version too new, of a user's type and of ours."""
    name, classes = evolved(tmp_path, monkeypatch)
    record = signed(cast("Any", classes[3])(points=80), key="p-1", topic="acme-reviews", version=4)
    assert unreadable(record, name) == ("UNKNOWN_VERSION", f"{name} of version 4; this installation knows up to 3")
    ours = signed(ly.FieldReport(), key="r", topic="field-reports", version=2)
    assert unreadable(ours, "esper.leyline.v1.FieldReport")[0] == "UNKNOWN_VERSION"


def fails(event: Any) -> None:
    event.meta.event_id = "another"
    raise ZeroDivisionError(f"for {event.product_id}")


def touches_meta(event: Any) -> None:
    event.meta.sequence += 1


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (fails, "from version 1 failed: ZeroDivisionError: for p-1"),
        (touches_meta, "from version 1 on changed its meta"),
    ],
)
def test_a_step_that_fails_costs_one_event(tmp_path: Path, step: Step, words: str) -> None:
    """Goal: a user's fault is this event's, and its meta stays. Method: steps that raise, or touch the meta."""
    image, package = compile_contract(tmp_path, HEAD + POSTED)
    name = f"{package}.ReviewPosted"
    load_contracts([str(image)])
    add_chains({name: (step,)})
    try:
        record = signed(cast("Any", EVENT_TYPES[name])(product_id="p-1"), key="p-1", topic="acme-reviews")
        reason, detail = unreadable(record, name)
        assert (reason, detail.endswith(words)) == ("UNDECODABLE", True), detail
        current = signed(cast("Any", EVENT_TYPES[name])(product_id="p-2"), key="p-2", topic="acme-reviews", version=2)
        assert cast("Any", decode_value(name, current.value or b"")).product_id == "p-2"
    finally:
        remove_chains([name])


def test_what_is_current_is_left_alone() -> None:
    """Goal: today's events cost nothing. Method: upcast an event whose type has had one version."""
    event = ly.FieldReport(meta=ly.EventMeta(type="x", schema_version=0), report_id="r")
    before = event.SerializeToString(deterministic=True)
    upcast(event)
    assert event.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('VERSIONS = {"ReviewPosted": 2}', "no step leads from version 1 to 2"),
        ('VERSIONS = {"FieldReport": 2}', "no event of these contracts is called so"),
        ('VERSIONS = ["ReviewPosted"]', "VERSIONS maps names to versions"),
        ("UPCASTERS = [1]", "a list of esper.leyline.Upcaster"),
    ],
)
def test_a_module_s_chains_are_checked_as_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str
) -> None:
    """Goal: a fault stops the start. Method: modules with a fault beside a sound contract; nothing is half loaded."""
    image, package = compile_contract(tmp_path, HEAD + POSTED)
    module = f"history_of_{package.replace('.', '_')}"
    (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ContractError, match=words):
        load_contracts([str(image), module])
    assert f"{package}.ReviewPosted" not in EVENT_TYPES


def test_versions_are_stated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: one table. Method: two modules state the version of one type."""
    name, _ = evolved(tmp_path, monkeypatch)
    (tmp_path / "acme_second_history.py").write_text(f'VERSIONS = {{"{name}": 1}}')
    with pytest.raises(ContractError, match=f"the version of {name} is stated twice"):
        load_contracts(["acme_second_history"])
