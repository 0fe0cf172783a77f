"""Many networks of one shape on a leading dimension: their parameters, their forward, their optimiser.

What belongs to one member lies in one row of every tensor, and no operation mixes rows.
"""

from esper.core.stacking._adam import ADAM_NUMBERS, AdamMoments, adam_table
from esper.core.stacking._host import StackedHost, cross_entropies, hits
from esper.core.stacking._parameters import StackedParameters
from esper.core.stacking._ports import MemberGrafts, StackGrafts
from esper.core.stacking._programs import Program, Tap, program_of
from esper.core.stacking._replay import Recorder, ReplayCounts, StepLoop, recorder_for
from esper.core.stacking._rows import add_rows, fetched, finite_rows, per_member, take_rows
from esper.core.stacking._steps import StepClock

__all__ = [
    "ADAM_NUMBERS",
    "AdamMoments",
    "MemberGrafts",
    "Program",
    "Recorder",
    "ReplayCounts",
    "StackGrafts",
    "StackedHost",
    "StackedParameters",
    "StepClock",
    "StepLoop",
    "Tap",
    "adam_table",
    "add_rows",
    "cross_entropies",
    "fetched",
    "finite_rows",
    "hits",
    "per_member",
    "program_of",
    "recorder_for",
    "take_rows",
]
