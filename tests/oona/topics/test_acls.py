"""Grants follow from the topic files: computed from the YAML by hand here, without the code that generates them."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from esper.core.errors import SettingsError
from esper.core.settings import load_settings
from esper.oona import TopicCatalog, shipped_topics_dir
from esper.oona.topics._acls import Grant, grants, groups_of, may_describe, principal_of, principals
from esper.weatherlight import SUBSYSTEMS

FILES: dict[str, Any] = {path.stem: yaml.safe_load(path.read_text()) for path in shipped_topics_dir().glob("*.yaml")}
NAMED = {name for file in FILES.values() for name in file["writers"] + file["readers"]} - {"all"}


def catalog(folder: Path | None = None) -> TopicCatalog:
    """Return the shipped catalogue, or that of a folder."""
    return TopicCatalog.load(load_settings(_env_file=None, topics_dir=folder))


def changed(folder: Path, old: str, new: str) -> TopicCatalog:
    """Return the shipped catalogue with a change in the file of commands."""
    shutil.copytree(shipped_topics_dir(), folder)
    file = folder / "adaptation-commands.yaml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    return catalog(folder)


def test_one_principal_for_each_name_in_the_files() -> None:
    """Goal: nobody is forgotten, nobody invented, admin is there. Method: collect the names from the YAML."""
    assert set(principals(catalog())) == NAMED | {"admin"}
    assert list(principals(catalog())) == sorted(NAMED | {"admin"})


def test_topic_grants_are_what_the_files_say() -> None:
    """Goal: no grant too many or too few. Method: build the whole set from the YAML and compare."""
    expected = set()
    for topic, file in FILES.items():
        for name in NAMED:
            writes = name in file["writers"] or "all" in file["writers"]
            reads = name in file["readers"] or "all" in file["readers"]
            operations = {"WRITE"} if writes else set()
            operations |= {"READ"} if reads else set()
            operations |= {"DESCRIBE", "DESCRIBE_CONFIGS"} if writes or reads else set()
            expected |= {(name, topic, operation) for operation in operations}
    found = {(g.principal, g.name, g.operation) for g in grants(catalog()) if g.resource == "topic"}
    assert found == expected
    assert not any(grant.prefixed for grant in grants(catalog()) if grant.resource == "topic")


def test_groups_belong_to_their_subsystem() -> None:
    """Goal: a principal joins its own groups and sees all. Method: look at the grants of groups."""
    of_groups = {grant for grant in grants(catalog()) if grant.resource == "group"}
    assert {g for g in of_groups if g.operation == "DESCRIBE"} == {
        Grant(name, "group", "esper.", "DESCRIBE", prefixed=True) for name in NAMED
    }
    reads = {(g.principal, g.name) for g in of_groups if g.operation == "READ"}
    assert reads == {(name, f"esper.{name}") for name in NAMED} | {("oona", "esper.housekeeping")}
    assert all(grant.prefixed for grant in of_groups)


def test_no_group_of_one_is_also_anothers() -> None:
    """Goal: a prefix never reaches into another's groups. Method: every pair of principals."""
    prefixes = {name: groups_of(name) for name in NAMED}
    for one, other in itertools.permutations(NAMED, 2):
        assert not any(theirs.startswith(ours) for ours in prefixes[one] for theirs in prefixes[other])


def test_admin_needs_no_grant_and_sees_everything() -> None:
    """Goal: admin is a super user of the broker, not an entry. Method: no grant names it, it may describe all."""
    assert not any(grant.principal == "admin" for grant in grants(catalog()))
    assert all(may_describe(spec, "admin") for spec in catalog())


@pytest.mark.parametrize(
    ("member", "principal"),
    [
        ("tolaria-0", "tolaria"),
        ("tamiyo-12", "tamiyo"),
        ("housekeeper-0", "oona"),
        ("projector-0", "projection"),
        ("grow", "grow"),
        ("cli", "cli"),
        ("demo", "cli"),
        ("test", "cli"),
        ("admin", "cli"),
        ("admin-0", "cli"),
    ],
)
def test_a_process_logs_in_as_its_subsystem(member: str, principal: str) -> None:
    """Goal: no member is admin, a command is cli. Method: names of members and of commands."""
    assert principal_of(member, principals(catalog())) == principal


def test_every_member_has_a_principal_of_its_own() -> None:
    """Goal: a new subsystem cannot run as somebody else unnoticed. Method: every member of the composition root."""
    found = {principal_of(f"{subsystem}-0", principals(catalog())) for subsystem in SUBSYSTEMS}
    assert len(found) == len(SUBSYSTEMS)
    assert "cli" not in found


@pytest.mark.parametrize(("name", "said"), [("admin", "no subsystem can be called admin"), ("Broker", "'Broker'")])
def test_reserved_names_in_a_file_are_refused(tmp_path: Path, name: str, said: str) -> None:
    """Goal: a file cannot ask for the rights of admin or of the broker. Method: name each as a writer."""
    with pytest.raises(SettingsError, match=said):
        principals(changed(tmp_path / "topics", "writers: [tamiyo, cli]", f"writers: [tamiyo, {name}]"))


def test_a_new_reader_in_a_file_is_a_new_principal(tmp_path: Path) -> None:
    """Goal: the files alone decide. Method: add a reader and take a writer away, compare the grants."""
    before = grants(catalog())
    after = grants(changed(tmp_path / "topics", "writers: [tamiyo, cli]", "writers: [tamiyo, analyst]"))
    assert {(g.principal, g.name, g.operation) for g in before - after} == {("cli", "adaptation-commands", "WRITE")}
    assert {(g.principal, g.name, g.operation) for g in after - before} >= {
        ("analyst", "adaptation-commands", "WRITE"),
        ("analyst", "esper.analyst", "READ"),
    }
