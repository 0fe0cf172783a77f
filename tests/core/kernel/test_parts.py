"""Compiled parts: who may open one, which one is used, and what is refused before anything is opened."""

from __future__ import annotations

import pytest

from esper.core.ids import sha256_hex
from esper.core.kernel import COMPILED_PART, ArtifactRefused, check_part, choose_part, pack_part, unpack_part, why_eager
from esper.leyline import messages as ly

HOME = "0" * 32
HERE = ly.Platform(torch_version="2.15.0", device="cpu", isa="AVX512", threads=1)
CONTENT = pack_part([b"forward", b"backward"])
KIND = ly.COMPILED_KIND_AOT_TRAIN_PACKAGE


def record(**changes: object) -> ly.KernelPartCompiled:
    """Return the record of a part that is as good as can be, or changed."""
    fields: dict[str, object] = {
        "artifact_ref": "a",
        "kind": KIND,
        "part_digest": sha256_hex(CONTENT),
        "part_bytes": len(CONTENT),
        "forge": HOME,
        "platform": HERE,
        "parity": ly.ParityFigures(tolerance=1e-5, passed=True),
        "compile_ms": 1000.0,
        "warm_compile_ms": 10.0,
        "speedup": 2.0,
        "chosen": True,
    }
    return ly.KernelPartCompiled(**(fields | changes))  # type: ignore[arg-type]  # as the message has them


def test_a_good_part_is_opened() -> None:
    """Goal: what the forge listed passes, and comes back as it was. Method: check and unpack it."""
    check_part(record(), CONTENT, artifact_ref="a", home_id=HOME, platform=HERE)
    assert unpack_part(CONTENT, KIND) == [b"forward", b"backward"]


@pytest.mark.parametrize(
    ("changes", "content", "cause"),
    [
        ({"forge": "1" * 32}, CONTENT, "this is home"),
        ({"forge": ""}, CONTENT, "this is home"),
        ({"artifact_ref": "b"}, CONTENT, "belongs to artifact"),
        ({"platform": ly.Platform(torch_version="2.14", device="cpu", isa="AVX512", threads=1)}, CONTENT, "2.14"),
        ({"platform": ly.Platform(torch_version="2.15.0", device="cpu", isa="AVX2", threads=1)}, CONTENT, "AVX2"),
        ({"platform": ly.Platform(torch_version="2.15.0", device="cpu", isa="AVX512", threads=2)}, CONTENT, "thread"),
        ({"parity": ly.ParityFigures(tolerance=1e-5, passed=False)}, CONTENT, "equal to eager"),
        ({"parity": ly.ParityFigures(tolerance=1.0, passed=True)}, CONTENT, "equal to eager"),
        ({}, CONTENT[:-1], "bytes, the record says"),
        ({}, CONTENT + b"x", "bytes, the record says"),
        ({}, CONTENT[:-1] + b"X", "another SHA-256"),
        ({"part_digest": "0" * 64}, CONTENT, "another SHA-256"),
    ],
)
def test_a_part_that_is_not_ours_is_refused(changes: dict[str, object], content: bytes, cause: str) -> None:
    """Goal: nothing foreign or altered is opened. Method: change one thing of the record or of the bytes each."""
    with pytest.raises(ArtifactRefused, match=cause) as caught:
        check_part(record(**changes), content, artifact_ref="a", home_id=HOME, platform=HERE)
    assert caught.value.part == COMPILED_PART


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04",
        CONTENT[:-1],
        pack_part([b"forward"]),
        pack_part([b"a", b"b", b"c"]),
        CONTENT + b"\0\0",
        pack_part([])[:-1] + b"\xff" * 9,
    ],
)
def test_bytes_that_are_no_part_are_refused(content: bytes) -> None:
    """Goal: the container is read exactly. Method: cut it, add to it, lie about lengths, give another number."""
    with pytest.raises(ArtifactRefused):
        unpack_part(content, KIND)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, ""),
        ({"speedup": 1.1}, ""),
        ({"speedup": 1.0999}, "slow"),
        ({"speedup": float("nan")}, "slow"),
        ({"warm_compile_ms": 501.0}, "cold"),
        ({"parity": ly.ParityFigures(tolerance=1e-5, backward_abs_max=2e-5)}, "parity"),
    ],
)
def test_compiled_has_to_earn_its_place(changes: dict[str, object], word: str) -> None:
    """Goal: equal, 1.1 times as fast, and open in half the time, or eager. Method: miss each by a little."""
    assert why_eager(record(**changes)).partition(":")[0] == word


def test_the_last_word_here_counts() -> None:
    """Goal: one part at most, of this home and platform. Method: records of others, and two verdicts of this forge."""
    asked = {"kind": KIND, "artifact_ref": "a", "home_id": HOME, "platform": HERE}
    mine, foreign = record(), record(forge="1" * 32)
    assert choose_part([mine, foreign], **asked) == mine  # type: ignore[arg-type]  # as the parameters are called
    assert choose_part([foreign], **asked) is None  # type: ignore[arg-type]  # as above
    assert choose_part([mine, record(chosen=False)], **asked) is None  # type: ignore[arg-type]  # as above
