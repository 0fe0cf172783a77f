"""Generated code is current, and the contract keeps its promises to older versions."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from esper.leyline import messages
from tests.repository.tree import ROOT


def protos(*arguments: str, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run the generator of one tree."""
    command = [sys.executable, str(root / ".ci" / "protos.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def copy_of_the_contract(target: Path) -> Path:
    """Copy what the generator and buf need, so that a test may spoil it."""
    for name in (".ci", "proto", "esper/leyline"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "buf.yaml"):
        shutil.copy(ROOT / name, target / name)
    return target


def released_images() -> list[Path]:
    """List the descriptor images of all released contracts."""
    return sorted((ROOT / "proto" / "released").glob("*.binpb"))


def buf_breaking(root: Path) -> subprocess.CompletedProcess[str]:
    """Compare the contract below `root` with the last release, by the command of `make lint`."""
    command = [str(Path(sys.executable).with_name("buf")), "breaking", "--against", str(released_images()[-1])]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=120)


def test_generated_code_is_current() -> None:
    """What is committed is what proto/ generates: generate again and compare the bytes."""
    result = protos("check")
    assert result.returncode == 0, result.stderr


def test_edited_generated_code_is_found(tmp_path: Path) -> None:
    """An edit by hand, a missing and a left-over file are each named: spoil a copy and run the check there."""
    root = copy_of_the_contract(tmp_path)
    generated = root / "esper" / "leyline" / "v1"
    with (root / "esper" / "leyline" / "messages.py").open("a", encoding="utf-8") as file:
        file.write("# edited\n")
    (generated / "seeds_pb2.pyi").unlink()
    (generated / "gone_pb2.py").write_text("", encoding="utf-8")
    result = protos("check", root=root)
    assert result.returncode == 1
    named = [line.split()[0] for line in result.stderr.splitlines()]
    assert named == [
        "esper/leyline/messages.py",
        "esper/leyline/v1/gone_pb2.py",
        "esper/leyline/v1/seeds_pb2.pyi",
    ]


def test_flat_module_exports_the_whole_contract() -> None:
    """Every message and enum of the released descriptor has its name in esper.leyline.messages: compare the sets."""
    image = FileDescriptorSet.FromString(released_images()[-1].read_bytes())
    ours = [file for file in image.file if file.package == "esper.leyline.v1"]
    names = {item.name for file in ours for item in [*file.message_type, *file.enum_type]}
    values = {value.name for file in ours for enum in file.enum_type for value in enum.value}
    assert names
    assert (names | values) <= set(messages.__all__)
    assert all(hasattr(messages, name) for name in messages.__all__)


def test_contract_breaks_no_release() -> None:
    """Records of every released version stay readable: buf compares the contract with the last release."""
    result = buf_breaking(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


def test_breaking_change_is_found(tmp_path: Path) -> None:
    """A renumbered field does not pass: renumber one in a copy and let buf compare."""
    root = copy_of_the_contract(tmp_path)
    meta = root / "proto" / "esper" / "leyline" / "v1" / "meta.proto"
    text = meta.read_text(encoding="utf-8")
    assert "string event_id = 1;" in text
    meta.write_text(text.replace("string event_id = 1;", "string event_id = 99;"), encoding="utf-8")
    result = buf_breaking(root)
    assert result.returncode == 100, result.stderr
    assert "event_id" in result.stdout
