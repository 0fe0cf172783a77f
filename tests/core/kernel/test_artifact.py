"""Artifacts: what a loader believes, and every hostile thing that it does not."""

from __future__ import annotations

import copy
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.core.errors import IntegrityError, UsageError
from esper.core.ids import sha256_hex
from esper.core.kernel import (
    ArtifactRefused,
    BlobMissing,
    DirectoryBlobStore,
    KernelArtifact,
    RefusalTeller,
    canonical_json,
    get_artifact,
    load_kernel,
    make_artifact,
    manifest_bytes,
    manifest_digest,
    parse_manifest,
    put_artifact,
)
from esper.core.kernel import _forge as forge
from esper.leyline import messages as ly
from tests.core.kernel.examples import Tree, request, sequential, spec

#: Makes an artifact in a process with other seeds, then loads hostile ones while an audit hook listens.
CHILD = """
import json, sys, torch
torch.manual_seed(99); torch.set_num_threads(2)
from esper.core.errors import IntegrityError
from esper.core.ids import sha256_hex
from esper.core.kernel import load_kernel, manifest_digest
from tests.core.kernel.test_artifact import HOSTILE, artifact
made = artifact()
hostile = [make() for make, _ in HOSTILE.values()]
load_kernel(made)
heard, accepted = [], 0
def listen(event, arguments):
    if event in {"pickle.find_class", "exec", "compile", "subprocess.Popen", "os.system", "ctypes.dlopen"}:
        heard.append([event, str(arguments)[:200]])
sys.addaudithook(listen)
for each in [*hostile, made]:
    try:
        load_kernel(each)
        accepted += 1
    except IntegrityError:
        continue
digests = [manifest_digest(made.manifest), sha256_hex(made.spec), sha256_hex(made.weights)]
print(json.dumps({"digests": digests, "heard": heard, "accepted": accepted}))
"""


