"""Topics as files: which messages a topic carries, who writes it, how it is kept."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

import esper
from esper.core.contracts import load_own_contracts
from esper.core.errors import SettingsError, UsageError
from esper.core.settings import Settings
from esper.leyline import EVENT_TYPES, SHIPPED_TYPES, full_name, short_name

#: The word of a topic file that admits every writer (or reader).
ALL: Final = "all"
#: Retention of a topic that keeps everything.
KEEP: Final = -1
#: What every source must be able to say: that it was here, how it is, what it sets aside, that something is wrong.
_OF_EVERY_SOURCE: Final = frozenset(
    map(full_name, ("ProducerStarted", "TelemetryPacket", "DeadLetter", "EmergencySignal"))
)
#: What somebody gives who takes the id of a run for the name of a topic.
_RUN_ID: Final = re.compile(r"run-[0-9a-f]{12}")
_NEXT_STEP: Final = "Correct the file; the files in topics/ show every field"


class TopicSpec(BaseModel):
    """One topic as its file states it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9-]{0,63}$", description="Name of the topic and of its file.")
    why: str = Field(min_length=1, description="What the topic is for.")
    key: str = Field(min_length=1, description="What the record key is.")
    partitions: int = Field(ge=1, le=1024, description="Number of partitions; never changes.")
    retention_ms: int = Field(ge=KEEP, description="How long records are kept; -1: for ever.")
    retention_bytes: int = Field(
        default=KEEP, ge=KEEP, description="About how many bytes each partition keeps; -1: all of them."
    )
    truth: bool = Field(default=True, description="Whether the log is the only record of these events.")
    cleanup_policy: str = Field(default="delete", pattern=r"^(delete|compact|compact,delete|delete,compact)$")
    messages: tuple[str, ...] = Field(min_length=1, description="Short names of the event types it carries.")
    writers: tuple[str, ...] = Field(min_length=1, description="Sources that may write it; `all` admits every one.")
    readers: tuple[str, ...] = Field(min_length=1, description="Subsystems that read it.")

    @field_validator("messages")
    @classmethod
    def _known_messages(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in names if full_name(name) not in EVENT_TYPES]
        if unknown:
            raise ValueError(
                f"no event of the contract is called {', '.join(unknown)}; an event of your own begins with "
                "`esper.leyline.v1.EventMeta meta = 1`, and ESPER_CONTRACTS names its file"
            )
        if len(set(names)) != len(names):
            raise ValueError("a message is named twice")
        return names

    @field_validator("retention_ms", "retention_bytes")
    @classmethod
    def _some_retention(cls, limit: int) -> int:
        if limit == 0:
            raise ValueError("0 would delete everything at once; -1 keeps everything")
        return limit

    @property
    def expires(self) -> bool:
        """Whether the housekeeper deletes its records some day."""
        return not self.truth and (self.retention_ms != KEEP or self.retention_bytes != KEEP)

    @property
    def types(self) -> frozenset[str]:
        """Full names of the event types that the topic carries."""
        return frozenset(full_name(name) for name in self.messages)

    def admits(self, source: str) -> bool:
        """Return whether `source` may write this topic."""
        return ALL in self.writers or source in self.writers


class TopicCatalog:
    """All topics of the system; every event type belongs to exactly one of them."""

    def __init__(self, specs: Sequence[TopicSpec]) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self._by_type = {type_name: spec for spec in specs for type_name in spec.types}
        self._grants = {(spec.name, type_name): spec for spec in specs for type_name in spec.types}

    @classmethod
    def load(cls, settings: Settings) -> TopicCatalog:
        """Read the topic files that `settings` names, or the shipped ones, and those of users beside them.

        The contracts that `settings` names are loaded first. Sources that write topics of users may write what every
        source must be able to say as well: dead letters, telemetry, emergencies, where its last life ended.

        Raises:
            SettingsError: a contract, file or field cannot be used; the message names it.
        """
        own = load_own_contracts(settings)
        base = settings.topics_dir or shipped_topics_dir()
        paths = [*_files_of(base, "ESPER_TOPICS_DIR")]
        for folder in settings.extra_topics_dirs:
            paths += _files_of(folder, "ESPER_EXTRA_TOPICS_DIRS")
        specs = {path: read_topic_file(path) for path in paths}
        _check_each_name_once(specs)
        _check_each_message_once(specs, wanted=SHIPPED_TYPES | own)
        sources = {name for path, spec in specs.items() if path.parent != base for name in spec.writers} - {ALL}
        return cls([_admitting(spec, sources) for spec in specs.values()])

    def __getitem__(self, name: str) -> TopicSpec:
        spec = self._specs.get(name)
        if spec is None:
            raise UsageError(
                f"there is no topic called {name!r}",
                cause=f"the topic files name {', '.join(sorted(self._specs))}",
                next_step=_where_to_look(name),
            )
        return spec

    def __contains__(self, name: object) -> bool:
        return name in self._specs

    def __iter__(self) -> Iterator[TopicSpec]:
        return iter(self._specs.values())

    def __len__(self) -> int:
        return len(self._specs)

    def topic_of(self, type_full_name: str) -> TopicSpec:
        """Return the one topic that carries a type.

        Raises:
            UsageError: no topic carries it.
        """
        spec = self._by_type.get(type_full_name)
        if spec is None:
            raise UsageError(
                f"no topic carries {type_full_name}",
                cause="its name stands in no topic file",
                next_step="Add it to the `messages` of one file in topics/",
            )
        return spec

    def allowed(self, topic: str, type_full_name: str, source: str) -> bool:
        """Return whether `topic` takes records of this type from `source`."""
        spec = self._grants.get((topic, type_full_name))
        return spec is not None and spec.admits(source)

    def partitions(self, topic: str) -> list[tuple[str, int]]:
        """Return every (topic, partition) of `topic`."""
        return [(topic, partition) for partition in range(self[topic].partitions)]


