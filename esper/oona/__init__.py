"""Oona, the fabric: topics as files, signed and chained publishing, the one consumer loop, dead letters."""

from esper.leyline import BadRecord, EventMessage, Record
from esper.oona._blueprint_board import BlueprintBoard
from esper.oona._cluster import Cluster, Position
from esper.oona._counters import ConsumerMetrics
from esper.oona._events import Event, Handler, is_stale
from esper.oona._fabric import Fabric
from esper.oona._member_metrics import MemberMetrics
from esper.oona._policy_board import OnRefused, PolicyBoard, unknown_version
from esper.oona._service import Service
from esper.oona.consuming._consumer import Consumer
from esper.oona.housekeeping._emission import emission
from esper.oona.housekeeping._housekeeper import Housekeeper, build_housekeeper
from esper.oona.housekeeping._metrics import (
    FabricMetrics,
    GroupMetrics,
    SourceMetrics,
    metric_points,
    metrics_packet,
    queue_depths,
)
from esper.oona.housekeeping._retention import (
    Holding,
    Need,
    RetentionDecision,
    apply_retention,
    decide_retention,
    plan_retention,
)
from esper.oona.keys._keys import KeyChange, KeyRevocation, KeyRow, list_keys, revoke_key, rotate_key, rotate_signer
from esper.oona.letters._board import (
    DeadLetterDetails,
    DeadLetterRow,
    LetterBoard,
    list_dead_letters,
    show_dead_letter,
)
from esper.oona.letters._dead_letters import DeadLetterWriter
from esper.oona.letters._orders import LetterOrder, discard, redrive
from esper.oona.publishing._client import OonaClient, PublishOptions, key_of
from esper.oona.publishing._line import PublisherMetrics
from esper.oona.publishing._pending import Pending, Receipt, SampledOut
from esper.oona.publishing._publisher import Publisher
from esper.oona.publishing._trace import TraceContext, parse_traceparent, trace_of, tracing
from esper.oona.reading._cat import EventObject, Selection, cat_events, event_object, tail_events
from esper.oona.reading._descriptors import DescriptorFile, descriptor_set, write_descriptor_set
from esper.oona.reading._explain import ChainEvent, Explanation, explain_event
from esper.oona.reading._find import find_events
from esper.oona.reading._range import AtEvent, AtOffset, AtTime, Point, offsets_at, parse_point
from esper.oona.reading._reader import Reader
from esper.oona.topics._admin import TopicDescription, apply_topics, describe_topics, plan_topics
from esper.oona.topics._partitioner import murmur2, partition_for
from esper.oona.topics._plan import TopicChange, TopicPlan
from esper.oona.topics._specs import TopicCatalog, TopicSpec, shipped_topics_dir

__all__ = [
    "AtEvent",
    "AtOffset",
    "AtTime",
    "BadRecord",
    "BlueprintBoard",
    "ChainEvent",
    "Cluster",
    "Consumer",
    "ConsumerMetrics",
    "DeadLetterDetails",
    "DeadLetterRow",
    "DeadLetterWriter",
    "DescriptorFile",
    "Event",
    "EventMessage",
    "EventObject",
    "Explanation",
    "Fabric",
    "FabricMetrics",
    "GroupMetrics",
    "Handler",
    "Holding",
    "Housekeeper",
    "KeyChange",
    "KeyRevocation",
    "KeyRow",
    "LetterBoard",
    "LetterOrder",
    "MemberMetrics",
    "Need",
    "OnRefused",
    "OonaClient",
    "Pending",
    "Point",
    "PolicyBoard",
    "Position",
    "PublishOptions",
    "Publisher",
    "PublisherMetrics",
    "Reader",
    "Receipt",
    "Record",
    "RetentionDecision",
    "SampledOut",
    "Selection",
    "Service",
    "SourceMetrics",
    "TopicCatalog",
    "TopicChange",
    "TopicDescription",
    "TopicPlan",
    "TopicSpec",
    "TraceContext",
    "apply_retention",
    "apply_topics",
    "build_housekeeper",
    "cat_events",
    "decide_retention",
    "describe_topics",
    "descriptor_set",
    "discard",
    "emission",
    "event_object",
    "explain_event",
    "find_events",
    "is_stale",
    "key_of",
    "list_dead_letters",
    "list_keys",
    "metric_points",
    "metrics_packet",
    "murmur2",
    "offsets_at",
    "parse_point",
    "parse_traceparent",
    "partition_for",
    "plan_retention",
    "plan_topics",
    "queue_depths",
    "redrive",
    "revoke_key",
    "rotate_key",
    "rotate_signer",
    "shipped_topics_dir",
    "show_dead_letter",
    "tail_events",
    "trace_of",
    "tracing",
    "unknown_version",
    "write_descriptor_set",
]