@pytest.fixture(scope="module")
def child() -> dict[str, Any]:
    """Return what another process found; one for all tests, because torch takes seconds to import."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CHILD],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        timeout=200,
        env=os.environ | {"PYTHONHASHSEED": "99"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def artifact() -> KernelArtifact:
    """Return an honest artifact."""
    return make_artifact(request(), spec())


def forged(*, spec: bytes | None = None, weights: bytes | None = None) -> KernelArtifact:
    """Return an artifact with other bytes and a manifest whose digests and sizes vouch for them.

    This is what a forge with a valid key but evil intent could sign.
    """
    honest = artifact()
    manifest = copy.deepcopy(honest.manifest)
    spec = honest.spec if spec is None else spec
    weights = honest.weights if weights is None else weights
    manifest.spec_digest, manifest.spec_bytes = sha256_hex(spec), len(spec)
    manifest.weights_digest, manifest.weights_bytes = sha256_hex(weights), len(weights)
    return KernelArtifact(manifest, spec, weights)


def tensors() -> dict[str, np.ndarray[Any, Any]]:
    """Return the weights of the honest artifact."""
    return {name: array.copy() for name, array in safetensors.numpy.load(artifact().weights).items()}


def with_header(header: bytes, data: bytes | None = None) -> bytes:
    """Return a safetensors file with another header, by default before the honest data."""
    honest = artifact().weights
    length = struct.unpack("<Q", honest[:8])[0]
    return struct.pack("<Q", len(header)) + header + (honest[8 + length :] if data is None else data)


def honest_header() -> bytes:
    """Return the header as the forge wrote it."""
    honest = artifact().weights
    return honest[8 : 8 + struct.unpack("<Q", honest[:8])[0]]


def header() -> dict[str, Any]:
    """Return the honest header."""
    parsed: dict[str, Any] = json.loads(honest_header())
    return parsed


def saved(**changes: np.ndarray[Any, Any]) -> bytes:
    """Return the weights with some tensors replaced or added ("__" in a name stands for a dot)."""
    return safetensors.numpy.save(tensors() | {name.replace("__", "."): value for name, value in changes.items()})


def without(name: str) -> bytes:
    """Return the weights less one tensor."""
    return safetensors.numpy.save({key: value for key, value in tensors().items() if key != name})


def edited_spec(**changes: object) -> bytes:
    """Return the spec with other values at its top."""
    return canonical_json(spec() | changes)


def swapped_offsets() -> bytes:
    """Return weights whose header gives one tensor the bytes of another."""
    entries = header()
    entries["end.weight"]["data_offsets"], entries["body.1.weight"]["data_offsets"] = (
        entries["body.1.weight"]["data_offsets"],
        entries["end.weight"]["data_offsets"],
    )
    return with_header(json.dumps(entries).encode())


HOSTILE: dict[str, tuple[Callable[[], KernelArtifact], str]] = {
    "spec empty": (lambda: forged(spec=b""), "no JSON"),
    "spec no JSON": (lambda: forged(spec=b"\x80\x04\x95"), "no JSON"),
    "spec a list": (lambda: forged(spec=b"[]"), "no JSON object"),
    "spec with spaces": (lambda: forged(spec=json.dumps(spec(), sort_keys=True).encode()), "canonical"),
    "spec with a key twice": (lambda: forged(spec=artifact().spec[:-1] + b',"format":1}'), "canonical"),
    "spec with NaN": (lambda: forged(spec=artifact().spec.replace(b"1e-05", b"NaN")), "no JSON"),
    "spec with an endless number": (lambda: forged(spec=b'{"a":' + b"9" * 60_000 + b"}"), "no JSON"),
    "spec nested deep": (lambda: forged(spec=b"[" * 60_000), "nested"),
    "spec oversized": (lambda: forged(spec=b" " * 65_537), "names 65537 bytes"),
    "spec of another op": (lambda: forged(spec=edited_spec(body={"op": "eval"})), "unknown op"),
    "spec of other shapes": (lambda: forged(spec=edited_spec(in_shape=[7])), "cannot take shape"),
    "spec that answers another request": (
        lambda: forged(spec=canonical_json(spec(in_features=7))),
        "the request asked for",
    ),
    "spec of another dtype": (lambda: forged(spec=canonical_json(spec(dtype="float64"))), "the request asked for"),
    "spec of more parameters": (lambda: forged(spec=canonical_json(spec(hidden=50))), "counts"),
    "spec of as many parameters by other names": (
        lambda: forged(spec=edited_spec(body=sequential({"op": "relu"}, *spec()["body"]["children"][:2]))),
        "other tensors",
    ),
    "spec of format 1.0": (lambda: forged(spec=edited_spec(format=1.0)), "format 1.0"),
    "spec with half a character": (
        lambda: forged(spec=artifact().spec.replace(b'"in":6', b'"in":"\\ud800"')),
        "no canonical form",
    ),
    "spec with half a character as shape": (
        lambda: forged(spec=artifact().spec.replace(b'"in_shape":[6]', b'"in_shape":"\\ud800"')),
        "no canonical form",
    ),
    "header with more spaces": (lambda: forged(weights=with_header(honest_header() + b" " * 48)), "no safetensors"),
    "header with a space less": (lambda: forged(weights=with_header(honest_header().rstrip())), "no safetensors"),
    "header in another order": (
        lambda: forged(weights=with_header(json.dumps(dict(reversed(header().items()))).encode())),
        "no safetensors",
    ),
    "header with spaces between": (
        lambda: forged(weights=with_header(json.dumps(header()).encode())),
        "no safetensors",
    ),
    "weights empty": (lambda: forged(weights=b""), "header of None"),
    "weights of seven bytes": (lambda: forged(weights=b"\0" * 7), "header of None"),
    "weights a pickle": (lambda: forged(weights=b"\x80\x04cos\nsystem\n."), "header of"),
    "weights truncated": (lambda: forged(weights=artifact().weights[:-1]), "bytes, the spec asks"),
    "weights cut within the header": (lambda: forged(weights=artifact().weights[:40]), "bytes, the spec asks"),
    "weights with bytes behind": (lambda: forged(weights=artifact().weights + b"\0"), "bytes, the spec asks"),
    "header bomb": (lambda: forged(weights=struct.pack("<Q", 1 << 62) + artifact().weights[8:]), "header of"),
    "header too large": (lambda: forged(weights=with_header(b" " * 200_000)), "header of 200000"),
    "header no JSON": (lambda: forged(weights=with_header(b"\xff" * 64)), "no safetensors"),
    "header nested deep": (lambda: forged(weights=with_header(b"[" * 100_000)), "no safetensors"),
    "header with overlapping offsets": (
        lambda: forged(
            weights=with_header(json.dumps(header() | {"end.bias": header()["body.0.bias"] | {"shape": [4]}}).encode())
        ),
        "no safetensors",
    ),
    "header with offsets beyond the end": (
        lambda: forged(
            weights=with_header(
                json.dumps(
                    header() | {"end.bias": {"dtype": "F32", "shape": [4], "data_offsets": [9_000, 9_016]}}
                ).encode()
            )
        ),
        "no safetensors",
    ),
    "header with a shape that overflows": (
        lambda: forged(
            weights=with_header(
                json.dumps(
                    header() | {"end.bias": {"dtype": "F32", "shape": [1 << 62, 1 << 62], "data_offsets": [0, 16]}}
                ).encode()
            )
        ),
        "other tensors",
    ),
    "tensors of swapped bytes": (lambda: forged(weights=swapped_offsets()), "no safetensors|not zero|other tensors"),
    "tensor missing": (lambda: forged(weights=without("end.bias")), "bytes, the spec asks"),
    "tensor extra": (lambda: forged(weights=saved(extra=np.zeros(1, np.float32))), "bytes, the spec asks"),
    "tensor empty and extra": (lambda: forged(weights=saved(extra=np.zeros(0, np.float32))), "other tensors"),
    "tensor renamed": (
        lambda: forged(weights=artifact().weights.replace(b"end.bias", b"end.bios")),
        "other tensors",
    ),
    "tensor of another shape": (
        lambda: forged(weights=saved(end__weight=np.zeros((5, 4), np.float32))),
        "other tensors",
    ),
    "tensor of another dtype": (
        lambda: forged(weights=saved(end__weight=np.zeros((4, 5), np.int32))),
        "other tensors",
    ),
    "tensor not finite": (
        lambda: forged(weights=saved(body__1__bias=np.array([0, 0, np.nan, 0, 0], np.float32))),
        "not finite",
    ),
    "tensor infinite": (
        lambda: forged(weights=saved(body__0__weight=np.full(6, -np.inf, np.float32))),
        "not finite",
    ),
    "end that acts at once": (
        lambda: forged(weights=saved(end__bias=np.array([0, 0, 0, 1e-30], np.float32))),
        "end.bias is not zero",
    ),
}


@pytest.fixture
def nothing_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test when a loader comes as far as making a module."""

    def built(_plan: object) -> None:
        raise AssertionError("a module was built from a hostile artifact")

    monkeypatch.setattr(forge, "assemble", built)