def _where_to_look(name: str) -> str:
    if _RUN_ID.fullmatch(name):
        return f"a run is a key: `esper events cat runs --key {name}`; `esper topics describe` lists the topics"
    return "`esper topics describe` lists them"


def shipped_topics_dir() -> Path:
    """Return the folder of the topic files that belong to this installation."""
    checkout = Path(esper.__file__).resolve().parent.parent / "topics"
    return checkout if checkout.is_dir() else Path(sys.prefix) / "share" / "esper-grow" / "topics"


def read_topic_file(path: Path) -> TopicSpec:
    """Return the topic of one file.

    Raises:
        SettingsError: the file is unreadable, no YAML mapping, or a field of it is wrong.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        cause = " ".join(str(error).split())
        raise SettingsError(f"topic file {path} cannot be read", cause=cause, next_step=_NEXT_STEP) from error
    if not isinstance(content, dict):
        raise SettingsError(f"topic file {path} cannot be used", cause="it is no mapping", next_step=_NEXT_STEP)
    try:
        spec = TopicSpec.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise SettingsError(
            f"topic file {path}, field {field}", cause=str(first["msg"]), next_step=_NEXT_STEP
        ) from error
    if spec.name != path.stem:
        cause = f"it says {spec.name!r}, the file is called {path.name}"
        raise SettingsError(f"topic file {path}, field name", cause=cause, next_step=_NEXT_STEP)
    return spec


def _files_of(folder: Path, setting: str) -> list[Path]:
    paths = sorted(folder.glob("*.yaml"))
    if not paths:
        raise SettingsError(
            f"no topic files in {folder}",
            cause="the folder is missing or holds no *.yaml",
            next_step=f"Set {setting} to a folder with topic files, or unset it",
        )
    return paths


def _admitting(spec: TopicSpec, sources: Collection[str]) -> TopicSpec:
    """Return a topic that takes from the sources of users' topics what every source must be able to say."""
    new = tuple(sorted(name for name in sources if not spec.admits(name)))
    if not new or spec.types.isdisjoint(_OF_EVERY_SOURCE):
        return spec
    return spec.model_copy(update={"writers": (*spec.writers, *new)})


def _check_each_name_once(specs: Mapping[Path, TopicSpec]) -> None:
    """Refuse a topic that two folders have."""
    seen: dict[str, Path] = {}
    for path, spec in specs.items():
        if spec.name in seen:
            cause = f"{seen[spec.name]} has a topic of that name already"
            raise SettingsError(f"topic file {path}, field name", cause=cause, next_step="Give your topic another name")
        seen[spec.name] = path


def _check_each_message_once(specs: Mapping[Path, TopicSpec], *, wanted: Collection[str]) -> None:
    """Refuse a type that two topics carry, and a type of the contracts that none does."""
    owner: dict[str, str] = {}
    for path, spec in specs.items():
        for type_name in sorted(spec.types):
            if type_name in owner:
                raise SettingsError(
                    f"topic file {path}, field messages",
                    cause=f"{short_name(type_name)} belongs to topic {owner[type_name]} already",
                    next_step=_NEXT_STEP,
                )
            owner[type_name] = spec.name
    missing = sorted(short_name(name) for name in wanted if name not in owner)
    if missing:
        folders = ", ".join(dict.fromkeys(str(path.parent) for path in specs))
        raise SettingsError(
            f"the topic files in {folders} carry no {', '.join(missing)}",
            cause="every event of the contract belongs to exactly one topic",
            next_step="Add the message to one file; ESPER_EXTRA_TOPICS_DIRS names folders of your own topics",
        )
