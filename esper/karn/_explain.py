"""What a blueprint is made of and what it costs, computed from its spec; what it took is read from the log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from esper.core.kernel import plan_spec
from esper.karn._blueprint import Blueprint
from esper.leyline import messages as ly
from esper.oona import Event, Fabric

_CATALOG: Final = "kernel-catalog"
#: Shapes of one sample that figures are stated for where nobody asks for others: middling ones of small hosts.
STATED_SHAPES: Final[Mapping[str, tuple[int, ...]]] = {
    "vector": (64,),
    "sequence": (32, 64),
    "map1d": (32, 64),
    "map2d": (32, 16, 16),
}


@dataclass(frozen=True)
class Cost:
    """What a blueprint is at one shape of one sample."""

    layout: str
    shape: tuple[int, ...]
    #: Words of the kernel vocabulary that it is made of, with how often each stands there, in order of appearance.
    words: Mapping[str, int]
    parameter_count: int
    multiply_adds: int


@dataclass(frozen=True)
class Latency:
    """One measurement of one of the blueprint's kernels, as the log has it; milliseconds of wall time."""

    kernel_id: str
    layout: str
    shape: tuple[int, ...]
    #: Way of running it and direction, "eager.forward" for example.
    profile: str
    batch: int
    samples: int
    p50_ms: float
    p95_ms: float
    device: str


def middle(blueprint: Blueprint) -> dict[str, float]:
    """Return the middle of the bounds of each parameter."""
    return {name: (low + high) / 2.0 for name, (low, high) in blueprint.parameters.items()}


def cost(blueprint: Blueprint, *, layout: str, shape: Sequence[int], parameters: Mapping[str, float]) -> Cost:
    """Return what the blueprint is at this shape; pure, nothing is built.

    Raises:
        BlueprintError, UsageError: as `Blueprint.spec`.
    """
    spec = blueprint.spec(layout=layout, shape=shape, parameters=parameters)
    plan = plan_spec(spec)
    words = Counter(word for part in ("body", "end") for word in _words(spec[part]))
    return Cost(layout, tuple(shape), dict(words), plan.parameters, plan.multiply_adds_per_sample)


def latencies(fabric: Fabric, blueprint_id: str) -> list[Latency]:
    """Return every measurement that the log holds of the blueprint's kernels, in the order of the log.

    Raises:
        NotReadyError, BrokerUnavailable: the topic could not be read to its end.
    """
    partitions = range(fabric.topics[_CATALOG].partitions)
    with fabric.reader({(_CATALOG, partition): "begin" for partition in partitions}) as reader:
        return measured(reader.read_to_end(), blueprint_id)


def measured(events: Sequence[Event], blueprint_id: str) -> list[Latency]:
    """Return the measurements among events of the topic kernel-catalog; pure."""
    requests: dict[str, ly.KernelRequestSpec] = {}
    found = []
    for event in events:
        message = event.message
        if isinstance(message, ly.KernelCatalogUpdate) and message.blueprint_id == blueprint_id:
            requests[message.kernel_id] = message.manifest.request
        elif isinstance(message, ly.BenchmarkReport) and message.benchmark.blueprint_id == blueprint_id:
            report = message.benchmark
            found += [
                _latency(report.kernel_id, requests, each.name, each.latency, report.platform.device or "cpu")
                for each in report.profiles
            ]
    return list(dict.fromkeys(found))  # A kernel that is asked for again ends again, with the figures that it has.


def _latency(
    kernel_id: str,
    requests: Mapping[str, ly.KernelRequestSpec],
    profile: str,
    figures: ly.LatencyFigures,
    device: str,
) -> Latency:
    request = requests.get(kernel_id, ly.KernelRequestSpec())
    return Latency(
        kernel_id,
        request.layout,
        tuple(request.in_shape),
        profile,
        figures.batch,
        figures.samples,
        figures.p50_ms,
        figures.p95_ms,
        device,
    )


def _words(node: Any) -> Iterator[str]:  # noqa: ANN401 - a node of a spec is any JSON
    if isinstance(node, Mapping):
        if "op" in node:
            yield str(node["op"])
        for value in node.values():
            yield from _words(value)
    elif isinstance(node, list | tuple):
        for one in node:
            yield from _words(one)