@pytest.mark.usefixtures("nothing_built")
@pytest.mark.parametrize("what", sorted(HOSTILE))
def test_hostile_artifact_is_refused(what: str) -> None:
    """Bytes that their own manifest vouches for are still refused when they are not honest: one lie at a time."""
    make, message = HOSTILE[what]
    hostile = make()
    with pytest.raises(IntegrityError, match=message):
        load_kernel(hostile)


@pytest.mark.usefixtures("nothing_built")
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("spec_digest", "0" * 64),
        ("spec_digest", ""),
        ("weights_digest", "0" * 64),
        ("weights_digest", "ä"),
        ("spec_bytes", 1),
        ("spec_bytes", 1 << 40),
        ("weights_bytes", 1),
        ("weights_bytes", 1 << 40),
        ("kernel_id", "0" * 64),
        ("guard_digest", "0" * 64),
        ("parameters", 1),
        ("multiply_adds_per_sample", 1),
        ("format_version", 2),
        ("strategy", "inductor"),
    ],
)
def test_manifest_that_lies_is_refused(field: str, value: object) -> None:
    """Every field of a manifest is checked: change one at a time under honest bytes."""
    honest = artifact()
    setattr(honest.manifest, field, value)
    with pytest.raises(IntegrityError):
        load_kernel(honest)


