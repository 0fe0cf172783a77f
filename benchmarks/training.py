"""What growing costs a training step: empty slots, monitoring, a seed in training, a graft, beside the same bare loop.

python -m benchmarks.training [--device cpu] [--hosts mlp,transformer] [--rounds 40] [--steps 10] [--compiled] [--json]

Arms of one host take turns, in an order drawn anew each round; what is judged is the median over rounds of the
ratio within a round, with a bootstrap interval, and a second bare loop stands beside them (A/A): what differs between
two equal loops is noise. One fixed batch, so that no data loading is timed. Seeds are of the shipped blueprint BP003.

* empty slots: Kasmina at the loop's side, no seed: at most 1 % above the bare loop;
* monitoring: a seed in TRAINING, a shadow pass each 4th step, with and without the isolation monitor: at most 2 %;
* a seed in TRAINING: at most 10 % above bare plus the multiply-adds of its own passes;
* a graft: what an edge that germinates or begins to blend takes longer than an edge that does not, against one step;
  and what the first steps after it take longer than as many later on, which holds what a germination puts off: with
  the device left to itself, and with a wait after each, as loops take them that read their loss each step;
* with --device cuda also the memory that a culled seed leaves behind, which must be none.

`--compiled` trains a compiled host, with the bare loop compiled as well; grafts must compile nothing anew.
Written to results/training_DEVICE.json.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import torch
import torch._dynamo.utils

from benchmarks._interleaved import detail, interleaved, ratio
from benchmarks._report import Claim, at_most, report
from benchmarks._training_arms import Arm, GrowingArm, HostKind, host_kinds, share_of_seed
from esper.kasmina import GateLimits, KasminaConfig
from esper.kasmina.grafting._passes import Isolation
from esper.leyline import messages as ly

_EMPTY_MAX, _MONITOR_MAX, _TRAINING_MAX, _STALL_STEPS_MAX = 1.01, 1.02, 1.10, 1.0
#: Each so many host steps a seed in TRAINING gets a shadow pass.
_SHADOW_EVERY: Final = 4
#: Germinations (each culled again) that a stall is measured over.
_GRAFTS: Final = 7
#: What is timed is not judged: a seed on one fixed batch of noise need not learn in a straight line.
_LENIENT: Final = GateLimits(shadow_loss_rise_max=100.0)
_SPARSE: Final = KasminaConfig(shadow_every=_SHADOW_EVERY, embargo_epochs=1, limits=_LENIENT)

#: Epochs after which a culled seed must be gone.
_EPOCHS_MAX: Final = 20

Found = tuple[list[Claim], dict[str, Any]]


def overheads(kind: HostKind, device: torch.device, *, compiled: bool, rounds: int, steps: int, name: str) -> Found:
    """Time the steps of all arms of one host in turns."""

    def growing(isolation: Isolation | None = None) -> GrowingArm:
        return GrowingArm(kind, device, compiled=compiled, config=_SPARSE, isolation=isolation)

    bare, training, unmonitored = Arm(kind, device, compiled=compiled), growing(), growing(Isolation(monitor=False))
    again = Arm(kind, device, compiled=compiled)
    arms: dict[str, Arm] = {
        "bare": bare,
        "bare_again": again,
        "empty": growing(),
        "training": training,
        "unmonitored": unmonitored,
    }
    for one in arms.values():
        one.steps(3)
    training.germinate()
    unmonitored.germinate()
    share = share_of_seed(training, bare, 2 * _SHADOW_EVERY)
    times = interleaved(arms, rounds=rounds, steps=steps)
    pairs = {
        "empty": ratio(times, "empty", "bare"),
        "again": ratio(times, "bare_again", "bare"),
        "monitor": ratio(times, "training", "unmonitored"),
        "training": ratio(times, "training", "bare"),
    }

    def claim(what: str, key: str, bound: float, *, allowed: float = 1.0) -> Claim:
        found = pairs[key]
        # The ratio is the median over rounds, which the ratio of the two medians need not be.
        return at_most(f"{name}_{what}", found.median, "x", peer=allowed, bound=bound)

    claims = [
        claim("empty_slots", "empty", _EMPTY_MAX),
        claim("monitor", "monitor", _MONITOR_MAX),
        claim("seed_in_training", "training", _TRAINING_MAX, allowed=1 + share),
    ]
    details = {key: detail(found) for key, found in pairs.items()} | {"share_of_seed": round(share, 4)}
    return claims, details


def _edge_ms(arm: GrowingArm, operation: ly.SeedOperation | None = None, *, seed_id: str = "") -> tuple[float, str]:
    """Return the milliseconds of an edge that carries out an operation (None: nothing), and the seed it was about."""
    began = time.perf_counter()
    found = arm.edge(operation, seed_id=seed_id)
    arm.wait()
    return (time.perf_counter() - began) * 1000, found


def _graft(arm: GrowingArm, *, steps: int) -> dict[str, float]:
    """Germinate a seed, let it blend and cull it; return the milliseconds of steps and edges on the way."""
    taken = {"step": statistics.median(_step_ms(arm) for _ in range(steps)), "edge": _edge_ms(arm)[0]}
    taken["germinate"], seed_id = _edge_ms(arm, ly.SEED_OP_GERMINATE)
    stall = arm.manager.stalls[-1]
    taken |= {"germinate_fetch": stall.fetch_ms, "germinate_decide": stall.decide_ms, "germinate_fold": stall.fold_ms}
    taken["first_waiting_steps"] = sum(_step_ms(arm) for _ in range(_SHADOW_EVERY))
    taken["later_waiting_steps"] = sum(_step_ms(arm) for _ in range(_SHADOW_EVERY))
    arm.until_grafting(steps)
    taken["edge_in_training"] = _edge_ms(arm)[0]
    arm.steps(steps)
    taken["blend"], _ = _edge_ms(arm, ly.SEED_OP_START_GRAFTING, seed_id=seed_id)
    taken["first_step_of_blend"] = _step_ms(arm)
    arm.steps(2)
    arm.edge(ly.SEED_OP_CULL, seed_id=seed_id)
    _until_free(arm)
    return taken | _first_steps(arm)


def _first_steps(arm: GrowingArm) -> dict[str, float]:
    """Return the milliseconds of a germination's first steps and of as many later ones, a shadow pass in each."""
    seed_id = arm.germinate()
    taken = {"first_steps": _step_ms(arm, _SHADOW_EVERY), "later_steps": _step_ms(arm, _SHADOW_EVERY)}
    arm.edge(ly.SEED_OP_CULL, seed_id=seed_id)
    _until_free(arm)
    return taken


