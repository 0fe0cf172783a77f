"""The archive: topics sealed into Avro files with signed manifests, proved, read as the log's past, and restored."""

from esper.projection.archive._layout import Layout
from esper.projection.archive._log import KafkaSealable, MemorySealable, SealableLog
from esper.projection.archive._models import Seal, SegmentManifest
from esper.projection.archive._open import archive_of, archived_marks, public_key_of, sealing, spanning
from esper.projection.archive._restore import Restored, Restorer
from esper.projection.archive._seal import Sealed, Sealer
from esper.projection.archive._source import SpanningSource
from esper.projection.archive._survey import Fault, FaultKind, Survey, survey
from esper.projection.archive._verify import ArchiveVerdict, compare_with_live, list_archive, verify_archive

__all__ = [
    "ArchiveVerdict",
    "Fault",
    "FaultKind",
    "KafkaSealable",
    "Layout",
    "MemorySealable",
    "Restored",
    "Restorer",
    "Seal",
    "SealableLog",
    "Sealed",
    "Sealer",
    "SegmentManifest",
    "SpanningSource",
    "Survey",
    "archive_of",
    "archived_marks",
    "compare_with_live",
    "list_archive",
    "public_key_of",
    "sealing",
    "spanning",
    "survey",
    "verify_archive",
]
