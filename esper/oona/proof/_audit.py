"""Checking an audit bundle with the public log key alone: no Kafka, no secret, no home."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Final

from google.protobuf.message import DecodeError

from esper.leyline import SIGNATURE_HEADER, TYPE_HEADER, Record, mac_of
from esper.leyline import messages as ly
from esper.oona._cluster import Position
from esper.oona.proof._bundle import FORMAT, BadBundle, BundleReader, decode, digest_of, number, record_of
from esper.oona.proof._checkpoint import BadCheckpoint, open_content
from esper.oona.proof._digest import EMPTY, advance, record_hash
from esper.oona.proof._evidence import Boundary, add_boundaries, cross_bridges
from esper.oona.proof._findings import Finding, Findings, Kind
from esper.oona.proof._restored import bridges_of, open_restored_content
from esper.oona.proof._searched import Searched, limits_of, missing_of, not_searched_of, searched_of, subject_run

#: Where findings stand that are not about a record: the "topic" of a bundle, with line numbers for offsets.
BUNDLE_PLACE: Final = "bundle"
_CLAIMS: Final = (
    "records: every record shown stood in the log with these bytes, headers, offset and append time",
    "completeness of each partition's range: between its first and last checkpoint no record was added, removed or "
    "moved, those given by their hash alone included",
    "checkpoints: each was signed with the log key",
    "sections: of a run, every partition in which it lies was searched beyond the last signed place that this bundle "
    "holds, and every record found there is shown",
    "blobs: each is what its SHA-256 says",
    "seal: whoever holds the log key made this bundle, and no byte of it was changed",
)
_NOT_CLAIMED: Final = (
    "record signatures: they are HMACs, which only a holder of the secret can check; `esper verify` does",
    "what the records say that are given by their hash alone; that none of them, nor of a partition that is "
    "not shown, belongs to the subject is the exporter's word, under its seal",
    "that what was signed is true, or was appended at the time that it states",
)


@dataclass(frozen=True)
class AuditVerdict:
    """What a bundle proves, and what is wrong with it."""

    subject: dict[str, Any]
    cluster_id: str
    records: int
    hidden: int
    blobs: int
    omitted: int
    checkpoints: int
    bad: Sequence[Finding]
    bad_total: int
    not_searched: Sequence[str] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return self.bad_total == 0

    def document(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        omitted = (f"{self.omitted} blobs that were left out because of their size",) if self.omitted else ()
        return {
            "subject": self.subject,
            "cluster_id": self.cluster_id,
            "records": self.records,
            "records_by_hash": self.hidden,
            "blobs": self.blobs,
            "checkpoints": self.checkpoints,
            "ok": self.ok,
            "bad": [one.place() for one in self.bad],
            "bad_total": self.bad_total,
            "first_bad": self.bad[0].document() if self.bad else None,
            "claims": list(_CLAIMS),
            "not_claimed": [*omitted, *limits_of(self.not_searched), *_NOT_CLAIMED],
        }


@dataclass
class _Section:
    """The partition that is being read: its rolling digest and the chains of the records shown."""

    topic: str
    partition: int
    start: int
    end: int
    digest: bytes
    signed: dict[int, Boundary]
    next_offset: int = 0
    checked_to: int = 0
    in_mismatch: bool = False
    #: Offset, sequence and MAC of the last record shown of each producer.
    links: dict[str, tuple[int, bytes]] = field(default_factory=dict)


def verify_bundle(file: IO[bytes], *, public_key: bytes) -> AuditVerdict:
    """Check a bundle line by line; memory does not grow with the number of records.

    Never raises for what a bundle holds: whatever is wrong is in the verdict.
    """
    check = _Check(public_key)
    reader = BundleReader(file, public_key)
    for line, document in reader:
        check.take(line, document)
    return check.finish(reader)


class _Check:
    """The state between two lines of a bundle."""

    def __init__(self, public_key: bytes) -> None:
        self._public_key = public_key
        self._findings = Findings()
        self._boundaries: dict[Position, list[Boundary]] = {}
        self._clusters: set[str] = set()
        self._section: _Section | None = None
        #: How many records each section shows.
        self._shown: dict[Position, int] = {}
        self._searched: dict[Position, Searched] = {}
        self._not_searched: frozenset[str] = frozenset()
        self._subject: dict[str, Any] | None = None
        self._run_id: str | None = None
        self._cluster_id = ""
        self._records = self._hidden = self._blobs = self._omitted = self._checkpoints = 0

    def take(self, line: int, document: dict[str, Any] | BadBundle) -> None:
        """Judge one line."""
        try:
            if isinstance(document, BadBundle):
                raise document
            self._dispatch(document)
        except BadCheckpoint as bad:
            self._add(line, Kind.CHECKPOINT, str(bad))
        except BadBundle as bad:
            self._add(line, Kind.BUNDLE, str(bad))

    def finish(self, reader: BundleReader) -> AuditVerdict:
        """Judge the bundle's end."""
        self._end_section()
        if reader.seal_problem:
            self._add(reader.lines, Kind.BUNDLE, reader.seal_problem)
        if self._subject is None:
            self._add(1, Kind.BUNDLE, "the bundle does not say what it is about")
        if self._clusters - {self._cluster_id}:
            self._add(1, Kind.BUNDLE, "its checkpoints are another cluster's")
        if not self._records:
            self._add(reader.lines, Kind.BUNDLE, "the bundle shows no record")
        self._judge_searched(reader.lines)
        return AuditVerdict(
            subject=self._subject or {},
            cluster_id=self._cluster_id,
            records=self._records,
            hidden=self._hidden,
            blobs=self._blobs,
            omitted=self._omitted,
            checkpoints=self._checkpoints,
            bad=list(self._findings),
            bad_total=self._findings.total,
            not_searched=sorted(self._not_searched),
        )

    def _judge_searched(self, line: int) -> None:
        """Name what of a run's partitions is left out."""
        if self._run_id is None:
            return
        for missing in missing_of(
            self._run_id,
            searched=self._searched,
            not_searched=self._not_searched,
            shown=self._shown,
            signed=self._boundaries,
        ):
            if missing.place is None:
                self._add(line, Kind.BUNDLE, missing.detail)
            else:
                self._findings.add(Finding(*missing.place, 0, Kind.TRUNCATED, missing.detail))

    def _dispatch(self, document: dict[str, Any]) -> None:
        if "record" in document:
            self._record(document["record"])
        elif "hashes" in document:
            self._hashes(document["hashes"])
        elif "partition" in document:
            self._begin_section(document["partition"])
        elif "checkpoint" in document:
            self._checkpoint(decode(document["checkpoint"]), decode(document.get("signature")))
        elif "restored" in document:
            self._restored(decode(document["restored"]), decode(document.get("signature")))
        elif "searched" in document:
            stated = searched_of(document["searched"])
            if stated.place in self._searched:
                raise BadBundle(f"{stated.topic}-{stated.partition} was searched twice")
            self._searched[stated.place] = stated
        elif "not_searched" in document:
            self._not_searched |= not_searched_of(document["not_searched"])
        elif "blob" in document:
            self._blob(document["blob"], document.get("content"))
        elif "omitted" in document:
            digest_of(document["omitted"])
            self._omitted += 1
        elif "format" in document:
            self._begin(document)
        else:
            raise BadBundle("the line is of no known kind")

    def _begin(self, document: dict[str, Any]) -> None:
        if document["format"] != FORMAT or self._subject is not None:
            raise BadBundle(f"the first line, and only it, says {FORMAT}")
        subject = document.get("subject")
        if not isinstance(subject, dict) or not isinstance(document.get("cluster_id"), str):
            raise BadBundle("the first line lacks its subject or cluster")
        self._run_id = subject_run(subject)
        self._subject, self._cluster_id = subject, document["cluster_id"]
        if document.get("public_key") != self._public_key.hex():
            raise BadBundle("the bundle was made with another log key than the one given")

    def _checkpoint(self, content: bytes, signature: bytes) -> None:
        parsed = open_content(content, signature, public_key=self._public_key)
        self._checkpoints += 1
        self._clusters.add(parsed.cluster_id)
        add_boundaries(self._boundaries, parsed)

    def _restored(self, content: bytes, signature: bytes) -> None:
        """Let the checkpoints before it speak of the topics, and the cluster, that hold their records since."""
        parsed = open_restored_content(content, signature, public_key=self._public_key)
        cross_bridges(self._boundaries, bridges_of(parsed.partitions))
        if parsed.cluster_id in self._clusters:
            self._clusters = self._clusters - {parsed.cluster_id} | {parsed.new_cluster_id}

    def _begin_section(self, found: object) -> None:
        self._end_section()
        if not isinstance(found, dict) or not isinstance(found.get("topic"), str):
            raise BadBundle("a partition's line is malformed")
        place = (found["topic"], number(found.get("partition")))
        start, end = number(found.get("start")), number(found.get("end"))
        boundaries = self._boundaries.get(place, [])
        if any(one.topic_id != found.get("topic_id") for one in boundaries) or place in self._shown:
            raise BadBundle(f"{place[0]}-{place[1]} comes twice, or its topic is not the one that was signed")
        self._shown[place] = 0
        signed = {one.next_offset: one for one in boundaries}
        fresh = any(one.first_offset == start for one in boundaries)
        digest = signed[start].digest if start in signed else EMPTY
        if end not in signed or not (start in signed or start == 0 or fresh) or start >= end:
            raise BadBundle(f"no checkpoint of this bundle signs {place[0]}-{place[1]} from {start} to {end}")
        self._section = _Section(*place, start, end, digest, signed, start, start)

    def _record(self, found: object) -> None:
        section = self._current()
        record = record_of(found, topic=section.topic, partition=section.partition)
        self._records += 1
        self._shown[(section.topic, section.partition)] += 1
        if record.offset != section.next_offset:
            what = f"the record of offset {record.offset} stands in the place of offset {section.next_offset}"
            self._fault(section, section.next_offset, Kind.GAP, what)
            section.next_offset = record.offset
        self._judge_content(section, record)
        self._advance(section, record_hash(record))

    def _hashes(self, found: object) -> None:
        section = self._current()
        if not isinstance(found, list):
            raise BadBundle("a line of hashes is malformed")
        for one in found:
            self._hidden += 1
            self._advance(section, digest_of(one))

    def _advance(self, section: _Section, hashed: bytes) -> None:
        section.digest = advance(section.digest, hashed)
        section.next_offset += 1
        boundary = section.signed.get(section.next_offset)
        if boundary is None:
            return
        agrees = boundary.digest == section.digest
        if not agrees and not section.in_mismatch:
            what = f"records {section.checked_to} to {section.next_offset - 1} are not those that checkpoint "
            self._fault(section, section.checked_to, Kind.CHECKPOINT, f"{what}{boundary.number} signed")
        section.in_mismatch = not agrees
        section.digest, section.checked_to = boundary.digest, section.next_offset

    def _judge_content(self, section: _Section, record: Record) -> None:
        """Name what can be seen to be wrong with a record without the secret."""
        signature, type_name = record.header(SIGNATURE_HEADER), record.header(TYPE_HEADER)
        if signature is None:
            self._fault(section, record.offset, Kind.UNSIGNED, "no signature header, or more than one")
            return
        try:
            meta = ly.AnyEvent.FromString(record.value or b"").meta
        except DecodeError:
            self._fault(section, record.offset, Kind.UNDECODABLE, "the value is not a protobuf event")
            return
        if meta.type.encode() != type_name or meta.subject.encode() != record.key:
            self._fault(section, record.offset, Kind.INCONSISTENT, "its meta disagrees with its type or key")
        last = section.links.get(meta.producer_id)
        if last is not None and meta.sequence == last[0] + 1 and meta.previous_mac != last[1]:
            what = f"sequence {meta.sequence} of {meta.producer_id} does not name the record before it"
            self._fault(section, record.offset, Kind.FOREIGN, what)
        elif last is not None and meta.sequence <= last[0]:
            what = f"sequence {meta.sequence} of {meta.producer_id} stands after sequence {last[0]}"
            self._fault(section, record.offset, Kind.REORDER, what)
        section.links[meta.producer_id] = (meta.sequence, mac_of(signature))

    def _end_section(self) -> None:
        section, self._section = self._section, None
        if section is not None and section.next_offset != section.end:
            what = f"its records should reach up to offset {section.end - 1}"
            self._fault(section, section.next_offset, Kind.TRUNCATED, what)

    def _blob(self, name: object, content: object) -> None:
        self._blobs += 1
        if hashlib.sha256(decode(content)).digest() != digest_of(name):
            self._findings.add(Finding(BUNDLE_PLACE, 0, 0, Kind.BLOB, f"blob {name} is not what its name says"))

    def _current(self) -> _Section:
        if self._section is None:
            raise BadBundle("a record stands outside any partition")
        return self._section

    def _fault(self, section: _Section, offset: int, kind: Kind, detail: str) -> None:
        self._findings.add(Finding(section.topic, section.partition, offset, kind, detail, section.checked_to))

    def _add(self, line: int, kind: Kind, detail: str) -> None:
        self._findings.add(Finding(BUNDLE_PLACE, 0, line, kind, detail))
