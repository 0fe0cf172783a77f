"""The risk gate: what stands between a policy's proposal and the command that a run gets."""

from esper.tamiyo.risk._gate import Verdict, judge
from esper.tamiyo.risk._limits import RiskLimits, without_limits
from esper.tamiyo.risk._rules import QUARANTINED, Case
from esper.tamiyo.risk._sources import RiskSources
from esper.tamiyo.risk._surroundings import NOTHING_SAID, Alarm, BlueprintFacts, Surroundings

__all__ = [
    "NOTHING_SAID",
    "QUARANTINED",
    "Alarm",
    "BlueprintFacts",
    "Case",
    "RiskLimits",
    "RiskSources",
    "Surroundings",
    "Verdict",
    "judge",
    "without_limits",
]
