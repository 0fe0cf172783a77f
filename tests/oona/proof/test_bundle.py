"""Audit bundles: what a stranger can check with the public key alone, and what nobody can change unseen."""

from __future__ import annotations

import base64
import io
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from esper.core._log_key import LogKey, open_log_key
from esper.core.errors import UsageError
from esper.core.kernel import DirectoryBlobStore
from esper.core.rng import derive_seed
from esper.leyline import Record
from esper.leyline import messages as ly
from esper.oona.proof import AuditVerdict, BundleExport, NotCovered, verify_bundle
from esper.oona.proof._bundle import BundleWriter
from tests.campaigns import WHOLE
from tests.oona.proof.mutations import resigned
from tests.oona.proof.recorded import RUNS, Recorded

SEED = 20_261_123
COUNT = 1_000 if WHOLE else 60


def export_of(recorded: Recorded, blobs: Path) -> BundleExport:
    """Return the exporter of the recorded log."""
    return BundleExport(
        recorded.log,
        key=recorded.key,
        cluster_id=recorded.cluster_id,
        topics=recorded.topics,
        blobs=DirectoryBlobStore(blobs),
    )


def bundle_of(recorded: Recorded, blobs: Path, *, run: str = RUNS[0]) -> bytes:
    """Return the bundle of a run."""
    file = io.BytesIO()
    export_of(recorded, blobs).run(run, file)
    return file.getvalue()


def checked(content: bytes, public_key: bytes) -> AuditVerdict:
    """Return the verdict on a bundle."""
    return verify_bundle(io.BytesIO(content), public_key=public_key)


def sealed(lines: list[dict[str, Any]], key: LogKey) -> bytes:
    """Return lines as a bundle that `key` sealed."""
    file = io.BytesIO()
    writer = BundleWriter(file, key)
    for line in lines:
        writer.line(line)
    writer.seal()
    return file.getvalue()


def test_run_is_shown_without_its_neighbours(recorded: Recorded, tmp_path: Path) -> None:
    """A stranger sees one run in full and of the others only hashes: export, verify, look for the other runs."""
    content = bundle_of(recorded, tmp_path)
    verdict = checked(content, recorded.public_key)
    assert verdict.ok, verdict.document()["first_bad"]
    key = RUNS[0].encode()
    expected = sum(record.key == key for records in recorded.log.partitions.values() for record in records)
    assert verdict.records == expected > 100
    assert verdict.hidden > 0
    shown = [json.loads(line)["record"] for line in content.splitlines() if line.startswith(b'{"record"')]
    assert {base64.b64decode(record["key"]) for record in shown} == {key}


def test_range_is_exported_from_checkpoint_to_checkpoint(recorded: Recorded, tmp_path: Path) -> None:
    """A range lies between two signed places: export a few offsets, and see the rest as hashes."""
    file = io.BytesIO()
    exported = export_of(recorded, tmp_path).range("system-state-0:50-53", file)
    verdict = checked(file.getvalue(), recorded.public_key)
    assert verdict.ok, verdict.document()["first_bad"]
    assert (exported.records, verdict.records) == (3, 3)
    assert exported.hidden == verdict.hidden > 0


@pytest.mark.parametrize("text", ["system-state-0:5-5", "system-state-9:0-1", "nonsense", "system-state-0:0-99999"])
def test_impossible_range_is_a_usage_error(recorded: Recorded, tmp_path: Path, text: str) -> None:
    """Asking for what is not there says so: give ranges that no log of ours has."""
    with pytest.raises(UsageError):
        export_of(recorded, tmp_path).range(text, io.BytesIO())


def test_unknown_run_is_a_usage_error(recorded: Recorded, tmp_path: Path) -> None:
    """A run without records cannot be exported: ask for one."""
    with pytest.raises(UsageError, match="nothing to export"):
        bundle_of(recorded, tmp_path, run="run-nobody-knows")


def test_what_no_checkpoint_covers_is_not_exported(recorded: Recorded, tmp_path: Path) -> None:
    """A bundle proves all that it shows: leave the last checkpoints out of the log, and export its end."""
    operations = ("operations", 0)
    partitions = {**recorded.log.partitions, operations: list(recorded.log.partitions[operations])[:-2]}
    short = recorded.with_log(partitions)
    end = len(recorded.log.partitions[("system-state", 0)])
    with pytest.raises(NotCovered):
        export_of(short, tmp_path).range(f"system-state-0:{end - 1}-{end}", io.BytesIO())


def test_blobs_that_the_run_names_travel_with_it(recorded: Recorded, tmp_path: Path) -> None:
    """Artifacts go along, and what they name: put a blob that names another one under a digest in the log."""
    store = DirectoryBlobStore(tmp_path)
    inner = store.put(b"weights")
    outer = store.put(json.dumps({"weights": inner}).encode())
    place = ("runs", 0)
    records = list(recorded.log.partitions[place])
    export = export_of(
        recorded.with_log({**recorded.log.partitions, place: [_naming(records[0], outer), *records[1:]]}), tmp_path
    )
    file = io.BytesIO()
    exported = export.run(records[0].key.decode() if records[0].key else "", file)
    assert exported.blobs == 2
    lines = [json.loads(line) for line in file.getvalue().splitlines()]
    assert {line["blob"] for line in lines if "blob" in line} == {inner, outer}


def _naming(record: Record, digest: str) -> Record:
    outcome = ly.CommandOutcome.FromString(record.value or b"")
    outcome.kernel_digest = digest
    return Record(
        record.topic,
        record.partition,
        record.offset,
        record.key,
        outcome.SerializeToString(deterministic=True),
        record.headers,
        record.append_time_ms,
    )


