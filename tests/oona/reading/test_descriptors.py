"""The published descriptor set is enough to read the log without esper."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from esper.core.errors import OperationFailed
from esper.core.ids import new_run_id
from esper.leyline import EVENT_TYPES
from esper.leyline import messages as ly
from esper.oona import Fabric, descriptor_set, write_descriptor_set

#: Reads a record as a foreign tool does: descriptor set, type name and value are all it is given.
STRANGER = """
import json, sys
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
files, type_name, value = sys.argv[1:]
pool = descriptor_pool.DescriptorPool()
for file in descriptor_pb2.FileDescriptorSet.FromString(open(files, "rb").read()).file:
    pool.Add(file)
cls = message_factory.GetMessageClass(pool.FindMessageTypeByName(type_name))
message = cls.FromString(bytes.fromhex(value))
assert not [name for name in sys.modules if name.split(".")[0] == "esper"]
print(json_format.MessageToJson(message, preserving_proto_field_name=True))
"""


def test_a_stranger_decodes_a_real_record_by_it_alone(fabric: Fabric, tmp_path: Path) -> None:
    """Goal: any Kafka tool can read our records. Method: publish, read the raw record, decode it without esper."""
    run_id = new_run_id()
    command = ly.AdaptationCommand(
        training_run_id=run_id,
        command_type=ly.COMMAND_SEED,
        seed_operation=ly.CommandSeedOperation(operation=ly.SEED_OP_GERMINATE, parameters={"depth": 2.0}),
    )
    command.issued_at.FromJsonString("2026-09-21T10:00:00Z")
    with fabric.publisher("tamiyo") as publisher:
        receipt = publisher.publish(command, key=run_id)
    with fabric.reader({(receipt.topic, receipt.partition): receipt.offset}) as reader:
        (record,) = reader.read_raw(30.0, limit=1)
    assert record.value is not None
    type_name = (record.header("type") or b"").decode()
    out = tmp_path / "esper.binpb"
    write_descriptor_set(out)
    words = [sys.executable, "-I", "-c", STRANGER, str(out), type_name, record.value.hex()]
    answer = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    decoded = json.loads(answer.stdout)
    assert decoded["meta"]["event_id"] == receipt.event_id
    assert decoded["seed_operation"] == {"operation": "SEED_OP_GERMINATE", "parameters": {"depth": 2.0}}
    assert decoded["issued_at"] == "2026-09-21T10:00:00Z"
    protoc = [sys.executable, "-m", "grpc_tools.protoc", f"--descriptor_set_in={out}", f"--decode={type_name}"]
    protoc.append("esper/leyline/v1/commands.proto")
    text = subprocess.run(protoc, input=record.value, capture_output=True, timeout=60, check=True).stdout.decode()
    assert f'training_run_id: "{run_id}"' in text
    assert "operation: SEED_OP_GERMINATE" in text


def test_it_holds_every_event_and_everything_that_those_need(tmp_path: Path) -> None:
    """Goal: nothing is missing and nothing varies. Method: walk the imports, look every type up, write twice."""
    files = FileDescriptorSet.FromString(descriptor_set()).file
    known: set[str] = set()
    for file in files:
        assert set(file.dependency) <= known, "each file stands after those that it imports"
        known.add(file.name)
    messages = {f"{file.package}.{message.name}" for file in files for message in file.message_type}
    assert set(EVENT_TYPES) <= messages
    first, second = (write_descriptor_set(tmp_path / name) for name in ("one", "two"))
    assert first.sha256 == second.sha256
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes() == descriptor_set()
    assert set(first.messages) == set(EVENT_TYPES)
    assert set(first.files) == known


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """Goal: no traceback for a wrong path. Method: write to where a folder is."""
    with pytest.raises(OperationFailed, match="was not written to"):
        write_descriptor_set(tmp_path)
