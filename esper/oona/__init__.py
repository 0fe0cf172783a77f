"""Oona, the fabric: topics as files, signed and chained publishing, the one consumer loop, dead letters."""

from esper.leyline import BadRecord, EventMessage, Record
from esper.oona._cat import EventObject, cat_events, event_object
from esper.oona._cluster import Cluster, Position
from esper.oona._consumer import Consumer
from esper.oona._counters import ConsumerMetrics
from esper.oona._dead_letters import (
    DeadLetterDetails,
    DeadLetterRow,
    DeadLetterWriter,
    list_dead_letters,
    show_dead_letter,
)
from esper.oona._events import Event, Handler
from esper.oona._fabric import Fabric
from esper.oona._housekeeping import Housekeeper, build_housekeeper
from esper.oona._partitioner import murmur2, partition_for
from esper.oona._publisher import Pending, Publisher, PublisherMetrics, Receipt
from esper.oona._reader import Reader
from esper.oona._service import Service
from esper.oona._topic_admin import TopicDescription, apply_topics, describe_topics, plan_topics
from esper.oona._topic_plan import TopicChange, TopicPlan
from esper.oona._topics import TopicCatalog, TopicSpec, shipped_topics_dir

__all__ = [
    "BadRecord",
    "Cluster",
    "Consumer",
    "ConsumerMetrics",
    "DeadLetterDetails",
    "DeadLetterRow",
    "DeadLetterWriter",
    "Event",
    "EventMessage",
    "EventObject",
    "Fabric",
    "Handler",
    "Housekeeper",
    "Pending",
    "Position",
    "Publisher",
    "PublisherMetrics",
    "Reader",
    "Receipt",
    "Record",
    "Service",
    "TopicCatalog",
    "TopicChange",
    "TopicDescription",
    "TopicPlan",
    "TopicSpec",
    "apply_topics",
    "build_housekeeper",
    "cat_events",
    "describe_topics",
    "event_object",
    "list_dead_letters",
    "murmur2",
    "partition_for",
    "plan_topics",
    "shipped_topics_dir",
    "show_dead_letter",
]
