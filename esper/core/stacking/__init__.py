"""Many networks of one shape on a leading dimension: their parameters, their forward, their optimiser.

What belongs to one member lies in one row of every tensor, and no operation mixes rows.
"""

from esper.core.stacking._adam import AdamMoments, AdamTable, adam_table
from esper.core.stacking._host import StackedHost, cross_entropies, hits
from esper.core.stacking._parameters import StackedParameters
from esper.core.stacking._ports import MemberGrafts, StackGrafts
from esper.core.stacking._programs import Program, Tap, program_of
from esper.core.stacking._rows import add_rows, per_member, take_rows
from esper.core.stacking._steps import StepClock

__all__ = [
    "AdamMoments",
    "AdamTable",
    "MemberGrafts",
    "Program",
    "StackGrafts",
    "StackedHost",
    "StackedParameters",
    "StepClock",
    "Tap",
    "adam_table",
    "add_rows",
    "cross_entropies",
    "hits",
    "per_member",
    "program_of",
    "take_rows",
]
