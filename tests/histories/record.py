"""Record golden logs and their hashes.

python -m tests.histories.record log 0.2.0   once for a release, after `.ci/protos.py release 0.2.0`
python -m tests.histories.record hashes      whenever a projection changed on purpose; the diff is what to look at

`log` starts a real broker, has the real publishers append `scenario.story`, and keeps what Kafka holds then. Only what
that release's contract has may stand in it: types that came later are left out, later fields end the recording.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from esper.core.settings import Settings
from esper.leyline import TYPE_HEADER, type_of
from esper.oona import Fabric, Publisher, TopicCatalog
from esper.oona.proof._kafka import KafkaLog
from esper.oona.proof._log import Span
from esper.projection import load_definitions
from tests.conftest import running_broker
from tests.histories.golden import (
    FOLDER,
    SECRET,
    GoldenLog,
    hashes_path,
    read_log,
    releases,
    replayed,
    write_log,
)
from tests.histories.scenario import ELSEWHERE, Told, story

IMAGES = FOLDER.parent.parent / "proto" / "released"


def released_types(release: str) -> dict[str, type[Message]]:
    """Return the events of a release, as its own descriptor image has them; `release` is v<version>."""
    image = FileDescriptorSet.FromString((IMAGES / f"{release}.binpb").read_bytes())
    pool = DescriptorPool()
    for file in image.file:
        pool.Add(file)
    names = [
        f"{file.package}.{message.name}"
        for file in image.file
        for message in file.message_type
        if message.name != "AnyEvent" and any(one.name == "meta" and one.number == 1 for one in message.field)
    ]
    return {name: GetMessageClass(pool.FindMessageTypeByName(name)) for name in names}


def told_by(release: str) -> list[Told]:
    """Return those events of the story that a release knows; raise SystemExit where it lacks a type of the release."""
    types = released_types(release)
    told = [one for one in story() if type_of(one.message) in types]
    missing = sorted(types.keys() - {type_of(one.message) for one in told} - ELSEWHERE.keys())
    if missing:
        raise SystemExit(f"tests/histories/scenario.py tells nothing of {', '.join(missing)}; add an event of each")
    return told


def check_contents(log: GoldenLog) -> None:
    """Raise SystemExit where a record holds a field, at any depth, that its release does not know."""
    types = released_types(log.release)
    for record in log.records:
        type_name, value = (record.header(TYPE_HEADER) or b"").decode(), record.value or b""
        message = types[type_name].FromString(value)
        message.DiscardUnknownFields()
        if message.ByteSize() != len(value):
            raise SystemExit(f"{log.release} does not know a field of {type_name} that stands in the log")


def append(fabric: Fabric, told: Iterable[Told]) -> None:
    """Append events as those who write them, one after the other."""
    publishers: dict[str, Publisher] = {}
    for one in told:
        if one.source not in publishers:
            publishers[one.source] = fabric.publisher(one.source)
        publishers[one.source].publish(one.message, key=one.key, event_id=one.event_id, causation_id=one.causation_id)


def kept(fabric: Fabric, release: str) -> GoldenLog:
    """Return everything that the cluster holds, in the order of append times."""
    log = KafkaLog(fabric)
    bounds = log.bounds()
    spans = {place: Span(found.low, found.high) for place, found in bounds.items()}
    records = sorted(log.read(spans), key=lambda one: (one.append_time_ms, one.topic, one.partition, one.offset))
    topics = {one.topic for one in records}
    ids = {name: found for name, found in sorted(log.topic_ids().items()) if name in topics}
    return GoldenLog(release, SECRET, ids, tuple(records))


def record_log(release: str) -> Path:
    """Record the golden log of a release, v<version>; a log that is there is never written again."""
    if release in releases():
        raise SystemExit(f"{release} has a golden log, which never changes")
    told = told_by(release)
    with (
        tempfile.TemporaryDirectory() as folder,
        running_broker(Path(folder) / "home", leyline_secret=SECRET, broker_start_seconds=240) as broker,
        Fabric.open(broker.settings, member="recorder") as fabric,
    ):
        append(fabric, told)
        log = kept(fabric, release)
    check_contents(log)
    return write_log(log)


def outcomes(release: str) -> dict[str, dict[str, Any]]:
    """Return what the shipped projections make of a golden log."""
    settings = Settings(_env_file=None)  # type: ignore[call-arg]  # pydantic-settings takes it
    catalog, log = TopicCatalog.load(settings), read_log(release)
    with tempfile.TemporaryDirectory() as folder:
        definitions = load_definitions(settings, catalog)
        return replayed(log.records, definitions, catalog=catalog, keyring=log.keyring, folder=Path(folder))


def record_hashes(release: str) -> Path:
    """Write what the shipped projections make of a golden log now."""
    path = hashes_path(release)
    path.write_text(json.dumps(outcomes(release), indent=1, sort_keys=True) + "\n")
    return path


def main() -> None:
    """Do what the command line asks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("log").add_argument("version")
    commands.add_parser("hashes")
    asked = parser.parse_args()
    if asked.command == "log":
        release = f"v{asked.version.removeprefix('v')}"
        written = [record_log(release), record_hashes(release)]
    else:
        written = [record_hashes(release) for release in releases()]
    sys.stdout.write("".join(f"{path.relative_to(FOLDER.parent.parent)}\n" for path in written))


if __name__ == "__main__":
    main()
