"""Contracts of users: what becomes known, what is refused, and that nothing of it stays behind."""

from __future__ import annotations

import importlib
import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from esper.core.contracts import load_own_contracts
from esper.core.errors import SettingsError
from esper.core.settings import Settings
from esper.leyline import (
    EVENT_TYPES,
    SHIPPED_TYPES,
    ContractError,
    current_version,
    full_name,
    load_contracts,
    open_event,
    short_name,
)
from esper.leyline import messages as ly
from esper.leyline.contracts import unload_contracts
from tests.leyline.test_keys import reason_of
from tests.leyline.users import HEAD, POSTED, RING, compile_contract, new_package, signed

META = "esper.leyline.v1.EventMeta meta = 1;"
STRUCT = 'import "google/protobuf/struct.proto";\n'


@pytest.fixture(autouse=True)
def _only_shipped() -> Iterator[None]:
    yield
    unload_contracts()
    assert set(EVENT_TYPES) == SHIPPED_TYPES


@pytest.mark.parametrize("imports", [False, True])
def test_a_descriptor_set_makes_its_events_known(tmp_path: Path, imports: bool) -> None:
    """Goal: a signed event of a user opens like ours. Method: with and without imports in the set; before and after."""
    text = HEAD + POSTED + "message Part { string name = 1; }\n"
    image, package = compile_contract(tmp_path, text, imports=imports)
    name = f"{package}.ReviewPosted"
    assert load_contracts([str(image)]) == {name}
    assert (full_name("ReviewPosted"), short_name(name), current_version(name)) == (name, "ReviewPosted", 1)
    assert full_name("Part") not in EVENT_TYPES
    event = cast("Any", EVENT_TYPES[name](product_id="p-1", stars=4))
    assert isinstance(event.meta, ly.EventMeta)
    record = signed(event, key="p-1", topic="acme-reviews")
    meta, message = open_event(record, keyring=RING, allowed=lambda *_: True, wanted={name})
    assert (meta.type, cast("Any", message).stars) == (name, 4)
    unload_contracts()
    assert reason_of(record, RING) == "UNKNOWN_TYPE"
    assert short_name(name) == name
    assert load_contracts([str(image)]) == load_contracts([str(image), str(image)]) == {name}


@pytest.mark.parametrize("first", ["module", "file"])
def test_generated_code_and_descriptor_set_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    """Goal: a user may construct events by generated code. Method: import it before and after the set is loaded."""
    image, package = compile_contract(tmp_path, HEAD + POSTED, python=True)
    monkeypatch.syspath_prepend(tmp_path)
    name = f"{package}.reviews_pb2"
    module = importlib.import_module(name) if first == "module" else None
    load_contracts([str(image)])
    module = module or importlib.import_module(name)
    assert module.ReviewPosted is EVENT_TYPES[f"{package}.ReviewPosted"]


