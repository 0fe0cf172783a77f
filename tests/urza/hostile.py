"""Hostile kernels in a store: each puts its bytes under a home's blobs and names what somebody would fetch by."""

from __future__ import annotations

import io
import json
import os
import pickle  # noqa: TID251 - the attacker's
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from esper.core.kernel import DirectoryBlobStore, KernelArtifact, canonical_json, make_artifact, manifest_bytes
from tests.core.kernel import test_artifact as forgeries
from tests.core.kernel.examples import linear, request, sequential, spec

#: Puts a hostile kernel into the store under this folder; returns the digest to fetch it by.
Plant = Callable[[Path], str]


class Gadget:
    """What an attacker pickles: reading it back makes a file."""

    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (self.canary, "w")


def canary(root: Path) -> Path:
    """Return the file that appears once anything of a gadget was run."""
    return root.parent / "canary"


def gadget(root: Path, protocol: int = 4) -> bytes:
    """Return a pickle that makes the canary."""
    return pickle.dumps(Gadget(str(canary(root))), protocol=protocol)


def archive_of(root: Path) -> bytes:
    """Return what torch.save would have written around the gadget."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("archive/data.pkl", gadget(root, 2))
        archive.writestr("archive/version", "3\n")
    return packed.getvalue()


def planted(artifact: KernelArtifact, root: Path) -> str:
    """Store an artifact as it is, whatever its manifest says; return its name."""
    store = DirectoryBlobStore(root)
    store.put(artifact.spec)
    store.put(artifact.weights)
    return store.put(manifest_bytes(artifact.manifest))


def blob(root: Path, digest: str) -> Path:
    """Return where a blob lies."""
    return root / digest[:2] / digest


def raw_manifest(root: Path, content: bytes) -> str:
    """Store honest parts and any bytes as the manifest that names them."""
    planted(forgeries.artifact(), root)
    return DirectoryBlobStore(root).put(content)


def edited_manifest(root: Path, **changes: object) -> str:
    """Store a manifest whose fields were changed."""
    fields = json.loads(manifest_bytes(forgeries.artifact().manifest))
    return raw_manifest(root, canonical_json(fields | changes))


def surrogate_manifest(root: Path, field: str) -> str:
    """Store a manifest one of whose texts no UTF-8 can say."""
    fields = json.loads(manifest_bytes(forgeries.artifact().manifest)) | {field: "\ud800"}
    return raw_manifest(root, json.dumps(fields, sort_keys=True, separators=(",", ":")).encode())


def tampered(part: str, change: Callable[[bytes], bytes]) -> Plant:
    """Return a plant that stores an honest kernel and then changes the bytes of one part where they lie."""

    def plant(root: Path) -> str:
        made = forgeries.artifact()
        name = planted(made, root)
        digest = name if part == "manifest" else getattr(made.manifest, f"{part}_digest")
        path = blob(root, digest)
        content = change(path.read_bytes())
        path.unlink()
        path.write_bytes(content)
        return name

    return plant


def replaced(part: str, put: Callable[[Path, Path], None]) -> Plant:
    """Return a plant that stores an honest kernel and puts something else than a file in place of one part."""

    def plant(root: Path) -> str:
        made = forgeries.artifact()
        name = planted(made, root)
        digest = name if part == "manifest" else getattr(made.manifest, f"{part}_digest")
        path = blob(root, digest)
        kept = root.parent / "kept" / digest
        kept.parent.mkdir(exist_ok=True)
        path.replace(kept)
        put(path, kept)
        return name

    return plant


def linked_folder(root: Path) -> str:
    """Store an honest kernel and make the folder of its manifest a link to elsewhere."""
    name = planted(forgeries.artifact(), root)
    folder, elsewhere = root / name[:2], root.parent / f"elsewhere-{name[:2]}"
    folder.replace(elsewhere)
    folder.symlink_to(elsewhere, target_is_directory=True)
    return name


def sparse(path: Path, _kept: Path) -> None:
    """Put a file of 8 GiB there that takes no room."""
    with path.open("wb") as file:
        file.truncate(8 << 30)


def header_with(**entries: object) -> bytes:
    """Return weights whose header has more or other entries."""
    return forgeries.with_header(json.dumps(forgeries.header() | entries).encode())


def header_twice() -> bytes:
    """Return weights whose header names one tensor twice."""
    text = json.dumps(forgeries.header())
    entry = json.dumps(forgeries.header()["end.bias"])
    return forgeries.with_header((text[:-1] + f', "end.bias": {entry}' + "}").encode())


def moved(**offsets: tuple[int, int]) -> bytes:
    """Return weights some of whose tensors are said to lie elsewhere ("__" in a name stands for a dot)."""
    entries = forgeries.header()
    for name, place in offsets.items():
        entries[name.replace("__", ".")]["data_offsets"] = list(place)
    return forgeries.with_header(json.dumps(entries).encode())


def gapped() -> bytes:
    """Return weights with bytes between two tensors that belong to none."""
    entries, length = forgeries.header(), 16
    last = max(entries.values(), key=lambda entry: entry["data_offsets"][1])
    last["data_offsets"] = [last["data_offsets"][0] + length, last["data_offsets"][1] + length]
    content = forgeries.artifact().weights
    data = content[8 + struct.unpack("<Q", content[:8])[0] :]
    return forgeries.with_header(json.dumps(entries).encode(), data + bytes(length))


def deep_spec() -> bytes:
    """Return a spec with more levels than a kernel may have."""
    body: Any = {"op": "relu"}
    for _ in range(40):
        body = sequential(body)
    return canonical_json(spec() | {"body": body})


def hazardous() -> KernelArtifact:
    """Return an artifact as a forge makes it, of a word that is only for quarantine."""
    word = {"op": "hazard_noise", "epsilon": 0.5}
    return make_artifact(request(), spec() | {"body": sequential(linear(6, 5), word)})


def _plants() -> dict[str, Plant]:
    stored = {
        f"stored: {name}": (lambda root, make=make: planted(make(), root))
        for name, (make, _) in forgeries.HOSTILE.items()
    }
    gadgets: dict[str, Plant] = {
        f"gadget as {part}, protocol {protocol}": (
            lambda root, part=part, protocol=protocol: planted(forgeries.forged(**{part: gadget(root, protocol)}), root)
        )
        for part in ("spec", "weights")
        for protocol in (0, 2, 4)
    }
    return stored | gadgets | _MORE


_MORE: dict[str, Plant] = {
    "gadget as manifest": lambda root: raw_manifest(root, gadget(root)),
    "torch archive as manifest": lambda root: raw_manifest(root, archive_of(root)),
    "torch archive as spec": lambda root: planted(forgeries.forged(spec=archive_of(root)), root),
    "torch archive as weights": lambda root: planted(forgeries.forged(weights=archive_of(root)), root),
    "gadget in place of the spec": lambda root: tampered("spec", lambda _: gadget(root))(root),
    "gadget in place of the weights": lambda root: tampered("weights", lambda _: gadget(root))(root),
    "gadget in place of the manifest": lambda root: tampered("manifest", lambda _: gadget(root))(root),
    "gadget behind the weights": lambda root: tampered("weights", lambda content: content + gadget(root))(root),
    "gadget before the spec": lambda root: tampered("spec", lambda content: gadget(root) + content)(root),
    "gadget as metadata of the weights": lambda root: planted(
        forgeries.forged(weights=header_with(__metadata__={"pickle": gadget(root, 0).decode("latin-1")})), root
    ),
    "gadget as a word of the spec": lambda root: planted(
        forgeries.forged(spec=forgeries.edited_spec(body={"op": gadget(root, 0).decode("latin-1")})), root
    ),
    "gadget as a shape of the weights": lambda root: planted(
        forgeries.forged(
            weights=header_with(
                **{"end.bias": {"dtype": "F32", "shape": gadget(root, 0).decode("latin-1"), "data_offsets": [0, 16]}}
            )
        ),
        root,
    ),
    "manifest flipped": tampered("manifest", lambda content: content[:-1] + bytes([content[-1] ^ 1])),
    "spec flipped": tampered("spec", lambda content: bytes([content[0] ^ 1]) + content[1:]),
    "weights flipped": tampered("weights", lambda content: content[:-1] + bytes([content[-1] ^ 128])),
    "manifest truncated": tampered("manifest", lambda content: content[:-1]),
    "spec truncated": tampered("spec", lambda content: content[:10]),
    "weights emptied": tampered("weights", lambda _: b""),
    "manifest oversized": lambda root: raw_manifest(root, b" " * 70_000),
    "manifest nested deep": lambda root: raw_manifest(root, b"[" * 60_000),
    "manifest with a key twice": lambda root: raw_manifest(
        root, manifest_bytes(forgeries.artifact().manifest)[:-1] + b',"strategy":"eager"}'
    ),
    "manifest of another kernel": lambda root: edited_manifest(root, kernel_id="0" * 64),
    "manifest of another guard": lambda root: edited_manifest(root, guard_digest="0" * 64),
    "manifest of a strategy with code": lambda root: edited_manifest(root, strategy="pickle"),
    "manifest whose spec is half a character": lambda root: surrogate_manifest(root, "spec_digest"),
    "manifest whose weights are half a character": lambda root: surrogate_manifest(root, "weights_digest"),
    "manifest whose kernel is half a character": lambda root: surrogate_manifest(root, "kernel_id"),
    "manifest of a later format": lambda root: edited_manifest(root, format_version=9),
    "manifest with code": lambda root: edited_manifest(root, code="import os"),
    "manifest whose spec is a path": lambda root: edited_manifest(root, spec_digest="../../etc/passwd"),
    "manifest whose weights are a path": lambda root: edited_manifest(root, weights_digest="/etc/passwd"),
    "manifest whose weights are its spec": lambda root: edited_manifest(
        root, weights_digest=forgeries.artifact().manifest.spec_digest
    ),
    "manifest that names terabytes": lambda root: edited_manifest(root, weights_bytes=1 << 31),
    "manifest as a link": replaced("manifest", lambda path, kept: path.symlink_to(kept)),
    "spec as a link": replaced("spec", lambda path, kept: path.symlink_to(kept)),
    "weights as a link": replaced("weights", lambda path, kept: path.symlink_to(kept)),
    "weights as a link to themselves": replaced("weights", lambda path, _: path.symlink_to(path.name)),
    "weights as a link to a device": replaced("weights", lambda path, _: path.symlink_to("/dev/zero")),
    "weights as a pipe": replaced("weights", lambda path, _: os.mkfifo(path)),
    "manifest as a folder": replaced("manifest", lambda path, _: path.mkdir()),
    "weights as a folder": replaced("weights", lambda path, _: path.mkdir()),
    "weights of 8 GiB": replaced("weights", sparse),
    "manifest of 8 GiB": replaced("manifest", sparse),
    "folder as a link": linked_folder,
    "name with dots": lambda root: "../" * 21 + "a",
    "name of a file elsewhere": lambda root: str(canary(root)),
    "name in capitals": lambda root: planted(forgeries.artifact(), root).upper(),
    "name with a line end": lambda root: planted(forgeries.artifact(), root) + "\n",
    "tensors that overlap": lambda root: planted(forgeries.forged(weights=moved(end__bias=(0, 16))), root),
    "tensors with a gap": lambda root: planted(forgeries.forged(weights=gapped()), root),
    "tensor named twice": lambda root: planted(forgeries.forged(weights=header_twice()), root),
    "metadata in the header": lambda root: planted(
        forgeries.forged(weights=header_with(__metadata__={"format": "pt"})), root
    ),
    "tensor that ends before it begins": lambda root: planted(forgeries.forged(weights=moved(end__bias=(16, 0))), root),
    "tensor at a negative place": lambda root: planted(forgeries.forged(weights=moved(end__bias=(-16, 0))), root),
    "tensor of objects": lambda root: planted(
        forgeries.forged(weights=header_with(**{"end.bias": {"dtype": "O", "shape": [4], "data_offsets": [0, 16]}})),
        root,
    ),
    "numpy file as weights": lambda root: planted(forgeries.forged(weights=_numpy_objects(root)), root),
    "spec of too many levels": lambda root: planted(forgeries.forged(spec=deep_spec()), root),
    "spec with a hazard": lambda root: planted(hazardous(), root),
}


def _numpy_objects(root: Path) -> bytes:
    written = io.BytesIO()
    np.save(written, np.array([Gadget(str(canary(root)))], dtype=object), allow_pickle=True)
    return written.getvalue()


HOSTILE: dict[str, Plant] = _plants()
