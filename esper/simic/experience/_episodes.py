"""Whole episodes out of decisions and reports: each step once, each episode from its first step to its last, or not.

M: all decisions that were read, kind after kind; N: the steps kept, episode by episode in the order of the log.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from esper.simic.experience._columns import DecisionColumns, Flags, Floats, Ints, ReportColumns

#: How far the log probability of a decision may lie from the sum of its heads'.
_SUM_ERROR_MAX: Final = 1e-6


class Part(StrEnum):
    """Which runs are looked at: whoever judges a policy must not have shown it what it is judged on."""

    ALL = "all"
    LEARNING = "learning"
    JUDGING = "judging"


#: One run in so many is kept for judging.
_JUDGING_ONE_IN: Final = 4


def part_of(run_id: str) -> Part:
    """Return whether a run is learned from or judged on; it follows from the run's id alone."""
    held_out = hashlib.sha256(run_id.encode()).digest()[0] % _JUDGING_ONE_IN == 0
    return Part.JUDGING if held_out else Part.LEARNING


@dataclass(frozen=True)
class Retention:
    """Which episodes are looked at; whole ones, always."""

    #: The newest so many.
    episodes_max: int = 1_000_000
    #: Those that ended at most so long before the newest event that was read.
    age_max_ms: int | None = None
    #: Those all of whose decisions one of these policies made, whichever version of it (`learned@...`); None: any.
    policies: Collection[str] | None = None
    part: Part = Part.ALL


@dataclass(frozen=True)
class Joined:
    """The steps of whole episodes; every array has N elements unless it says otherwise."""

    #: Places among all M decisions.
    places: Ints
    #: Number of the episode, 0, 0, 0, 1, 1, ...
    episode: Ints
    epoch: Ints
    #: Figures of the reports by name.
    figures: Mapping[str, Floats]
    #: Whether the run finished with this step, and whether it is the episode's last.
    terminated: Flags
    last: Flags
    run_ids: Sequence[str]
    #: What was left out, in episodes, by reason; `duplicates` counts decisions.
    left_out: Counter[str] = field(default_factory=Counter)


def joined(
    decisions: Sequence[DecisionColumns],
    reports: Sequence[ReportColumns],
    retention: Retention,
    *,
    strange: Sequence[Flags] = (),
) -> Joined:
    """Return the steps of all whole episodes.

    Of several decisions about one epoch of a run the first in the log counts, and so does the first report of a
    decision: a record that is delivered twice weighs once. An episode is whole if it begins with the run's first
    packet, each of its decisions has its report, and its last decision's report says that the run ended. Left out, too,
    is one with a decision whose probabilities do not add up to what it says, or with one that is `strange`: of each
    part of `decisions`, which of them the policy that learns cannot judge.
    """
    left_out: Counter[str] = Counter()
    ids = pa.chunked_array([part.decision_ids for part in decisions]).combine_chunks()
    runs = pa.chunked_array([part.run_ids for part in decisions]).combine_chunks().dictionary_encode()
    run = runs.indices.to_numpy().astype(np.int64)
    epoch, partition, offset = (
        np.concatenate([getattr(part, name) for part in decisions]) for name in ("epochs", "partitions", "offsets")
    )
    order = np.lexsort((offset, epoch, run))
    repeated = np.zeros(len(order), dtype=np.bool_)
    repeated[1:] = (run[order][1:] == run[order][:-1]) & (epoch[order][1:] == epoch[order][:-1])
    left_out["duplicates"] = int(repeated.sum())
    order = order[~repeated]
    report, columns = _first_reports(reports)
    found = pc.index_in(ids, value_set=report).to_numpy(zero_copy_only=False)
    match = np.where(np.isnan(found.astype(np.float64)), -1, found).astype(np.int64)

    run_o, match_o = run[order], match[order]
    begins = np.flatnonzero(np.r_[True, run_o[1:] != run_o[:-1]])
    ends = np.r_[begins[1:], len(run_o)]
    seen = np.concatenate([_packets_seen(part) for part in decisions])[order]
    sound = np.concatenate([_is_sound(part) for part in decisions])[order]
    welcome = _welcome(decisions, retention)[order]
    odd = np.concatenate(strange)[order] if strange else np.zeros(len(order), dtype=np.bool_)
    checks = {
        "no_beginning": seen[begins] == 1,
        "not_reported": np.minimum.reduceat(match_o, begins) >= 0,
        "not_ended": columns.truncated[match_o[ends - 1]] & (match_o[ends - 1] >= 0),
        "unsound": np.logical_and.reduceat(sound, begins),
        "not_registered": ~np.logical_or.reduceat(odd, begins),
        "other_policy": np.logical_and.reduceat(welcome, begins),
    }
    keep = np.ones(len(begins), dtype=np.bool_)
    for reason, passed in checks.items():
        left_out[reason] = int((keep & ~passed).sum())
        keep &= passed
    if retention.part is not Part.ALL:
        names = [runs.dictionary[int(run_o[begin])].as_py() for begin in begins]
        mine = np.array([part_of(name) is retention.part for name in names])
        left_out["other_part"] = int((keep & ~mine).sum())
        keep &= mine
    keep = _retained(keep, columns.append_ms[match_o[ends - 1]], retention, left_out)
    # In the order of the log: what was read first depends on how many read.
    log_order = np.lexsort((offset[order][begins], partition[order][begins]))
    kept = [one for one in log_order if keep[one]]
    places = np.concatenate([order[begins[one] : ends[one]] for one in kept]) if kept else np.zeros(0, dtype=np.int64)
    lengths = [int(ends[one] - begins[one]) for one in kept]
    matched = match[places]
    last = np.zeros(len(places), dtype=np.bool_)
    last[np.cumsum(lengths, dtype=np.int64) - 1] = True
    return Joined(
        places=places,
        episode=np.repeat(np.arange(len(kept)), lengths),
        epoch=epoch[places],
        figures={name: values[matched] for name, values in columns.figures.items()},
        terminated=columns.terminated[matched] & last,
        last=last,
        run_ids=[runs.dictionary[int(run_o[begins[one]])].as_py() for one in kept],
        left_out=+left_out,
    )


