"""Conditions on the fields of events, `FIELD=VALUE`, checked against the contract before anything is read."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from esper.core.errors import UsageError
from esper.leyline import EVENT_TYPES, short_name

_INTEGERS: Final = frozenset(
    {
        FieldDescriptor.CPPTYPE_INT32,
        FieldDescriptor.CPPTYPE_INT64,
        FieldDescriptor.CPPTYPE_UINT32,
        FieldDescriptor.CPPTYPE_UINT64,
    }
)
_FLOATS: Final = frozenset({FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE})
_BOOLEANS: Final = {"true": True, "false": False}
_TIMESTAMP: Final = "google.protobuf.Timestamp"
#: Names that an error lists before it says "and more".
_NAMES_SHOWN: Final = 40


class _Unfit(Exception):
    """A condition does not fit one type; `path` tells a wrong path from a wrong value."""

    def __init__(self, cause: str, *, path: bool) -> None:
        super().__init__(cause)
        self.cause = cause
        self.path = path


@dataclass(frozen=True)
class _Step:
    """One field of a path; `pick` is a map's key or a list's index, None takes all entries of a list."""

    field: FieldDescriptor
    pick: str | int | None = None


@dataclass(frozen=True)
class _Test:
    """Some value that the steps lead to equals `wanted`."""

    steps: tuple[_Step, ...]
    wanted: object

    def holds(self, message: Message) -> bool:
        return any(found == self.wanted for found in _leaves(message, self.steps))


class Where:
    """A conjunction of conditions, compiled for each event type that has all the fields they name."""

    def __init__(self, tests: Mapping[str, tuple[_Test, ...]]) -> None:
        self._tests = tests

    @classmethod
    def compile(cls, conditions: Sequence[str], types: Iterable[str]) -> Where:
        """Return the conditions, each `FIELD=VALUE`, for the types (full names) that may occur.

        FIELD is a path of the contract's field names joined by dots: `seed_operation.operation`, `metrics.KEY` for
        a map, `seed_states.stage` for any entry of a list and `seed_states.0.stage` for one. A value is written as
        `esper events cat` shows it. A field without presence compares by its default when it is not set; an
        absent one equals nothing.

        Raises:
            UsageError: no type has such a field, or the value is none of the field's kind; both are named.
        """
        pairs = [_split(condition) for condition in conditions]
        names = sorted(types)
        for path, value in pairs:
            _refuse_unfit(path, value, names)
        fitting = {name: tests for name in names if (tests := _fit_all(name, pairs)) is not None}
        if not fitting:
            raise UsageError(
                f"no event has all of {', '.join(path for path, _ in pairs)}",
                cause=f"each stands in another type of {_listed(map(short_name, names))}",
                next_step="Ask for one type at a time",
            )
        return cls(fitting)

    @property
    def types(self) -> frozenset[str]:
        """Full names of the types that can meet the conditions."""
        return frozenset(self._tests)

    def __call__(self, message: Message) -> bool:
        """Return whether `message` meets every condition."""
        tests = self._tests.get(message.DESCRIPTOR.full_name)
        return tests is not None and all(test.holds(message) for test in tests)


def _split(condition: str) -> tuple[str, str]:
    path, equals, value = condition.partition("=")
    if not equals or not path:
        raise UsageError(
            f"the condition {condition!r} cannot be used",
            cause="it is not of the form FIELD=VALUE",
            next_step="Write for example result=COMMAND_RESULT_APPLIED",
        )
    return path, value


def _refuse_unfit(path: str, value: str, names: Sequence[str]) -> None:
    """Raise the most telling error for a condition that fits no type at all."""
    problems = []
    for name in names:
        try:
            _fit(_descriptor(name), path, value)
        except _Unfit as unfit:
            problems.append(unfit)
        else:
            return
    of_value = next((unfit for unfit in problems if not unfit.path), None)
    if of_value is not None:
        raise UsageError(f"{value!r} is no value of field {path!r}", cause=of_value.cause)
    cause = problems[0].cause if len(names) == 1 else f"none of {_listed(map(short_name, names))} has it"
    raise UsageError(f"there is no field {path!r}", cause=cause, next_step="`esper events cat` shows an event's fields")


def _fit_all(name: str, pairs: Sequence[tuple[str, str]]) -> tuple[_Test, ...] | None:
    try:
        return tuple(_fit(_descriptor(name), path, value) for path, value in pairs)
    except _Unfit:
        return None


def _descriptor(name: str) -> Descriptor:
    # The stubs name two descriptor classes; at run time there is one.
    return cast("Descriptor", EVENT_TYPES[name].DESCRIPTOR)


def _fit(descriptor: Descriptor, path: str, value: str) -> _Test:
    steps = tuple(_steps(descriptor, path.split("."), path))
    last = steps[-1]
    leaf = _value_field(last.field) if _is_map(last.field) else last.field
    return _Test(steps, _literal(leaf, value))


def _steps(descriptor: Descriptor, words: list[str], path: str) -> Iterator[_Step]:
    """Yield the steps of a path down to a field that holds a plain value."""
    field = descriptor.fields_by_name.get(words[0])
    if field is None:
        raise _Unfit(f"{descriptor.name} has {_listed(descriptor.fields_by_name)}", path=True)
    step, rest = _step(field, words[1:])
    yield step
    inner = _value_field(field) if _is_map(field) else field
    if inner.message_type is None or inner.message_type.full_name == _TIMESTAMP:
        if rest:
            raise _Unfit(f"{field.name} has no fields of its own", path=True)
        return
    if not rest:
        named = _listed(inner.message_type.fields_by_name)
        raise _Unfit(f"{field.name} is a {inner.message_type.name}; name one of its fields: {named}", path=True)
    yield from _steps(inner.message_type, rest, path)


def _step(field: FieldDescriptor, rest: list[str]) -> tuple[_Step, list[str]]:
    """Return a field's step and the words behind it; maps take a key, lists may take an index."""
    if _is_map(field):
        if not rest:
            raise _Unfit(f"{field.name} is a map; name one of its keys: {field.name}.KEY", path=True)
        if _value_field(field).message_type is not None:
            return _Step(field, rest[0]), rest[1:]
        # A key may hold dots itself, as names of metrics do.
        return _Step(field, ".".join(rest)), []
    if field.is_repeated and rest and rest[0].isdecimal():
        return _Step(field, int(rest[0])), rest[1:]
    return _Step(field), rest


