"""The one shape in which every benchmark reports: the machine, and claims that are judged as ratios."""

from __future__ import annotations

import json
import os
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Claim:
    """One figure beside its peer, measured in the same run; `holds` judges the ratio alone."""

    name: str
    value: float
    unit: str
    bound: float
    peer: float
    ratio: float
    holds: bool


def at_most(name: str, value: float, unit: str, *, peer: float, bound: float) -> Claim:
    """Return a claim that `value` is at most `bound` times `peer`."""
    ratio = value / peer
    return Claim(name, value, unit, bound, peer, ratio, ratio <= bound)


def at_least(name: str, value: float, unit: str, *, peer: float, bound: float) -> Claim:
    """Return a claim that `value` is at least `bound` times `peer`."""
    ratio = value / peer
    return Claim(name, value, unit, bound, peer, ratio, ratio >= bound)


def at_least_above(name: str, value: float, unit: str, *, peer: float, bound: float) -> Claim:
    """Return a claim that `value` lies at least `bound` above `peer`, judged by `value - peer`."""
    return Claim(name, value, unit, bound, peer, value / peer, value - peer >= bound)


def machine() -> dict[str, Any]:
    """Return what the figures were taken on."""
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 1024**3, 1),
    }


def report(name: str, claims: list[Claim], details: dict[str, Any], *, as_json: bool) -> int:
    """Write results/<name>.json, print it or a table, and return 0 when every claim holds."""
    document = {"machine": machine(), "claims": [asdict(claim) for claim in claims], "details": details}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    if as_json:
        json.dump(document, sys.stdout)
        sys.stdout.write("\n")
    else:
        for claim in claims:
            verdict = "holds" if claim.holds else "DOES NOT HOLD"
            figures = f"{claim.value:.4g} {claim.unit}, peer {claim.peer:.4g}, ratio {claim.ratio:.2f}"
            print(f"{claim.name}: {figures}: {verdict}")
    return 0 if all(claim.holds for claim in claims) else 1