def _first_reports(reports: Sequence[ReportColumns]) -> tuple[pa.Array, ReportColumns]:
    """Return the decisions that have a report, and the first report of each."""
    ids = pa.chunked_array([part.decision_ids for part in reports]).combine_chunks().dictionary_encode()
    offsets = np.concatenate([part.offsets for part in reports])
    codes = ids.indices.to_numpy().astype(np.int64)
    order = np.lexsort((offsets, codes))  # All reports of a run, and so of a decision, are in one partition.
    first = order[np.r_[True, codes[order][1:] != codes[order][:-1]]] if len(order) else order

    def of(name: str) -> np.ndarray:
        found: np.ndarray = np.concatenate([getattr(part, name) for part in reports])[first]
        return found

    names = reports[0].figures
    columns = ReportColumns(
        decision_ids=ids.dictionary,
        offsets=offsets[first],
        terminated=of("terminated"),
        truncated=of("truncated"),
        append_ms=of("append_ms"),
        figures={name: np.concatenate([part.figures[name] for part in reports])[first] for name in names},
    )
    return ids.dictionary, columns


def _packets_seen(part: DecisionColumns) -> Floats:
    found: Floats = part.observations[:, part.names.index("packets_seen")]
    return found


def _is_sound(part: DecisionColumns) -> Flags:
    """Return whether each decision's heads took what their masks allow, and say what the decision says of them."""
    rows = np.arange(len(part))
    total, sound = np.zeros(len(part)), np.ones(len(part), dtype=np.bool_)
    for head in part.heads:
        inside = head.chosen < len(head.actions)
        taken = np.where(inside, head.chosen, 0)
        share = head.probabilities[rows, taken]
        whole = np.abs(head.probabilities.sum(axis=1) - 1.0) <= 1e-4
        outside = np.where(head.mask, 0.0, head.probabilities).any(axis=1)
        sound &= inside & head.mask[rows, taken] & ~outside & whole & (share > 0.0)
        total += np.log(np.where(share > 0.0, share, 1.0))
    found: Flags = sound & (np.abs(total - part.log_probabilities) <= _SUM_ERROR_MAX)
    return found


def _welcome(decisions: Sequence[DecisionColumns], retention: Retention) -> Flags:
    if retention.policies is None:
        return np.ones(sum(map(len, decisions)), dtype=np.bool_)
    wanted = pa.array(sorted(retention.policies), pa.string())
    names = [pc.replace_substring_regex(part.policies, "@.*", "") for part in decisions]
    return np.concatenate([pc.is_in(each, value_set=wanted).to_numpy(zero_copy_only=False) for each in names])


def _retained(keep: Flags, ended_ms: Ints, retention: Retention, left_out: Counter[str]) -> Flags:
    """Drop the oldest episodes, by when the log says that they ended."""
    if not keep.any():
        return keep
    young = keep.copy()
    if retention.age_max_ms is not None:
        young &= ended_ms >= ended_ms.max() - retention.age_max_ms
        left_out["too_old"] = int((keep & ~young).sum())
    over = int(young.sum()) - retention.episodes_max
    if over > 0:
        candidates = np.flatnonzero(young)
        oldest = candidates[np.argsort(ended_ms[candidates], kind="stable")[:over]]
        young[oldest] = False
        left_out["over_capacity"] = over
    return young
