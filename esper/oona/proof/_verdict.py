"""What a walk over the log showed, in the words that people and programs read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from esper.oona.proof._checkpoint import OPERATIONS
from esper.oona.proof._evidence import Evidence, gather_evidence
from esper.oona.proof._findings import Finding, Findings
from esper.oona.proof._judge import Judge
from esper.oona.proof._log import RecordLog, Span
from esper.oona.proof._verify import PartitionVerdict, Request, check_partitions, plan_spans

_ALWAYS: Final = (
    "that what was signed is true: whoever holds a signing key can sign a falsehood in its own place",
    "the order between partitions, and the clocks behind append times",
    "that nothing was cut off together with every checkpoint that covers it; compare the last checkpoint's number "
    "and digest with a copy kept elsewhere",
)
_CHECKS: Final = (
    "signatures: every record was signed by a key of this home for its topic, partition, key and type",
    "writers: every record's type and source are those that its topic's file names",
    "chains: no record of a producer is missing, moved, doubled or foreign between two that are there",
    "offsets: no offset is missing between two that are there",
)


@dataclass(frozen=True)
class Verdict:
    """What was proved of a log, and what is wrong with it."""

    partitions: Sequence[PartitionVerdict]
    bad: Sequence[Finding]
    bad_total: int
    checkpoints: int
    last_number: int
    last_digest: bytes
    unjudged_checkpoints: int = 0
    #: How often the log was written again from its archive.
    restores: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return self.bad_total == 0

    @property
    def records(self) -> int:
        """How many records were read."""
        return sum(one.records for one in self.partitions)

    @property
    def covered(self) -> int:
        """How many of them agree with a signed checkpoint."""
        return sum(one.covered for one in self.partitions)

    @property
    def claims(self) -> list[str]:
        """What holds of every record, or of those that checkpoints cover; where faults were found, of the others."""
        found = self._checks()
        return found if self.ok else [f"apart from {self.bad_total} faults: {one}" for one in found]

    def _checks(self) -> list[str]:
        if not self.checkpoints:
            return list(_CHECKS)
        covered = (
            f"checkpoints: {self.covered} records are byte for byte, header for header and at the very offsets and "
            f"append times that {self.checkpoints} checkpoints signed, and none of them was cut off"
        )
        return [*_CHECKS, covered]

    @property
    def not_claimed(self) -> list[str]:
        """What was not, or cannot be, checked."""
        return [*self._limits(), *_ALWAYS]

    def _limits(self) -> Iterable[str]:
        if self.unjudged_checkpoints:
            yield (
                f"{self.unjudged_checkpoints} checkpoints were not looked at: the public log key is not known here "
                "(--public-key gives it)"
            )
        beyond = self.records - self.covered
        if beyond:
            yield (
                f"{beyond} records that no checkpoint covers yet: that none was cut off at a chain's end, and their "
                "offsets, append times and headers other than signature and type"
            )
        if self.restores:
            yield (
                f"{self.restores} restores: that nothing was appended after the seal that each names and before it; "
                "the holder of the log key says so"
            )
        trusted = sum(one.taken_on_trust for one in self.partitions)
        if trusted:
            yield f"{trusted} chains before the first record read of them: what it names was not read"

    def document(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return {
            "records": self.records,
            "ok": self.ok,
            "bad": [one.place() for one in self.bad],
            "bad_total": self.bad_total,
            "first_bad": self.bad[0].document() if self.bad else None,
            "covered": self.covered,
            "restores": self.restores,
            "checkpoints": {
                "count": self.checkpoints,
                "last_number": self.last_number,
                "last_digest": self.last_digest.hex(),
            },
            "claims": self.claims,
            "not_claimed": self.not_claimed,
        }


def make_verdict(partitions: Sequence[PartitionVerdict], findings: Findings, evidence: Evidence) -> Verdict:
    """Put together what the walk and the evidence showed."""
    return Verdict(
        partitions=partitions,
        bad=list(findings),
        bad_total=findings.total,
        checkpoints=evidence.checkpoints,
        last_number=evidence.last_number,
        last_digest=evidence.last_digest,
        unjudged_checkpoints=evidence.unjudged,
        restores=evidence.restores,
    )


def read_evidence(log: RecordLog, *, public_key: bytes | None, judge: Judge) -> Evidence:
    """Return what the log's own `operations` say about it."""
    found = log.bounds()[OPERATIONS]
    records = log.read({OPERATIONS: Span(found.low, found.high)})
    return gather_evidence(records, public_key=public_key, judge=judge)


def verify_log(log: RecordLog, *, public_key: bytes | None, judge: Judge, request: Request | None = None) -> Verdict:
    """Prove a log, or name what is wrong with it.

    The evidence is read before the ends, so that no checkpoint speaks of records that the walk does not reach.
    """
    evidence = read_evidence(log, public_key=public_key, judge=judge)
    bounds = log.bounds()
    spans = plan_spans(bounds, evidence, request or Request())
    findings = problems_of(evidence, request or Request())
    records = log.read(spans)
    partitions = check_partitions(records, spans, bounds, evidence=evidence, judge=judge, findings=findings)
    return make_verdict(partitions, findings, evidence)


def problems_of(evidence: Evidence, request: Request) -> Findings:
    """Return findings that begin with those about the checkpoints themselves, where they are asked for."""
    findings = Findings()
    if request.topic in (None, OPERATIONS[0]):
        for problem in evidence.problems:
            findings.add(problem)
    return findings
