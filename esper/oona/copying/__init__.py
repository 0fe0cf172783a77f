"""Copying a log: its records, offsets and groups out of a cluster as they are, and into an empty one as they were."""

from esper.oona.copying._groups import GroupOffset, GroupOffsets, read_groups, write_groups
from esper.oona.copying._reading import RawReader, RawRecord
from esper.oona.copying._topics import create_for_copy, delete_topics, ends_of, topic_ids, trim
from esper.oona.copying._writing import CREATE_TIME, ExactWriter, GapMarker, exact_producer

__all__ = [
    "CREATE_TIME",
    "ExactWriter",
    "GapMarker",
    "GroupOffset",
    "GroupOffsets",
    "RawReader",
    "RawRecord",
    "create_for_copy",
    "delete_topics",
    "ends_of",
    "exact_producer",
    "read_groups",
    "topic_ids",
    "trim",
    "write_groups",
]
