"""An archive altered in random ways: each is found, and the segment is named."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from esper.cli._app import app
from esper.core.rng import derive_seed
from esper.projection.archive import Layout, verify_archive
from tests.campaigns import WHOLE
from tests.projection.archive.sealed import Archived

SEED = 20_261_122
COUNT = 1_000 if WHOLE else 120


@pytest.fixture(scope="module")
def archived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archived]:
    """An archive of three seals, with several segments of a partition and blobs."""
    made = Archived(tmp_path_factory.mktemp("mutations"))
    for number in range(3):
        made.write_run(f"run-{number}")
        made.seal(codec="deflate" if number == 1 else "null")
    return made


def files(root: Path) -> list[Path]:
    """Return every file of an archive that belongs to what is sealed."""
    return sorted(path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))


def flip(root: Path, chooser: random.Random) -> Path:
    """Change one bit of one file."""
    path = chooser.choice([path for path in files(root) if path.stat().st_size])
    content = bytearray(path.read_bytes())
    content[chooser.randrange(len(content))] ^= 1 << chooser.randrange(8)
    path.write_bytes(content)
    return path


def truncate(root: Path, chooser: random.Random) -> Path:
    """Cut a file's end off."""
    path = chooser.choice([path for path in files(root) if path.stat().st_size])
    path.write_bytes(path.read_bytes()[: chooser.randrange(path.stat().st_size)])
    return path


def lengthen(root: Path, chooser: random.Random) -> Path:
    """Append to a file."""
    path = chooser.choice(files(root))
    path.write_bytes(path.read_bytes() + chooser.randbytes(chooser.randint(1, 40)))
    return path


def delete(root: Path, chooser: random.Random) -> Path:
    """Remove a file; the last seal alone cannot be missed, and `verify` says so."""
    last = max((root / "seals").glob("*.json"))
    path = chooser.choice([path for path in files(root) if path != last])
    path.unlink()
    return path


def lose_segment(root: Path, chooser: random.Random) -> Path:
    """Remove a segment with its manifest."""
    path = chooser.choice(list((root / "segments").rglob("*.avro")))
    path.unlink()
    path.with_suffix(".json").unlink()
    return path


def swap(root: Path, chooser: random.Random) -> Path:
    """Exchange two segments with their manifests."""
    one, other = chooser.sample(sorted((root / "segments").rglob("*.avro")), 2)
    for left, right in ((one, other), (one.with_suffix(".json"), other.with_suffix(".json"))):
        mine, theirs = left.read_bytes(), right.read_bytes()
        left.write_bytes(theirs)
        right.write_bytes(mine)
    return one


def swap_content(root: Path, chooser: random.Random) -> Path:
    """Exchange two segments without their manifests."""
    one, other = chooser.sample(sorted((root / "segments").rglob("*.avro")), 2)
    mine, theirs = one.read_bytes(), other.read_bytes()
    one.write_bytes(theirs)
    other.write_bytes(mine)
    return one


def duplicate(root: Path, chooser: random.Random) -> Path:
    """Put a segment with its manifest also where it seems to follow, or lies in another partition."""
    path = chooser.choice(sorted((root / "segments").rglob("*.avro")))
    last = max(path.parent.glob("*.avro"))
    end = int(last.stem.partition("-")[2])
    name = chooser.choice([f"{end:020}-{end + 5:020}", path.stem])
    folder = path.parent if name != path.stem else path.parent.with_name("7777")
    folder.mkdir(exist_ok=True)
    shutil.copy(path, folder / f"{name}.avro")
    shutil.copy(path.with_suffix(".json"), folder / f"{name}.json")
    return folder / f"{name}.json"


def copy_seal(root: Path, chooser: random.Random) -> Path:
    """Put an earlier seal also at the end."""
    path = chooser.choice(sorted((root / "seals").glob("*.json")))
    target = path.with_name("00000004.json")
    shutil.copy(path, target)
    return target


KINDS: list[Callable[[Path, random.Random], Path]] = [
    flip,
    truncate,
    lengthen,
    delete,
    lose_segment,
    swap,
    swap_content,
    duplicate,
    copy_seal,
]


@pytest.mark.campaign
def test_every_mutation_is_found(
    archived: Archived, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Goal: nothing altered passes. Method: one random mutation of a copy at a time; verify names the file."""
    found: Counter[str] = Counter()
    for number in range(COUNT):
        mutate = KINDS[number % len(KINDS)]
        seed = derive_seed(SEED, mutate.__name__, number)
        root = tmp_path / "copy"
        shutil.copytree(archived.layout.root, root)
        path = mutate(root, random.Random(seed))  # noqa: S311 - a seeded campaign
        verdict = verify_archive(Layout(root), public_key=archived.key.public_key)
        what = f"{mutate.__name__} of {path.relative_to(root)} (seed {seed})"
        assert not verdict.ok, what
        named = {Path(fault.path).stem for fault in verdict.faults} | {fault.path for fault in verdict.faults}
        assert path.stem in named, f"{what}: {verdict.faults}"
        if path.suffix == ".avro":
            assert any(fault.offset is not None and fault.topic for fault in verdict.faults), what
        found[mutate.__name__] += 1
        shutil.rmtree(root)
    record_property("mutations_found", sum(found.values()))


def test_another_key_is_no_proof(archived: Archived, tmp_path: Path) -> None:
    """Goal: whoever seals anew is not believed. Method: verify with another home's public key."""
    stranger = Archived(tmp_path)
    verdict = verify_archive(archived.layout, public_key=stranger.key.public_key)
    assert not verdict.ok
    assert {fault.kind.value for fault in verdict.faults} >= {"document"}


def test_a_stranger_needs_the_public_key_alone(
    archived: Archived, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: no home, broker or secret is needed to check. Method: the command with a folder and a key, elsewhere."""
    monkeypatch.setenv("ESPER_HOME", str(tmp_path / "none"))
    words = ["archive", "verify", "--archive", str(archived.layout.root), "--public-key", archived.key.public_key.hex()]
    result = CliRunner().invoke(app, [*words, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["ok"]