def _until_free(arm: GrowingArm) -> None:
    """Train on until the slot of a culled seed is free again."""
    for _ in range(_EPOCHS_MAX):
        arm.steps(2)
        arm.edge()
        if not any(state.seed_id for state in arm.manager.slot_states()):
            return
    raise RuntimeError("the slot of a culled seed did not become free")


def stalls(kind: HostKind, device: torch.device, *, compiled: bool, steps: int, name: str) -> Found:
    """Measure what a graft holds training up for, in steps."""
    arm = GrowingArm(kind, device, compiled=compiled, config=_SPARSE)
    arm.steps(3)
    _graft(arm, steps=steps)  # warms everything up
    graphs = _graphs()
    grafts = [_graft(arm, steps=steps) for _ in range(_GRAFTS)]
    graphs = _graphs() - graphs
    middle = {key: statistics.median(each[key] for each in grafts) for key in grafts[0]}

    def stall(key: str, beside: str) -> float:
        return max(0.0, statistics.median(each[key] - each[beside] for each in grafts))

    step = middle["step"]
    claims = [
        at_most(f"{name}_{what}", stall(key, beside), "ms", peer=step, bound=_STALL_STEPS_MAX)
        for what, key, beside in (
            ("germination_stall", "germinate", "edge"),
            ("germination_stall_of_first_steps", "first_steps", "later_steps"),
            ("germination_stall_of_first_waiting_steps", "first_waiting_steps", "later_waiting_steps"),
            ("blend_stall", "blend", "edge_in_training"),
            ("stall_of_first_step", "first_step_of_blend", "step"),
        )
    ]
    if compiled:
        claims.append(at_most(f"{name}_graphs_of_grafts", float(graphs), "graphs", peer=1.0, bound=0.0))
    return claims, {f"{key}_ms": round(value, 3) for key, value in middle.items()}


def _graphs() -> int:
    """Return how many graphs torch has compiled in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])  # noqa: SLF001 - torch counts them nowhere else


def _step_ms(arm: GrowingArm, steps: int = 1) -> float:
    began = time.perf_counter()
    arm.steps(steps)
    return (time.perf_counter() - began) * 1000


def memory_left(kind: HostKind, device: torch.device, *, name: str) -> Found:
    """Compare the device memory in use before a seed was grafted and after it was culled."""
    # What the cache of kernels holds is there on purpose, within a budget of its own.
    arm = GrowingArm(kind, device, config=replace(_SPARSE, cache_bytes_max=0))
    arm.steps(3)
    _live(arm)  # What libraries set aside for themselves at first use is nobody's leak.

    def in_use() -> int:
        gc.collect()
        arm.wait()
        return torch.cuda.memory_allocated(device)

    before = in_use()
    during = _live(arm, in_use)
    after = in_use()
    claims = [at_most(f"{name}_memory_after_cull", float(after), "bytes", peer=float(before), bound=1.0)]
    return claims, {"before": before, "with_seed": during, "after": after}


def _live(arm: GrowingArm, look: Callable[[], int] = int) -> int:
    """Lead a seed from its germination to its cull, until its slot is free; return what `look` says while it blends."""
    seed_id = arm.germinate()
    arm.until_grafting(_SHADOW_EVERY)
    arm.edge(ly.SEED_OP_START_GRAFTING, seed_id=seed_id)
    arm.steps(2)
    seen = look()
    arm.edge(ly.SEED_OP_CULL, seed_id=seed_id)
    _until_free(arm)
    return seen


def main() -> int:
    """Run all arms of all hosts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--hosts", default="mlp,transformer")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    claims: list[Claim] = []
    details: dict[str, Any] = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "compiled": arguments.compiled,
    }
    for name in arguments.hosts.split(","):
        kind = host_kinds(device)[name]
        found = {
            "steps": overheads(
                kind, device, compiled=arguments.compiled, rounds=arguments.rounds, steps=arguments.steps, name=name
            ),
            "stalls": stalls(kind, device, compiled=arguments.compiled, steps=arguments.steps, name=name),
        }
        if device.type == "cuda":
            found["memory"] = memory_left(kind, device, name=name)
        for what, (found_claims, found_details) in found.items():
            claims += found_claims
            details[f"{name}_{what}"] = found_details
    variant = f"{device.type}_compiled" if arguments.compiled else device.type
    return report(f"training_{variant}", claims, details, as_json=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