def _leaves(message: Any, steps: tuple[_Step, ...]) -> Iterator[object]:  # noqa: ANN401 - any message or sub-message
    """Yield every value that the steps lead to; none where something on the way is absent."""
    step, rest = steps[0], steps[1:]
    for found in _entries(message, step):
        if rest:
            yield from _leaves(found, rest)
        else:
            yield found


def _entries(message: Any, step: _Step) -> list[Any]:  # noqa: ANN401 - as above
    field = step.field
    if not field.is_repeated:
        return [getattr(message, field.name)] if not field.has_presence or message.HasField(field.name) else []
    content = getattr(message, field.name)
    if _is_map(field):
        # Asked by `in` first: a map of messages would make the entry that is looked up.
        return [content[step.pick]] if step.pick in content else []
    if step.pick is None:
        return list(content)
    assert isinstance(step.pick, int), "a list is picked from by index"
    return [content[step.pick]] if step.pick < len(content) else []


def _literal(field: FieldDescriptor, text: str) -> object:
    """Return `text` as a value of the field's kind."""
    kind = field.cpp_type
    try:
        if kind in _INTEGERS:
            return int(text)
        if kind in _FLOATS:
            return float(text)
        if kind == FieldDescriptor.CPPTYPE_MESSAGE:
            moment = Timestamp()
            moment.FromJsonString(text)
            return moment
        if field.type == FieldDescriptor.TYPE_BYTES:
            return base64.b64decode(text.encode(), validate=True)
    except (ValueError, binascii.Error) as error:
        raise _Unfit(str(error), path=False) from error
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        if text not in _BOOLEANS:
            raise _Unfit("it is true or false", path=False)
        return _BOOLEANS[text]
    return _enum_number(field, text) if kind == FieldDescriptor.CPPTYPE_ENUM else text


def _enum_number(field: FieldDescriptor, text: str) -> int:
    assert field.enum_type is not None, "an enum field has an enum"
    value = field.enum_type.values_by_name.get(text)
    if value is None:
        raise _Unfit(f"{field.enum_type.name} has {_listed(field.enum_type.values_by_name)}", path=False)
    return value.number


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _value_field(field: FieldDescriptor) -> FieldDescriptor:
    assert field.message_type is not None, "a map's entry is a message"
    return field.message_type.fields_by_name["value"]


def _listed(names: Iterable[str]) -> str:
    known = list(names)
    more = "" if len(known) <= _NAMES_SHOWN else " and more"
    return ", ".join(known[:_NAMES_SHOWN]) + more