@pytest.mark.usefixtures("nothing_built")
@pytest.mark.parametrize("field", ["spec", "weights"])
def test_digest_comes_before_any_parser(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No parser sees bytes of a wrong digest: break the parsers, change one byte of each part, load."""

    def parsed(*_arguments: object, **_named: object) -> None:
        raise AssertionError("bytes were parsed before their digest was checked")

    honest = artifact()
    content = bytearray(getattr(honest, field))
    content[len(content) // 2] ^= 1
    changed = KernelArtifact(
        **({"manifest": honest.manifest, "spec": honest.spec, "weights": honest.weights} | {field: bytes(content)})
    )
    monkeypatch.setattr(json, "loads", parsed)
    monkeypatch.setattr(safetensors.numpy, "load", parsed)
    with pytest.raises(IntegrityError, match="another SHA-256"):
        load_kernel(changed)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_random_damage_is_accepted_or_crashes(data: st.DataObject) -> None:
    """Bytes changed at random, with digests made to match, end in IntegrityError or in the very same shapes."""
    field = data.draw(st.sampled_from(["spec", "weights"]))
    content = bytearray(getattr(artifact(), field))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    hostile = forged(**{field: bytes(content)})
    try:
        kernel = load_kernel(hostile)
    except IntegrityError:
        return
    assert {name: tuple(value.shape) for name, value in kernel.named_parameters()} == {
        name: value.shape for name, value in tensors().items()
    }


def test_loading_runs_no_code_of_the_artifact(child: dict[str, Any]) -> None:
    """No unpickling, compiling or process while hostile artifacts load: an audit hook in another process listens."""
    assert child["heard"] == []
    assert child["accepted"] == 1


def test_honest_artifact_gives_its_module() -> None:
    """A loaded kernel is the one that was made: zero at first, own parameters, trainable, right weights."""
    made = artifact()
    kernel, other = load_kernel(made), load_kernel(made)
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    assert torch.count_nonzero(kernel(x)) == 0
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in kernel.parameters())
    for name, array in tensors().items():
        assert np.array_equal(kernel.state_dict()[name].numpy(), array)
    with torch.no_grad():
        kernel.end.bias.fill_(1.0)
    assert torch.count_nonzero(other(x)) == 0
    assert kernel.plan.parameters == made.manifest.parameters == sum(array.size for array in tensors().values())


def test_global_randomness_is_left_alone() -> None:
    """Making and loading an artifact draw no global random number: compare the state before and after."""
    torch.manual_seed(7)
    before = torch.get_rng_state()
    load_kernel(artifact())
    assert torch.equal(before, torch.get_rng_state())


def test_same_request_gives_the_same_bytes_in_every_process(child: dict[str, Any]) -> None:
    """Another process with another seed, hash seed and thread count makes the byte-identical artifact."""
    made = artifact()
    assert child["digests"] == [manifest_digest(made.manifest), sha256_hex(made.spec), sha256_hex(made.weights)]


def test_another_request_gives_other_weights() -> None:
    """First weights follow the kernel's id: another parameter value, another draw."""
    other = request()
    other.parameters["width"] = 3.0
    assert make_artifact(other, spec()).weights != artifact().weights
    assert make_artifact(other, spec()).spec == artifact().spec


def test_spec_must_answer_the_request() -> None:
    """An artifact is made only of a spec with the shapes that were asked for: offer another."""
    with pytest.raises(IntegrityError, match="the request asked for"):
        make_artifact(request(out_features=5), spec())


def test_manifest_survives_the_store(tmp_path: Path) -> None:
    """Put an artifact, get it by its digest: the manifest is equal, the digest is that of its bytes."""
    store = DirectoryBlobStore(tmp_path)
    made = artifact()
    reference = put_artifact(store, made)
    assert reference == manifest_digest(made.manifest) == sha256_hex(manifest_bytes(made.manifest))
    assert get_artifact(store, reference) == made
    assert parse_manifest(manifest_bytes(made.manifest)) == made.manifest


def test_artifact_with_a_missing_part_is_missing(tmp_path: Path) -> None:
    """Each part is needed: remove one at a time."""
    for name in ("spec_digest", "weights_digest"):
        store = DirectoryBlobStore(tmp_path / name)
        made = artifact()
        reference = put_artifact(store, made)
        digest = getattr(made.manifest, name)
        (tmp_path / name / digest[:2] / digest).unlink()
        with pytest.raises(BlobMissing):
            get_artifact(store, reference)


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields.pop("strategy"),
        lambda fields: fields.update(code="import os"),
        lambda fields: fields.update(kernel_id=5),
        lambda fields: fields.update(parameters="5"),
        lambda fields: fields.update(parameters=-1),
        lambda fields: fields.update(parameters=1 << 80),
        lambda fields: fields.update(parameters=True),
        lambda fields: fields.update(request=[]),
        lambda fields: fields["request"].pop("layout"),
        lambda fields: fields["request"].update(layout=None),
        lambda fields: fields["request"].update(in_shape="6"),
        lambda fields: fields["request"].update(in_shape=[6.0]),
        lambda fields: fields["request"].update(in_shape=[0]),
        lambda fields: fields["request"].update(parameters=[]),
        lambda fields: fields["request"].update(parameters={"width": "2"}),
        lambda fields: fields["request"].update(parameters={"width": 2}),
        lambda fields: fields["request"].update(out_shape=[5], in_shape=[7]),
    ],
)
def test_malformed_manifest_is_refused(change: Callable[[Tree], object]) -> None:
    """A stored manifest is read strictly: change one thing at a time."""
    fields = json.loads(manifest_bytes(artifact().manifest))
    change(fields)
    with pytest.raises(IntegrityError, match="manifest is refused"):
        parse_manifest(canonical_json(fields))


