"""Archives of logs in memory: sealed for real, by the code that seals Kafka's."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from esper.core._log_key import LogKey, open_log_key
from esper.core.ids import sha256_hex
from esper.leyline import messages as ly
from esper.oona.copying import GroupOffset
from esper.projection.archive import ArchiveVerdict, Layout, MemorySealable, Sealed, Sealer, verify_archive
from tests.projection.log import TOPICS, Log, one_run


@dataclass
class Archived:
    """A log in memory beside its archive."""

    root: Path
    log: Log = field(default_factory=Log)

    @property
    def layout(self) -> Layout:
        """Where the archive lies."""
        return Layout(self.root / "archive")

    @property
    def key(self) -> LogKey:
        """The key that seals it."""
        self.root.mkdir(exist_ok=True)
        return open_log_key(self.root)

    @property
    def sealable(self) -> MemorySealable:
        """The log as the sealer sees it, with one group."""
        group = {("runs", 0): GroupOffset(0, "memory of a group")}
        return MemorySealable(self.log.source, groups={"esper.test": group})

    def sealer(self, **options: Any) -> Sealer:
        """Return a sealer of small segments."""
        return Sealer(
            self.sealable,
            self.layout,
            key=self.key,
            catalog=TOPICS,
            blobs=self.root / "blobs",
            **{"segment_bytes": 900, **options},
        )

    def seal(self, *topics: str, **options: Any) -> Sealed:
        """Seal what is new."""
        return self.sealer(**options).seal(topics)

    def verify(self) -> ArchiveVerdict:
        """Judge the archive."""
        return verify_archive(self.layout, public_key=self.key.public_key)

    def write_run(self, run_id: str) -> None:
        """Append a run, with a checkpoint whose blob the home holds."""
        one_run(self.log, run_id)
        content = f"weights of {run_id}".encode()
        digest = sha256_hex(content)
        path = self.root / "blobs" / digest[:2] / digest
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self.log.append(ly.CheckpointSaved(run_id=run_id, attempt=1, epoch=3, blob_digest=digest), key=run_id)
        for number in range(3):
            self.log.append(
                ly.TelemetryPacket(source_subsystem="tolaria", packet_id=f"{run_id}-{number}"), key="tolaria"
            )
