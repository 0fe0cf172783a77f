"""The report of an evaluation for people, written from its document alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

Document = Mapping[str, Any]

_NAMES: Final = {"held_out": "held-out cells", "training": "training cells"}


def markdown(document: Document, *, figures: Sequence[str] = ()) -> str:
    """Return the report as Markdown; `figures` are paths of pictures as the page is to link them."""
    plan = document["plan"]
    parts = [
        f"# Evaluation: {plan['name']}",
        _verdict(document),
        _about(document),
        *(_arms(document, split) for split in _NAMES),
        *(_comparisons(document, split) for split in _NAMES),
        _losing(document),
        _cells(document),
        *(f"![{name}]({name})" for name in figures),
        _problems(document),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _verdict(document: Document) -> str:
    found = document["verdict"]
    lines = [f"**Verdict: {found['word']}**", "", *(f"- {reason}" for reason in found["reasons"])]
    for claim in found["claims"]:
        lines += ["", f"Claim of {claim['claim']} ({claim['arm']}, by {claim['metric']}): **{claim['word']}**"]
        rows = [
            [
                held["rival"],
                held["relation"].replace("_", " ") + (f" by {held['margin']:g}" if held["margin"] else ""),
                _points(held["mean"]),
                _points(held["interquartile_mean"]),
                f"{held['improvement']['value']:.2f}",
                f"{held['adjusted_p']:.2g}",
                "yes" if held["shown"] else "**no**",
            ]
            for held in claim["rivals"]
        ]
        if rows:
            head = ["rival", "to show", "mean, points", "IQM, points", "P(improvement)", "p (Holm)", "shown"]
            lines += ["", _table(head, rows)]
    return "\n".join(lines)


def _about(document: Document) -> str:
    plan, runs = document["plan"], document["runs"]
    counts = ", ".join(f"{count} {status}" for status, count in runs.items() if count)
    seeds = plan["seeds"]
    lines = [
        f"Plan `{plan['digest'][:16]}`: {len(plan['cells'])} cells x {seeds['count']} paired seeds from "
        f"{seeds['first']}, {plan['epochs']} epochs, grown by `{plan['grown']}`. "
        f"Runs of it in the log: {counts or 'none'}.",
        "Accuracy is that on the test part, which a run looks at once, at its end. Intervals are paired bootstrap "
        f"intervals of {1 - plan['bounds']['level']:.0%}, seeds resampled within cells.",
        *document["notes"],
    ]
    return "\n".join(lines)


def _arms(document: Document, split: str) -> str:
    rows = [
        [
            row["arm"],
            str(row["runs"]),
            _percent(row["accuracy"]["mean"]),
            _percent(row["accuracy"]["interquartile_mean"]),
            f"{row['score']['mean']['value']:.4f}" if "score" in row else "",
            f"{row['multiply_adds']:.3g}",
            f"{row['parameters']:,.0f}",
            f"{row['seconds']:.1f}",
            f"{100 * row['curve_area']:.1f}",
        ]
        for row in document["arms"]
        if row["split"] == split
    ]
    head = ["arm", "pairs", "accuracy, %", "IQM, %", "score", "multiply-adds", "parameters", "seconds", "area, %"]
    return f"## Arms, {_NAMES[split]}\n\n{_table(head, rows)}" if rows else ""


def _comparisons(document: Document, split: str) -> str:
    rows = [
        [
            f"{row['arm']} less {row['rival']}",
            _points(row["mean"]),
            _points(row["interquartile_mean"]),
            f"{row['improvement']['value']:.2f} [{row['improvement']['low']:.2f}, {row['improvement']['high']:.2f}]",
            f"{row['p_value']:.2g}",
        ]
        for row in document["comparisons"]
        if row["split"] == split and row["metric"] == "accuracy"
    ]
    head = ["difference", "mean, points", "IQM, points", "P(improvement)", "p, unadjusted"]
    return f"## Differences of accuracy, {_NAMES[split]}\n\n{_table(head, rows)}" if rows else ""


def _losing(document: Document) -> str:
    rows = [
        [
            f"{row['task']}/{row['host']}",
            f"{row['arm']} less {row['rival']}",
            _points(row["mean"]),
            f"{row['worse_pairs']} of {row['pairs']}",
        ]
        for row in document["losing"]
    ]
    if not document["comparisons"]:
        return ""
    head = ["cell", "difference", "mean, points", "worse pairs"]
    return f"## Where it loses\n\n{_table(head, rows) if rows else 'In no cell on average.'}"


def _cells(document: Document) -> str:
    rows = [
        [
            f"{row['task']}/{row['host']}",
            row["split"].replace("_", "-"),
            row["arm"],
            f"{100 * row['accuracy']:.2f}",
            f"{100 * row['interquartile_mean']:.2f}",
            f"{100 * row['deviation']:.2f}",
            f"{row['multiply_adds']:.3g}",
            f"{row['parameters']:,.0f}",
            f"{row['seconds']:.1f}",
        ]
        for row in document["cells"]
    ]
    head = ["cell", "split", "arm", "accuracy, %", "IQM, %", "sd", "multiply-adds", "parameters", "seconds"]
    return f"## Cells\n\n{_table(head, rows)}" if rows else ""


def _problems(document: Document) -> str:
    problems = document["problems"]
    if not problems["count"]:
        return ""
    more = problems["count"] - len(problems["listed"])
    lines = [f"- {problem}" for problem in problems["listed"]] + ([f"- and {more} more"] if more else [])
    return "\n".join([f"## What speaks against these runs ({problems['count']})", "", *lines])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _points(estimate: Mapping[str, float]) -> str:
    return f"{100 * estimate['value']:+.2f} [{100 * estimate['low']:+.2f}, {100 * estimate['high']:+.2f}]"


def _percent(estimate: Mapping[str, float]) -> str:
    return f"{100 * estimate['value']:.2f} [{100 * estimate['low']:.2f}, {100 * estimate['high']:.2f}]"