def test_generated_code_alone_is_a_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: a module suffices. Method: name a generated module, once and together with its own descriptor set."""
    image, package = compile_contract(tmp_path, HEAD + POSTED, python=True)
    monkeypatch.syspath_prepend(tmp_path)
    name = f"{package}.reviews_pb2"
    assert load_contracts([name]) == {f"{package}.ReviewPosted"}
    with pytest.raises(ContractError, match="its short name is that of"):
        load_contracts([name, str(image)])


REFUSED = {
    "no event": ("message Part { string name = 1; }", "no message begins with"),
    "meta elsewhere": (
        "message A { string x = 1; esper.leyline.v1.EventMeta meta = 2; }",
        "its meta has field number 2; it must be 1",
    ),
    "meta by another name": (
        "message A { esper.leyline.v1.EventMeta about = 1; }",
        "which must be called `meta`",
    ),
    "another meta": (
        "message EventMeta { string id = 1; } message A { EventMeta meta = 1; }",
        "its field meta = 1 is no esper.leyline.v1.EventMeta but acme",
    ),
    "many metas": ("message A { repeated esper.leyline.v1.EventMeta meta = 1; }", "must be a plain field"),
    "one of many": (
        "message A { oneof which { esper.leyline.v1.EventMeta meta = 1; string b = 2; } }",
        "must be a plain field",
    ),
    "a tree": (
        POSTED + "message A { esper.leyline.v1.EventMeta meta = 1; B b = 2; } message B { repeated A a = 1; }",
        "A holds itself",
    ),
    "a shipped name": ("message FieldReport { esper.leyline.v1.EventMeta meta = 1; }", "esper.leyline.v1.FieldReport"),
    "a shipped name to SQL": ("message FieldREPORT { esper.leyline.v1.EventMeta meta = 1; }", "give it another"),
}


@pytest.mark.parametrize("what", sorted(REFUSED))
def test_what_breaks_a_rule_is_refused(tmp_path: Path, what: str) -> None:
    """Goal: clear errors, nothing half loaded. Method: one breach after the other, real files."""
    body, words = REFUSED[what]
    image, _ = compile_contract(tmp_path, HEAD + body)
    with pytest.raises(ContractError, match=words.replace("(", r"\(")):
        load_contracts([str(image)])
    assert set(EVENT_TYPES) == SHIPPED_TYPES


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    """Goal: each error names entry and cause. Method: missing, no set, proto2, no package, ours, no such module."""
    nonsense, empty = tmp_path / "nonsense.binpb", tmp_path / "empty.binpb"
    nonsense.write_bytes(b"\xff\xff")
    empty.write_bytes(b"")
    old, _ = compile_contract(tmp_path, HEAD.replace("proto3", "proto2") + "message A { optional " + META + " }")
    ours, _ = compile_contract(tmp_path, HEAD + POSTED, package="esper.acme")
    bare, _ = compile_contract(tmp_path, HEAD.replace("package {package};", "") + "message A { " + META + " }")
    for entry, words in {
        str(tmp_path / "missing.binpb"): "cannot be read: No such file",
        str(nonsense): "it is no FileDescriptorSet",
        str(empty): "it has no event",
        str(old): "it does not say",
        str(ours): "belongs to others",
        str(bare): "it has no package",
        "no_such_module_anywhere": "cannot be imported: No module named",
        "json": "no generated events, no VERSIONS and no UPCASTERS",
    }.items():
        with pytest.raises(ContractError, match=words) as caught:
            load_contracts([entry])
        assert caught.value.what.startswith(f"contract {entry}")
    with pytest.raises(SettingsError, match=r"setting ESPER_CONTRACTS, contract json: .* docs/contracts.md"):
        load_own_contracts(Settings(_env_file=None, contracts="json"))  # type: ignore[call-arg]  # pydantic-settings


def test_two_contracts_may_not_clash(tmp_path: Path) -> None:
    """Goal: a name means one thing. Method: one short name twice, at once and after, and a file of other content."""
    one, first = compile_contract(tmp_path, HEAD + POSTED)
    other, _ = compile_contract(tmp_path, HEAD + POSTED.replace("ReviewPosted", "Reviewposted"))
    with pytest.raises(ContractError, match=rf"its short name is that of {first}.ReviewPosted of "):
        load_contracts([str(one), str(other)])
    assert load_contracts([str(one)]) == {f"{first}.ReviewPosted"}
    with pytest.raises(ContractError, match="which is known already"):
        load_contracts([str(other)])
    unload_contracts()
    changed, _ = compile_contract(tmp_path, HEAD + POSTED.replace("stars", "points"), package=first)
    with pytest.raises(ContractError, match="duplicate"):
        load_contracts([str(changed)])


def test_what_a_set_imports_must_be_in_it(tmp_path: Path) -> None:
    """Goal: the error says how. Method: import a well-known file that nobody else does, with and without imports."""
    text = HEAD + 'import "google/protobuf/type.proto";\n'
    text += "message TypeSeen { esper.leyline.v1.EventMeta meta = 1; google.protobuf.Type type = 2; }"
    image, _ = compile_contract(tmp_path, text)
    with pytest.raises(ContractError, match="--include_imports"):
        load_contracts([str(image)])
    image, package = compile_contract(tmp_path, text, imports=True)
    assert load_contracts([str(image)]) == {f"{package}.TypeSeen"}
    text = HEAD + STRUCT + "message Noted { esper.leyline.v1.EventMeta meta = 1; google.protobuf.Struct all = 2; }"
    image, package = compile_contract(tmp_path, text, imports=True)
    assert load_contracts([str(image)]) == {f"{package}.Noted"}


def test_parts_may_be_anybody_s(tmp_path: Path) -> None:
    """Goal: common files may come along. Method: a set with a proto2 file, and an event with a part of it."""
    package = new_package()
    options = tmp_path / "common" / package / "options.proto"
    options.parent.mkdir(parents=True)
    options.write_text(f'syntax = "proto2"; package common.{package}; message Money {{ optional int64 cents = 1; }}')
    text = HEAD + f'import "common/{package}/options.proto";\n' + POSTED
    image, _ = compile_contract(tmp_path, text, package=package, imports=True)
    assert load_contracts([str(image)]) == {f"{package}.ReviewPosted"}
    priced = f"message Priced {{ {META} common.{package}.Money price = 2; }}"
    other, _ = compile_contract(tmp_path, text.replace(POSTED, priced), imports=True)
    with pytest.raises(ContractError, match=r"Money stands in .*options\.proto, which does not say"):
        load_contracts([str(other)])


def _seen_elsewhere(settings: Settings) -> tuple[bool, list[str]]:
    before = set(EVENT_TYPES) == SHIPPED_TYPES
    return before, sorted(load_own_contracts(settings))


def test_a_spawned_process_loads_them_from_its_settings(tmp_path: Path) -> None:
    """Goal: children know what their parent does. Method: hand the settings to a process that was spawned."""
    image, package = compile_contract(tmp_path, HEAD + POSTED)
    settings = Settings(_env_file=None, contracts=str(image))  # type: ignore[call-arg]  # pydantic-settings takes it
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_seen_elsewhere, (settings,)) == (True, [f"{package}.ReviewPosted"])