@pytest.mark.parametrize("field", ["spec_digest", "weights_digest", "guard_digest", "kernel_id", "strategy"])
def test_half_a_character_is_refused_where_a_name_belongs(field: str, tmp_path: Path) -> None:
    """Goal: what no UTF-8 can say is refused and told like all else. Method: a lone surrogate in each text field."""
    store, fields = DirectoryBlobStore(tmp_path), json.loads(manifest_bytes(artifact().manifest))
    content = json.dumps(fields | {field: "\ud800"}, sort_keys=True, separators=(",", ":")).encode()
    told: list[ly.KernelIntegrityFailed] = []
    teller = RefusalTeller(lambda event, _key: told.append(event))
    with pytest.raises(ArtifactRefused) as caught:
        get_artifact(store, store.put(content))
    assert teller.tell("k", "\ud800", caught.value)
    assert told[0].part == "manifest"
    assert told[0].artifact_ref == "\\ud800"
    with pytest.raises(UsageError, match="no canonical form"):
        canonical_json({"name": "\udfff"})
    assert canonical_json({"name": "\U0001f331 \\ud800"}) == b'{"name":"\\ud83c\\udf31 \\\\ud800"}'


def test_oversized_manifest_is_refused_unread() -> None:
    """A manifest is small: one of 65 KiB is refused before it is parsed."""
    with pytest.raises(IntegrityError, match="at most 65536"):
        parse_manifest(b"[" * 66_560)


def test_manifest_of_an_impossible_request_is_refused() -> None:
    """A manifest for what nobody can ask for is refused: take away the shape of the request."""
    honest = artifact()
    honest.manifest.request.ClearField("in_shape")
    with pytest.raises(IntegrityError, match="in_shape"):
        load_kernel(honest)
