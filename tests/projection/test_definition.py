"""Tests of projections as folders: what is read, what is refused, and what their version depends on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from esper.core.errors import SettingsError, UsageError
from esper.core.settings import Settings
from esper.projection import load_definitions
from esper.projection.definitions._definition import (
    FILES,
    choose,
    folder_version,
    read_definition,
    shipped_projections_dir,
)
from tests.projection.log import TOPICS, short_types

Change = Callable[[str], str]
SHIPPED = ["dead_letters", "field_reports", "policies", "runs", "telemetry", "urza_catalog"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the projection field_reports, to be spoilt."""
    return Path(shutil.copytree(shipped_projections_dir() / "field_reports", tmp_path / "field_reports"))


def _replacing(old: str, new: str) -> Change:
    return lambda text: text.replace(old, new)


def _edit(folder: Path, file: str, change: Change) -> None:
    path = folder / file
    path.write_text(change(path.read_text()))


def test_the_shipped_projections_are_sound() -> None:
    """All shipped folders load: names, and that each event of their topics' families is taken where it is promised."""
    definitions = load_definitions(Settings(_env_file=None), TOPICS)
    assert [one.name for one in definitions] == SHIPPED
    assert {"runs", "epochs", "seeds", "gates"} <= set(definitions[SHIPPED.index("runs")].view_names)
    taken = {name.rsplit(".", 1)[1] for one in definitions for name in one.types}
    assert taken <= set(short_types())


def test_the_version_is_the_folder(folder: Path) -> None:
    """One byte in any file gives another version, a file beside them gives none: hash before and after."""
    contents = {name: (folder / name).read_bytes() for name in FILES}
    before = folder_version(contents)
    for name in FILES:
        assert folder_version({**contents, name: contents[name] + b"\n"}) != before
    (folder / "README.md").write_text("notes")
    assert read_definition(folder, TOPICS).version == before


@pytest.mark.parametrize(
    ("file", "old", "new", "complaint"),
    [
        ("projection.yaml", "name: field_reports", "name: reports", "not the folder's"),
        ("projection.yaml", "[FieldReport]", "[FieldRapport]", "no event of the contract"),
        ("projection.yaml", "topics: [field-reports]", "topics: [runs]", "must read exactly"),
        ("projection.yaml", "why:", "because:", "why"),
        ("projection.yaml", "name:", "name: [", "files"),
        ("schema.sql", "record_offset bigint", "record_offset integer", "needs a column record_offset BIGINT"),
        ("schema.sql", "report_id varchar", "report_id varchar primary key", "a key or an index"),
        ("schema.sql", "create table", "create temp table", "only `create table"),
        ("schema.sql", "report_id varchar", "report_id varchat", "SQL"),
        ("views.sql", "create view", "create or replace view", "only `create view"),
        ("views.sql", "report_id", "rapport_id", "SQL"),
        ("fold.sql", "insert into field_report_facts by name", "insert into field_report_facts", "by name"),
        ("fold.sql", "from FieldReport", "from FieldReport, runs", "not from one message"),
        ("fold.sql", "from FieldReport", "from TrainingRunFailed", "projection.yaml names"),
        ("fold.sql", "field_report_facts", "reports", "the tables are"),
        ("fold.sql", "meta.event_id", "max(meta.event_id) as event_id", "max is not a pure function"),
        ("fold.sql", "meta.event_id", "now() as event_id", "now is not a pure function"),
        ("fold.sql", "meta.event_id", "current_timestamp as event_id", "reads the clock"),
        ("fold.sql", "meta.event_id", "random() as event_id", "random is not a pure function"),
        ("fold.sql", "meta.event_id", "row_number() over () as event_id", "row_number is not a pure function"),
        ("fold.sql", "from FieldReport", "from FieldReport limit 5", "depends on the batch"),
        ("fold.sql", "from FieldReport", "from FieldReport order by 1", "depends on the batch"),
        ("fold.sql", "from FieldReport", "from FieldReport join FieldReport b using (epoch)", "more than once"),
        ("fold.sql", "from FieldReport", "from FieldReport where exists(select 1 from FieldReport)", "more than once"),
        ("fold.sql", "from FieldReport", "from FieldReport asof join unnest([1]) u(v) on epoch >= v", "beside each"),
        ("fold.sql", "from FieldReport", "from FieldReport positional join unnest([1]) u(v)", "beside each other"),
        ("fold.sql", "from FieldReport", "from FieldReport union select * from FieldReport", "beside each other"),
        ("fold.sql", "from FieldReport", "from unnest([1]) where exists(select 1 from FieldReport)", "in a subquery"),
        ("fold.sql", "select topic_partition", "select distinct topic_partition", "depends on the batch"),
        ("fold.sql", "from FieldReport", "from read_text('/etc/passwd')", "not from one message"),
    ],
)
def test_a_wrong_folder_is_refused(folder: Path, file: str, old: str, new: str, complaint: str) -> None:
    """Every rule of the format is enforced when it is read: one change to a sound folder, one named complaint."""
    assert old in (folder / file).read_text()
    _edit(folder, file, lambda text: text.replace(old, new, 1))
    with pytest.raises(SettingsError) as caught:
        read_definition(folder, TOPICS)
    assert complaint in str(caught.value)
    assert "field_reports" in str(caught.value)


def test_a_missing_file_is_named(folder: Path) -> None:
    """A folder without one of its files is refused with the file's name."""
    (folder / "views.sql").unlink()
    with pytest.raises(SettingsError, match=r"views\.sql"):
        read_definition(folder, TOPICS)


def test_a_name_means_one_thing(folder: Path, tmp_path: Path) -> None:
    """Two projections with one view name are refused at the start: load a copy under another name."""
    other = Path(shutil.copytree(folder, tmp_path / "reports"))
    _edit(other, "projection.yaml", lambda text: text.replace("name: field_reports", "name: reports"))
    with pytest.raises(SettingsError, match="both define 'field_report_facts'"):
        load_definitions(Settings(_env_file=None, projections_dir=tmp_path), TOPICS)


def test_own_projections_stand_beside_the_shipped(folder: Path, tmp_path: Path) -> None:
    """A user adds and replaces nothing: load a projection from a folder of his own, alone and with the shipped ones."""
    renamed = {"field_report": "report", "policy_outcomes": "own_outcomes", "view reward_parts": "view own_parts"}
    for file in FILES:
        for old, new in renamed.items():
            _edit(folder, file, _replacing(old, new))
    own = Path(shutil.move(folder, tmp_path / "own" / "reports"))
    both = load_definitions(Settings(_env_file=None, extra_projections_dirs=(own.parent,)), TOPICS)
    assert [one.name for one in both] == sorted([*SHIPPED, "reports"])


def test_one_name_is_one_projection(folder: Path) -> None:
    """Two folders of one name would share a file: give a copy of a shipped one as the user's own."""
    with pytest.raises(SettingsError, match=r"field_reports.*holds a projection of this name already"):
        load_definitions(Settings(_env_file=None, extra_projections_dirs=(folder.parent,)), TOPICS)


def test_an_empty_folder_and_an_unknown_name(tmp_path: Path) -> None:
    """What is not there is said so: a folder without projections, and a projection nobody defined."""
    with pytest.raises(SettingsError, match="no projections in"):
        load_definitions(Settings(_env_file=None, projections_dir=tmp_path), TOPICS)
    definitions = load_definitions(Settings(_env_file=None), TOPICS)
    with pytest.raises(UsageError, match="no projection 'nope'"):
        choose(definitions, ["nope"])
    assert choose(definitions, ["runs", "runs"]) == (definitions[SHIPPED.index("runs")],)