def test_another_key_proves_nothing(recorded: Recorded, tmp_path: Path) -> None:
    """The public key is all that the stranger trusts: verify with another one."""
    verdict = checked(bundle_of(recorded, tmp_path), open_log_key(tmp_path).public_key)
    assert not verdict.ok
    assert {one.kind for one in verdict.bad} >= {"bundle", "checkpoint"}


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"not json\n", b"[]\n" * 3, b"\xff\xfe", b'{"seal":1}\n', b'{"record":{}}\n', b"[" * 100_000],
)
def test_garbage_is_a_verdict_and_no_exception(recorded: Recorded, content: bytes) -> None:
    """A hostile file cannot break the checker: give what is no bundle."""
    assert not checked(content, recorded.public_key).ok


def flip_byte(content: bytes, _: Recorded, rng: random.Random) -> bytes:
    """Turn one bit anywhere."""
    at = rng.randrange(len(content))
    return content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]


def cut(content: bytes, _: Recorded, rng: random.Random) -> bytes:
    """Cut the file off."""
    return content[: rng.randrange(len(content))]


def lines_altered(content: bytes, _: Recorded, rng: random.Random) -> bytes:
    """Drop, double or exchange lines."""
    lines = content.splitlines(keepends=True)
    first, second = rng.sample(range(len(lines)), 2)
    way = rng.choice(["drop", "double", "exchange"])
    if way == "drop":
        del lines[first]
    elif way == "double":
        lines.insert(second, lines[first])
    elif lines[first] != lines[second]:
        lines[first], lines[second] = lines[second], lines[first]
    return b"".join(lines)


#: Alterations of a bundle that its exporter's seal alone would show.
ANYBODY = (flip_byte, cut, lines_altered)


@pytest.mark.campaign
def test_every_mutation_of_a_bundle_is_found(
    recorded: Recorded, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """No byte of a bundle can be changed: flip bits, cut, drop, double and exchange lines, and verify."""
    content = bundle_of(recorded, tmp_path)
    found: Counter[str] = Counter()
    for number in range(COUNT):
        alter = ANYBODY[number % len(ANYBODY)]
        seed = derive_seed(SEED, alter.__name__, number)
        altered = alter(content, recorded, random.Random(seed))  # noqa: S311 - a seeded campaign
        if altered == content:
            continue
        assert not checked(altered, recorded.public_key).ok, f"{alter.__name__}, seed {seed}"
        found[alter.__name__] += 1
    record_property("mutations_found", dict(found))
    assert sum(found.values()) >= COUNT * 0.95


@pytest.mark.campaign
def test_holder_of_the_secret_and_of_a_seal_is_found(
    recorded: Recorded, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Checkpoints bind even whoever can sign records, and seal bundles: alter records, sign and seal again, verify."""
    lines = [json.loads(line) for line in bundle_of(recorded, tmp_path).splitlines()][:-1]
    records = [index for index, line in enumerate(lines) if "record" in line]
    found: Counter[str] = Counter()
    for number in range(COUNT):
        seed = derive_seed(SEED, "secret", number)
        rng = random.Random(seed)  # noqa: S311 - a seeded campaign
        altered = [dict(line) for line in lines]
        index = rng.choice(records)
        place, offset = _place_of(lines, index)
        way = rng.choice(["rewrite", "drop", "double", "exchange", "time", "hide", "show"])
        if not _alter(altered, index, way, place, recorded, rng):
            continue
        verdict = checked(sealed(altered, recorded.key), recorded.public_key)
        what = f"{way} of {place} offset {offset}, seed {seed}"
        assert not verdict.ok, what
        first = next(one for one in verdict.bad if one.topic != "bundle")
        assert (first.topic, first.partition) == place, what
        # A second copy stands in the place of the record after it.
        assert first.proven_to <= offset + (way == "double"), what
        found[f"{way}: {first.kind}"] += 1
    record_property("mutations_found", dict(sorted(found.items())))
    assert sum(found.values()) >= COUNT * 0.9


def _place_of(lines: list[dict[str, Any]], index: int) -> tuple[tuple[str, int], int]:
    section = next(lines[at]["partition"] for at in range(index, -1, -1) if "partition" in lines[at])
    return (section["topic"], section["partition"]), lines[index]["record"]["offset"]


def _alter(
    lines: list[dict[str, Any]], index: int, way: str, place: tuple[str, int], recorded: Recorded, rng: random.Random
) -> bool:
    """Alter the record of line `index`; return whether anything became different."""
    line = lines[index]["record"]
    if way == "rewrite":
        original = recorded.log.partitions[place][line["offset"]]
        message = ly.AnyEvent.FromString(original.value or b"")
        message.meta.causation_id = f"{rng.getrandbits(64):x}"
        altered = resigned(
            original, recorded.keyring, partition=place[1], value=message.SerializeToString(deterministic=True)
        )
        headers = [[name, base64.b64encode(content or b"").decode()] for name, content in altered.headers]
        value = base64.b64encode(altered.value or b"").decode()
        lines[index] = {"record": {**line, "value": value, "headers": headers}}
    elif way == "drop":
        del lines[index]
    elif way == "double":
        lines.insert(index, lines[index])
    elif way == "exchange":
        section = max(at for at in range(index) if "partition" in lines[at])
        earlier = [at for at in range(section, index) if "record" in lines[at]]
        if not earlier:
            return False
        other = rng.choice(earlier)
        lines[other], lines[index] = lines[index], lines[other]
    elif way == "time":
        lines[index] = {"record": {**line, "append_time_ms": line["append_time_ms"] + 1}}
    elif way == "hide":
        lines[index] = {"hashes": [f"{rng.getrandbits(256):064x}"]}
    else:
        lines.insert(index, {"hashes": [f"{rng.getrandbits(256):064x}"]})
    return True
