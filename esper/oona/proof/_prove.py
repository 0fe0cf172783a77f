"""Proofs about the cluster of a fabric, as commands ask for them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from esper.core._log_key import log_public_key, open_log_key
from esper.core.errors import Busy, SettingsError, UsageError
from esper.core.home import member_lock
from esper.oona.proof._export import BundleExport, Exported, NotCovered
from esper.oona.proof._judge import fabric_judge
from esper.oona.proof._kafka import KafkaLog
from esper.oona.proof._parallel import processes_for, share_out, walk
from esper.oona.proof._verdict import Verdict, make_verdict, problems_of, read_evidence
from esper.oona.proof._verify import Request, plan_spans
from esper.oona.proof._writer import CheckpointWriter

if TYPE_CHECKING:
    from esper.oona._fabric import Fabric
    from esper.oona.publishing._pending import Receipt

#: Whoever writes checkpoints is this member; the operating system sees to it that there is one in a home.
HOUSEKEEPER: Final = "housekeeper-0"
_SOURCE: Final = "oona"


def verify_cluster(
    fabric: Fabric, request: Request | None = None, *, public_key: bytes | None = None, processes: int = 0
) -> Verdict:
    """Prove what the cluster holds, or name what is wrong with it; by default with the home's own public log key.

    A long log is walked over by as many `processes` as it is worth, unless their number is given. Memory does not
    grow with the number of records.

    Raises:
        UsageError: there is no such topic, or the range ends before it begins.
        BrokerUnavailable: no broker answered in time.
    """
    asked = request or Request()
    if asked.topic is not None:
        fabric.topics[asked.topic]
    if asked.start is not None and asked.end is not None and asked.end <= asked.start:
        raise UsageError(
            f"there is nothing from offset {asked.start} to before offset {asked.end}",
            cause="the range ends before it begins",
        )
    known = public_key if public_key is not None else log_public_key(fabric.home.root)
    log = KafkaLog(fabric)
    evidence = read_evidence(log, public_key=known, judge=fabric_judge(fabric))
    bounds = log.bounds()
    spans = plan_spans(bounds, evidence, asked)
    findings = problems_of(evidence, asked)
    shares = share_out(spans, bounds, evidence, processes or processes_for(spans))
    return make_verdict(walk(fabric, shares, findings), findings, evidence)


def append_checkpoint(fabric: Fabric) -> Receipt | None:
    """Cover everything that the log holds now by one more checkpoint; None when there was nothing to cover.

    Raises:
        Busy: the housekeeper runs in this home; it writes the checkpoints.
        IntegrityError: the log's checkpoints were signed with another key than the home's.
    """
    with member_lock(fabric.home, HOUSEKEEPER), fabric.publisher(_SOURCE) as publisher:
        return CheckpointWriter(fabric, publisher).write_now()


def export_from_cluster(
    fabric: Fabric, path: Path, *, run_id: str | None = None, range_: str | None = None
) -> Exported:
    """Write a bundle about a run, or about a range given as TOPIC-PARTITION:FROM-TO; a failure leaves no file.

    What no checkpoint covers yet is covered first, unless the housekeeper runs, which will do so itself.

    Raises:
        UsageError: the log holds nothing of it, or the file is there already.
        NotCovered: the housekeeper has not covered it yet.
        SettingsError: the file cannot be written.
    """
    try:
        return _export(fabric, path, run_id, range_)
    except NotCovered as error:
        try:
            append_checkpoint(fabric)
        except Busy:
            raise error from None
        return _export(fabric, path, run_id, range_)


def _export(fabric: Fabric, path: Path, run_id: str | None, range_: str | None) -> Exported:
    # Imported here: the package around it loads torch, which nobody else who proves something needs.
    from esper.core.kernel import DirectoryBlobStore

    log = KafkaLog(fabric)
    export = BundleExport(
        log,
        key=open_log_key(fabric.home.root),
        cluster_id=log.cluster_id(),
        topics=fabric.topics,
        blobs=DirectoryBlobStore(fabric.home.blobs),
    )
    try:
        with path.open("xb") as file:
            try:
                return export.run(run_id, file) if run_id is not None else export.range(range_ or "", file)
            except BaseException:
                path.unlink()
                raise
    except FileExistsError as error:
        raise UsageError(f"{path} is there already", next_step="Name another file, or remove that one") from error
    except OSError as error:
        raise SettingsError(f"{path} cannot be written", cause=error.strerror or str(error)) from error
