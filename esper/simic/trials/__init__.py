"""What an evaluation compares and what it shows: plans, the arms' routines, statistics, the verdict and the report."""

from esper.simic.trials._arms import Result, Routine, Unfit, Wanted, routine
from esper.simic.trials._evidence import Evidence, Problem, TrainedOn, checked, gather, pairs_of
from esper.simic.trials._markdown import markdown
from esper.simic.trials._places import Place, place_of
from esper.simic.trials._plan import LEARNED, POLICIES, POPULATION, SEARCH, Cell, Pair, Plan, load_plan, plan_of
from esper.simic.trials._plots import draw_curves
from esper.simic.trials._report import report
from esper.simic.trials._runs import LOST, Decider, Epoch, TrialLog, TrialRun
from esper.simic.trials._search import check_search, search
from esper.simic.trials._statistics import Comparison, Estimate, compare, holm, interquartile_mean
from esper.simic.trials._verdict import BLOCKED, GROWTH_PAYS, NOT_SHOWN, POLICY_PAYS, Verdict, verdict

__all__ = [
    "BLOCKED",
    "GROWTH_PAYS",
    "LEARNED",
    "LOST",
    "NOT_SHOWN",
    "POLICIES",
    "POLICY_PAYS",
    "POPULATION",
    "SEARCH",
    "Cell",
    "Comparison",
    "Decider",
    "Epoch",
    "Estimate",
    "Evidence",
    "Pair",
    "Place",
    "Plan",
    "Problem",
    "Result",
    "Routine",
    "TrainedOn",
    "TrialLog",
    "TrialRun",
    "Unfit",
    "Verdict",
    "Wanted",
    "check_search",
    "checked",
    "compare",
    "draw_curves",
    "gather",
    "holm",
    "interquartile_mean",
    "load_plan",
    "markdown",
    "pairs_of",
    "place_of",
    "plan_of",
    "report",
    "routine",
    "search",
    "verdict",
]
