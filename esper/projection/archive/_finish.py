"""The end of a restore, once all records stand where they stood: settings, groups, blobs, and what is signed of it."""

from __future__ import annotations

import json
from typing import Final

from esper.core._log_key import LogKey
from esper.core.ids import derive_id
from esper.core.principals import ADMIN
from esper.core.settings import Settings
from esper.leyline import TYPE_HEADER
from esper.leyline import messages as ly
from esper.oona import Fabric, OonaClient, Position, apply_topics
from esper.oona.copying import GroupOffset, RawReader, topic_ids, write_groups
from esper.oona.proof import RESTORED_TYPE, BadRestored, Bridge, append_checkpoint, make_restored, open_restored
from esper.projection.archive._blobs import copy_blobs
from esper.projection.archive._layout import Layout, write_whole
from esper.projection.archive._log import OPERATIONS
from esper.projection.archive._models import Seal
from esper.projection.archive._survey import Survey

_PLACE: Final[Position] = (OPERATIONS, 0)
_SOURCE: Final = "projection"


class Finish:
    """What follows the records; each step may be done twice."""

    def __init__(self, settings: Settings, layout: Layout, found: Survey, seal: Seal, key: LogKey) -> None:
        self._settings = settings
        self._layout = layout
        self._found = found
        self._seal = seal
        self._key = key

    def run(self) -> tuple[int, int]:
        """Return how many groups go on, and how many blobs the home lacked; raises as its steps do."""
        with Fabric.open(self._settings, member="restore") as fabric:
            cluster = fabric.cluster.as_principal(ADMIN)
            apply_topics(cluster, fabric.topics)
            write_groups(cluster, self._groups())
            blobs = copy_blobs(self._blobs(), self._layout.blobs, fabric.home.blobs)
            statement = self._stated(fabric) or self._state(fabric)
            self._keep(statement)
            append_checkpoint(fabric)
        return len(self._seal.groups), blobs

    def _groups(self) -> dict[str, dict[Position, GroupOffset]]:
        return {
            group.group: {(one.topic, one.partition): GroupOffset(one.offset, one.metadata) for one in group.offsets}
            for group in self._seal.groups
        }

    def _blobs(self) -> set[str]:
        restored = self._found.sealed_before(self._seal).values()
        return {digest for segments in restored for one in segments for digest in one.manifest.blobs}

    def _stated(self, fabric: Fabric) -> ly.LogRestored | None:
        """Return the statement of this restore where an earlier try has appended it."""
        end = next(one.next_offset for one in self._seal.partitions if one.place == _PLACE)
        cluster = fabric.cluster.as_principal(ADMIN)
        high = cluster.watermarks([_PLACE])[_PLACE][1]
        cluster_id = str(cluster.metadata().cluster_id)
        with RawReader(cluster) as reader:
            for raw in reader.read(_PLACE, end, high):
                if raw.record.header(TYPE_HEADER) != RESTORED_TYPE.encode():
                    continue
                try:
                    message, content = open_restored(raw.record, public_key=self._key.public_key)
                except BadRestored:
                    continue
                if (content.seal, content.new_cluster_id) == (self._seal.number, cluster_id):
                    return message
        return None

    def _state(self, fabric: Fabric) -> ly.LogRestored:
        """Append the statement; its id is that of this restore, so that a second one is known for a copy."""
        cluster = fabric.cluster.as_principal(ADMIN)
        ids = topic_ids(cluster, sorted({one.topic for one in self._seal.partitions}))
        digest = self._found.seal_digests[self._seal.number]
        cluster_id = str(cluster.metadata().cluster_id)
        restored = self._found.sealed_before(self._seal).values()
        message = make_restored(
            self._key,
            seal=self._seal.number,
            seal_digest=bytes.fromhex(digest),
            cluster_id=self._seal.cluster_id,
            new_cluster_id=cluster_id,
            records=sum(one.manifest.records for segments in restored for one in segments),
            bridges={
                one.place: Bridge(one.topic_id, ids[one.topic], one.first_offset, one.next_offset)
                for one in self._seal.partitions
            },
        )
        client = OonaClient.open(fabric, _SOURCE)
        client.publish_log_restored(message, event_id=derive_id("log-restored", digest, cluster_id))
        return message

    def _keep(self, message: ly.LogRestored) -> None:
        """Let the archive know which topics hold its records now, so that it can be sealed on."""
        document = {"content": message.content.hex(), "signature": message.signature.hex()}
        name = f"{derive_id('restored', message.content.hex())}.json"
        with self._layout.writing():
            write_whole(self._layout.restored / name, json.dumps(document).encode())
