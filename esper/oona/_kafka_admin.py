"""Kafka's administrative types; confluent_kafka offers them without declaring them as its exports."""

from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public by its documentation
    AlterConfigOpType,
    ClusterMetadata,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

__all__ = [
    "AlterConfigOpType",
    "ClusterMetadata",
    "ConfigEntry",
    "ConfigResource",
    "NewTopic",
    "OffsetSpec",
    "ResourceType",
]
