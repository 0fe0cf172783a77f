"""Requests: what names a kernel, and what no kernel can answer."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

import pytest

from esper.core.errors import UsageError
from esper.core.kernel import guard_digest, kernel_id, make_request
from esper.leyline import messages as ly
from tests.core.kernel.examples import request


def test_id_is_fixed_for_ever() -> None:
    """Logs hold kernel ids: hash the canonical form of a known request as it is written down here."""
    canonical = (
        b'{"blueprint_id":"EXAMPLE","dtype":"float32","in_shape":[6],"layout":"vector","out_shape":[4],'
        b'"parameters":{"width":2.0}}'
    )
    assert kernel_id(request()) == hashlib.sha256(canonical).hexdigest()


def test_id_depends_on_every_field_and_nothing_else() -> None:
    """Each field changes the id, the order of parameters does not: compare all variants pairwise."""
    variants = [
        request(),
        request(in_features=7),
        request(out_features=5),
        request(dtype="float64"),
        make_request("OTHER", {"width": 2.0}, layout="vector", in_shape=[6], out_shape=[4]),
        make_request("EXAMPLE", {"width": 2.5}, layout="vector", in_shape=[6], out_shape=[4]),
        make_request("EXAMPLE", {"depth": 2.0}, layout="vector", in_shape=[6], out_shape=[4]),
        make_request("EXAMPLE", {}, layout="vector", in_shape=[6], out_shape=[4]),
    ]
    for one, other in itertools.combinations(variants, 2):
        assert kernel_id(one) != kernel_id(other)
    ordered = [{"a": 1.0, "b": 2.0}, {"b": 2.0, "a": 1.0}]
    ids = {kernel_id(make_request("X", parameters, layout="vector", in_shape=[6])) for parameters in ordered}
    assert len(ids) == 1


def test_negative_zero_is_zero() -> None:
    """Equal numbers name equal kernels: -0.0 and 0.0."""
    one, other = (make_request("X", {"bias": bias}, layout="vector", in_shape=[6]) for bias in (0.0, -0.0))
    assert kernel_id(one) == kernel_id(other)


def test_output_shape_is_the_input_shape_unless_told() -> None:
    """A request without an output shape keeps it: read it back."""
    assert make_request("X", {}, layout="vector", in_shape=[6]).out_shape == [6]


def test_guard_tells_what_is_accepted() -> None:
    """The guard digest is that of the input side: the output shape leaves it alone, the input's changes it."""
    assert guard_digest(request()) == guard_digest(request(out_features=9))
    assert guard_digest(request()) != guard_digest(request(in_features=9))
    assert guard_digest(request()) != guard_digest(request(dtype="float64"))


@pytest.mark.parametrize(
    "changes",
    [
        {"layout": "sequence"},
        {"layout": ""},
        {"in_shape": []},
        {"in_shape": [6, 6]},
        {"in_shape": [0]},
        {"in_shape": [-1]},
        {"in_shape": [1 << 17]},
        {"in_shape": [1 << 40]},
        {"in_shape": [2.5]},
        {"in_shape": ["6"]},
        {"out_shape": [0]},
        {"dtype": "float16"},
        {"dtype": ""},
    ],
)
def test_impossible_request_is_refused(changes: dict[str, Any]) -> None:
    """No kernel is asked for that cannot be: one impossible field at a time."""
    with pytest.raises(UsageError, match="EXAMPLE"):
        request(**changes)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_parameter_that_is_not_finite_is_refused(value: float) -> None:
    """A parameter is a finite number: NaN and both infinities, also in a request that came from elsewhere."""
    with pytest.raises(UsageError, match="width"):
        make_request("EXAMPLE", {"width": value}, layout="vector", in_shape=[6])
    with pytest.raises(UsageError, match="width"):
        kernel_id(
            ly.KernelRequestSpec(
                blueprint_id="X",
                parameters={"width": value},
                layout="vector",
                in_shape=[6],
                out_shape=[6],
                dtype="float32",
            )
        )


@pytest.mark.parametrize("blueprint_id", ["", "x" * 129])
def test_blueprint_must_be_named(blueprint_id: str) -> None:
    """A request names its blueprint in 1 to 128 characters: none, and too many."""
    with pytest.raises(UsageError, match="named"):
        make_request(blueprint_id, {}, layout="vector", in_shape=[6])


def test_too_many_parameters_are_refused() -> None:
    """A request stays small: 33 parameters."""
    with pytest.raises(UsageError, match="33 parameters"):
        make_request("X", {f"p{n}": 1.0 for n in range(33)}, layout="vector", in_shape=[6])
