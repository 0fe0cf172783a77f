"""Proof of the log: checkpoints that are signed, a walk that proves or names the first fault, bundles for strangers."""

from esper.oona.proof._audit import AuditVerdict, verify_bundle
from esper.oona.proof._export import BundleExport, Exported, NotCovered
from esper.oona.proof._findings import BadPlace, Finding, Kind
from esper.oona.proof._kafka import KafkaLog
from esper.oona.proof._log import Bounds, ListLog, RecordLog, Span
from esper.oona.proof._prove import append_checkpoint, export_from_cluster, verify_cluster
from esper.oona.proof._restored import (
    RESTORED_TYPE,
    BadRestored,
    Bridge,
    bridges_of,
    make_restored,
    open_restored,
    open_restored_content,
)
from esper.oona.proof._verdict import Verdict, verify_log
from esper.oona.proof._verify import Request
from esper.oona.proof._writer import CheckpointWriter

__all__ = [
    "RESTORED_TYPE",
    "AuditVerdict",
    "BadPlace",
    "BadRestored",
    "Bounds",
    "Bridge",
    "BundleExport",
    "CheckpointWriter",
    "Exported",
    "Finding",
    "KafkaLog",
    "Kind",
    "ListLog",
    "NotCovered",
    "RecordLog",
    "Request",
    "Span",
    "Verdict",
    "append_checkpoint",
    "bridges_of",
    "export_from_cluster",
    "make_restored",
    "open_restored",
    "open_restored_content",
    "verify_bundle",
    "verify_cluster",
    "verify_log",
]
