"""Topics as files: the shipped ones fit together, and a bad one is named with its field."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from esper.core.errors import SettingsError, UsageError
from esper.core.settings import load_settings
from esper.leyline import EVENT_TYPES, full_name
from esper.oona import TopicCatalog, shipped_topics_dir

SHIPPED = {
    "run-requests": (8, ("TrainingRunRequested",)),
    "runs": (
        8,
        (
            "TrainingRunClaimed",
            "TrainingRunStarted",
            "CommandOutcome",
            "CheckpointSaved",
            "RunRolledBack",
            "TrainingRunFinished",
            "TrainingRunFailed",
        ),
    ),
    "system-state": (8, ("SystemStatePacket",)),
    "adaptation-commands": (8, ("AdaptationCommand",)),
    "decisions": (8, ("DecisionMade",)),
    "seed-events": (8, ("SeedStageChanged", "GateEvaluated", "SeedMoveRejected", "KernelQuarantined", "SeedTuned")),
    "field-reports": (8, ("FieldReport",)),
    "blueprints": (1, ("BlueprintRegistered", "BlueprintApproved", "BlueprintWithdrawn")),
    "kernel-catalog": (
        1,
        (
            "KernelCatalogUpdate",
            "CompileStarted",
            "CompileFinished",
            "CompileFailed",
            "KernelPartCompiled",
            "BenchmarkReport",
        ),
    ),
    "kernel-store": (1, ("KernelIntegrityFailed", "KernelEvicted")),
    "kernel-requests": (1, ("KernelPrefetchRequest", "CompileRequested")),
    "kernel-replies": (1, ("KernelArtifactReady", "KernelArtifactError")),
    "policy": (1, ("PolicyUpdate", "PolicyValidated", "PolicyPromoted", "PolicyRolledBack")),
    "telemetry": (1, ("TelemetryPacket",)),
    "dead-letters": (1, ("DeadLetter", "Redriven", "Discarded")),
    "operations": (1, ("KeyRotated", "KeyRevoked", "LogCheckpoint", "LogRestored", "ProducerStarted")),
    "emergency": (1, ("EmergencySignal",)),
}

GOOD = """
name: telemetry
why: test
key: source
partitions: 1
retention_ms: 1000
truth: false
messages: [TelemetryPacket]
writers: [all]
readers: [all]
"""


def catalog() -> TopicCatalog:
    """Return the shipped catalogue."""
    return TopicCatalog.load(load_settings(_env_file=None))


def copy_with(folder: Path, text: str, *, name: str = "telemetry.yaml") -> Path:
    """Copy the shipped files to `folder` and put `text` in the place of one."""
    shutil.copytree(shipped_topics_dir(), folder)
    (folder / name).write_text(text)
    return folder


def test_shipped_topics_are_the_agreed_ones() -> None:
    """Partition counts and types cannot change later: compare the shipped files with the agreed table."""
    assert {spec.name: (spec.partitions, spec.messages) for spec in catalog()} == SHIPPED


def test_every_event_type_belongs_to_exactly_one_topic() -> None:
    """An event has one place: count the topics that carry each type of the contract."""
    topics = catalog()
    for type_name in EVENT_TYPES:
        assert [spec.name for spec in topics if type_name in spec.types] == [topics.topic_of(type_name).name]


def test_truth_is_kept_for_ever() -> None:
    """Only telemetry may expire: look at retention and truth of every shipped file."""
    assert [spec.name for spec in catalog() if not spec.truth] == ["telemetry"]
    assert all((spec.retention_ms == -1) == spec.truth for spec in catalog())


@pytest.mark.parametrize(
    ("topic", "message", "source", "allowed"),
    [
        ("adaptation-commands", "AdaptationCommand", "tamiyo", True),
        ("adaptation-commands", "AdaptationCommand", "cli", True),
        ("adaptation-commands", "AdaptationCommand", "tolaria", False),
        ("adaptation-commands", "SystemStatePacket", "tamiyo", False),
        ("system-state", "SystemStatePacket", "tolaria", True),
        ("telemetry", "TelemetryPacket", "nissa", True),
        ("dead-letters", "DeadLetter", "kasmina", True),
        ("no-such-topic", "DeadLetter", "kasmina", False),
    ],
)
def test_who_may_write_what_where(topic: str, message: str, source: str, allowed: bool) -> None:
    """The files decide who writes what: ask the catalogue for pairs that are and are not in them."""
    assert catalog().allowed(topic, full_name(message), source) is allowed


def test_unknown_names_are_usage_errors() -> None:
    """A misspelt topic or type is told with the names there are: ask for both."""
    with pytest.raises(UsageError, match=r"no topic called 'run'.*adaptation-commands.*`esper topics describe`"):
        catalog()["run"]
    with pytest.raises(UsageError, match="`esper events cat runs --key run-92955d72d813`"):
        catalog()["run-92955d72d813"]
    with pytest.raises(UsageError, match=r"no topic carries a\.b\.C"):
        catalog().topic_of("a.b.C")


@pytest.mark.parametrize(
    ("text", "field"),
    [
        (GOOD.replace("partitions: 1", "partitions: many"), "partitions"),
        (GOOD.replace("partitions: 1", "partitions: 0"), "partitions"),
        (GOOD.replace("retention_ms: 1000", "retention_ms: -2"), "retention_ms"),
        (GOOD.replace("retention_ms: 1000", "retention_ms: 0"), "retention_ms"),
        (GOOD.replace("why: test", "whi: test"), "why"),
        (GOOD + "colour: red\n", "colour"),
        (GOOD.replace("[TelemetryPacket]", "[TelemetryPaket]"), "messages"),
        (GOOD.replace("[TelemetryPacket]", "[TelemetryPacket, TelemetryPacket]"), "messages"),
        (GOOD.replace("[TelemetryPacket]", "[TelemetryPacket, DeadLetter]"), "messages"),
        (GOOD.replace("name: telemetry", "name: Telemetry"), "name"),
        (GOOD.replace("name: telemetry", "name: other"), "name"),
        (GOOD + "cleanup_policy: burn\n", "cleanup_policy"),
    ],
)
def test_bad_field_is_named_with_its_file(tmp_path: Path, text: str, field: str) -> None:
    """A person must find the fault at once: put one bad file among good ones and read the message."""
    folder = copy_with(tmp_path / "topics", text)
    with pytest.raises(SettingsError, match=rf"telemetry\.yaml, field {field}: ") as caught:
        TopicCatalog.load(load_settings(_env_file=None, topics_dir=folder))
    assert caught.value.next_step


@pytest.mark.parametrize("text", ["name: [unclosed", "- a list", "\x00", ""])
def test_unreadable_file_is_named(tmp_path: Path, text: str) -> None:
    """No YAML is a settings error, no traceback: load broken texts."""
    folder = copy_with(tmp_path / "topics", text)
    with pytest.raises(SettingsError, match=r"topic file .*telemetry\.yaml cannot be (read|used)"):
        TopicCatalog.load(load_settings(_env_file=None, topics_dir=folder))


def test_missing_files_are_told(tmp_path: Path) -> None:
    """A folder without files, or without one type's topic, cannot serve: load both."""
    with pytest.raises(SettingsError, match="no topic files"):
        TopicCatalog.load(load_settings(_env_file=None, topics_dir=tmp_path / "absent"))
    folder = copy_with(tmp_path / "topics", GOOD)
    (folder / "runs.yaml").unlink()
    with pytest.raises(SettingsError, match="carry no CheckpointSaved, CommandOutcome"):
        TopicCatalog.load(load_settings(_env_file=None, topics_dir=folder))
