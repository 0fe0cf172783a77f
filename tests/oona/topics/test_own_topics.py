"""Topics of users beside the shipped ones: which are taken, which refused, and who may write what then."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from esper.core.errors import SettingsError, UsageError
from esper.core.settings import Settings
from esper.leyline import full_name
from esper.leyline.contracts import unload_contracts
from esper.oona import TopicCatalog, shipped_topics_dir
from esper.oona.topics._acls import grants, principals
from tests.leyline.users import HEAD, POSTED, compile_contract

TEXT = """name: acme-reviews
why: What customers say.
key: product_id
partitions: 2
retention_ms: -1
messages: [ReviewPosted]
writers: [acme, cli]
readers: [projection, cli, oona]
"""


@pytest.fixture(autouse=True)
def _only_shipped() -> Iterator[None]:
    yield
    unload_contracts()


@pytest.fixture
def contract(tmp_path: Path) -> str:
    """A user's contract of one event and a part."""
    return str(compile_contract(tmp_path, HEAD + POSTED + "message Part { string name = 1; }")[0])


def topics(folder: Path, text: str = TEXT, *, name: str = "acme-reviews") -> Path:
    """Write a folder with one topic file."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(text)
    return folder


def load(**settings: Any) -> TopicCatalog:
    """Return the catalogue of settings."""
    return TopicCatalog.load(Settings(_env_file=None, **settings))


def test_own_topics_stand_beside_the_shipped(tmp_path: Path, contract: str) -> None:
    """Goal: nothing of ours goes away. Method: one contract and one folder; every shipped topic as it was."""
    shipped, both = load(), load(contracts=contract, extra_topics_dirs=(topics(tmp_path / "own"),))
    assert {spec.name for spec in both} == {spec.name for spec in shipped} | {"acme-reviews"}
    name = full_name("ReviewPosted")
    assert both.topic_of(name).name == "acme-reviews"
    assert both.allowed("acme-reviews", name, "acme")
    assert both.allowed("acme-reviews", name, "cli")
    assert not both.allowed("acme-reviews", name, "tolaria")
    assert not both.allowed("runs", name, "acme")
    with pytest.raises(UsageError, match="no topic carries"):
        shipped.topic_of(name)


def test_a_source_of_users_may_say_what_every_source_must(tmp_path: Path, contract: str) -> None:
    """Goal: own members live like ours, and get nothing else. Method: every topic, with and without."""
    shipped, both = load(), load(contracts=contract, extra_topics_dirs=(topics(tmp_path / "own"),))
    may = {spec.name for spec in both if spec.admits("acme")}
    assert may == {"acme-reviews", "dead-letters", "emergency", "operations", "telemetry"}
    assert not any(spec.admits("acme") for spec in shipped)
    assert {spec.name for spec in shipped if spec.admits("cli")} | {"acme-reviews"} == {
        spec.name for spec in both if spec.admits("cli")
    }
    assert set(principals(both)) - set(principals(shipped)) == {"acme"}
    written = {
        one.name for one in grants(both) if (one.principal, one.operation, one.resource) == ("acme", "WRITE", "topic")
    }
    assert written == may


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("ReviewPosted", "Part"), "no event of the contract is called Part; an event of your own begins with"),
        (("ReviewPosted", "FieldReport"), "FieldReport belongs to topic field-reports already"),
        (("[ReviewPosted]", "[ReviewPosted, ReviewPosted]"), "a message is named twice"),
        (("name: acme-reviews", "name: other"), "the file is called acme-reviews.yaml"),
    ],
)
def test_a_file_with_a_fault_is_refused(tmp_path: Path, contract: str, change: tuple[str, str], words: str) -> None:
    """Goal: the error names the file. Method: one fault after the other."""
    own = topics(tmp_path / "own", TEXT.replace(*change))
    with pytest.raises(SettingsError, match=words) as caught:
        load(contracts=contract, extra_topics_dirs=(own,))
    assert str(own) in str(caught.value)


def test_folders_must_fit_together(tmp_path: Path, contract: str) -> None:
    """Goal: no topic twice, no event without one. Method: one name in two folders, an empty one, none at all."""
    own = topics(tmp_path / "own")
    other = topics(tmp_path / "other", TEXT.replace("ReviewPosted", "TelemetryPacket"))
    with pytest.raises(SettingsError, match=r"has a topic of that name already"):
        load(contracts=contract, extra_topics_dirs=(own, other))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingsError, match="Set ESPER_EXTRA_TOPICS_DIRS"):
        load(contracts=contract, extra_topics_dirs=(own, tmp_path / "empty"))
    with pytest.raises(SettingsError, match="carry no ReviewPosted"):
        load(contracts=contract)
    unload_contracts()
    with pytest.raises(SettingsError, match="no event of the contract is called ReviewPosted"):
        load(extra_topics_dirs=(own,))


def test_the_shipped_may_be_replaced_as_before(tmp_path: Path, contract: str) -> None:
    """Goal: both settings work together. Method: copied files, with the own topic among or beside them."""
    copy = tmp_path / "all"
    shutil.copytree(shipped_topics_dir(), copy)
    beside = load(contracts=contract, topics_dir=copy, extra_topics_dirs=(topics(tmp_path / "own"),))
    assert "acme-reviews" in beside
    topics(copy)
    among = load(contracts=contract, topics_dir=copy)
    assert {spec.name for spec in among} == {spec.name for spec in beside}
