"""What it costs a loop to be event-sourced: epochs of a second under `esper.grow`, in turns with the bare loop.

python -m benchmarks.event_loop [--device cpu] [--pairs 30] [--seconds 1.0] [--digest-every 1] [--json]

Both loops train the same network and look at the same held-out batch at each epoch's end; the one under `grow` (policy
"noop") also appends its state to a real broker, waits for the policy's command in another process, and appends the
outcome. A second bare loop takes turns with them (A/A). Judged is the median over epochs of the ratio within a turn.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

import esper
from benchmarks._interleaved import detail, interleaved, ratio
from benchmarks._report import at_most, report
from benchmarks._system import broker_only
from benchmarks._training_arms import Arm, host_kinds

_OVERHEAD_MAX: Final = 1.03
_CALIBRATION_STEPS: Final = 20


@dataclass
class Epochs:
    """A bare loop of epochs; `steps` here counts epochs."""

    arm: Arm
    steps_per_epoch: int

    def steps(self, count: int) -> None:
        """Train `count` epochs, each with a look at the held-out batch."""
        for _ in range(count):
            self.arm.steps(self.steps_per_epoch)
            self.arm.model.eval()
            with torch.no_grad():
                float(functional.cross_entropy(self.arm.model(self.arm.inputs), self.arm.targets))
            self.arm.model.train()


@dataclass
class RecordedEpochs:
    """The same loop under `grow`."""

    arm: Arm
    steps_per_epoch: int
    run: esper.GrowRun

    def steps(self, count: int) -> None:
        """Train `count` epochs and go through the edge of each."""
        batch: tuple[Tensor, Tensor] = (self.arm.inputs, self.arm.targets)
        for _ in range(count):
            for _ in range(self.steps_per_epoch):
                self.arm.step()
                self.run.step(batch)
            self.arm.wait()
            self.run.end_epoch({"loss": 0.0})


def main() -> int:
    """Measure all three arms in one run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=1.0, help="how long an epoch takes")
    parser.add_argument("--digest-every", type=int, default=1, help="epochs between two digests of the weights")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    kind = host_kinds(device)["mlp"]
    bare, again, recorded = Arm(kind, device), Arm(kind, device), Arm(kind, device)
    bare.steps(3)
    began = time.perf_counter()
    bare.steps(_CALIBRATION_STEPS)
    each = (time.perf_counter() - began) / _CALIBRATION_STEPS
    steps = max(1, round(arguments.seconds / each))
    with (
        broker_only() as fabric,
        esper.grow(
            recorded.model,
            optimizer=recorded.optimizer,
            loss_fn=functional.cross_entropy,
            probe=[(recorded.inputs, recorded.targets)],
            policy="noop",
            digest_every_epochs=arguments.digest_every,
            settings=fabric.settings,
        ) as run,
    ):
        arms = {
            "bare": Epochs(bare, steps),
            "bare_again": Epochs(again, steps),
            "recorded": RecordedEpochs(recorded, steps, run),
        }
        times = interleaved(arms, rounds=arguments.pairs, steps=1)
    found, noise = ratio(times, "recorded", "bare"), ratio(times, "bare_again", "bare")
    weights_mb = sum(each.nbytes for each in recorded.model.parameters()) / 1e6
    claims = [at_most("event_sourced_epoch", found.median, "x", peer=1.0, bound=_OVERHEAD_MAX)]
    details = {
        "steps_per_epoch": steps,
        "recorded": detail(found),
        "again": detail(noise),
        "pairs": arguments.pairs,
        "digest_every_epochs": arguments.digest_every,
        "weights_mb": weights_mb,
    }
    return report(f"event_loop_{device.type}", claims, details, as_json=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
