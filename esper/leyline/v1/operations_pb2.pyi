from esper.leyline.v1 import meta_pb2 as _meta_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DeadLetterReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DEAD_LETTER_REASON_UNSPECIFIED: _ClassVar[DeadLetterReason]
    DEAD_LETTER_REASON_UNSIGNED: _ClassVar[DeadLetterReason]
    DEAD_LETTER_REASON_UNKNOWN_KEY: _ClassVar[DeadLetterReason]
    DEAD_LETTER_REASON_BAD_SIGNATURE: _ClassVar[DeadLetterReason]
    DEAD_LETTER_REASON_EMPTY: _ClassVar[DeadLetterReason]
    DEAD_LETTER_REASON_UNDECODABLE: _ClassVar[DeadLetterReason]
    DEAD_LETTER_REASON_UNKNOWN_TYPE: _ClassVar[DeadLetterReason]
    DEAD_LETTER_REASON_NOT_ALLOWED: _ClassVar[DeadLetterReason]
    DEAD_LETTER_REASON_INCONSISTENT: _ClassVar[DeadLetterReason]
    DEAD_LETTER_REASON_TOO_LARGE: _ClassVar[DeadLetterReason]
    DEAD_LETTER_REASON_HANDLER_FAILED: _ClassVar[DeadLetterReason]
    DEAD_LETTER_REASON_CONFLICTING_DUPLICATE: _ClassVar[DeadLetterReason]
    DEAD_LETTER_REASON_WAITS_FOR_KEY: _ClassVar[DeadLetterReason]
    DEAD_LETTER_REASON_REVOKED_KEY: _ClassVar[DeadLetterReason]
    DEAD_LETTER_REASON_WRONG_SIGNER: _ClassVar[DeadLetterReason]
    DEAD_LETTER_REASON_STALE: _ClassVar[DeadLetterReason]
    DEAD_LETTER_REASON_REPLAYED: _ClassVar[DeadLetterReason]
    DEAD_LETTER_REASON_FUTURE_TIME: _ClassVar[DeadLetterReason]
    DEAD_LETTER_REASON_UNKNOWN_VERSION: _ClassVar[DeadLetterReason]
    DEAD_LETTER_REASON_REFUSED: _ClassVar[DeadLetterReason]

class KeyAlgorithm(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KEY_ALGORITHM_UNSPECIFIED: _ClassVar[KeyAlgorithm]
    KEY_ALGORITHM_HMAC_SHA256: _ClassVar[KeyAlgorithm]
    KEY_ALGORITHM_ED25519: _ClassVar[KeyAlgorithm]
DEAD_LETTER_REASON_UNSPECIFIED: DeadLetterReason
DEAD_LETTER_REASON_UNSIGNED: DeadLetterReason
DEAD_LETTER_REASON_UNKNOWN_KEY: DeadLetterReason
DEAD_LETTER_REASON_BAD_SIGNATURE: DeadLetterReason
DEAD_LETTER_REASON_EMPTY: DeadLetterReason
DEAD_LETTER_REASON_UNDECODABLE: DeadLetterReason
DEAD_LETTER_REASON_UNKNOWN_TYPE: DeadLetterReason
DEAD_LETTER_REASON_NOT_ALLOWED: DeadLetterReason
DEAD_LETTER_REASON_INCONSISTENT: DeadLetterReason
DEAD_LETTER_REASON_TOO_LARGE: DeadLetterReason
DEAD_LETTER_REASON_HANDLER_FAILED: DeadLetterReason
DEAD_LETTER_REASON_CONFLICTING_DUPLICATE: DeadLetterReason
DEAD_LETTER_REASON_WAITS_FOR_KEY: DeadLetterReason
DEAD_LETTER_REASON_REVOKED_KEY: DeadLetterReason
DEAD_LETTER_REASON_WRONG_SIGNER: DeadLetterReason
DEAD_LETTER_REASON_STALE: DeadLetterReason
DEAD_LETTER_REASON_REPLAYED: DeadLetterReason
DEAD_LETTER_REASON_FUTURE_TIME: DeadLetterReason
DEAD_LETTER_REASON_UNKNOWN_VERSION: DeadLetterReason
DEAD_LETTER_REASON_REFUSED: DeadLetterReason
KEY_ALGORITHM_UNSPECIFIED: KeyAlgorithm
KEY_ALGORITHM_HMAC_SHA256: KeyAlgorithm
KEY_ALGORITHM_ED25519: KeyAlgorithm

class DeadLetter(_message.Message):
    __slots__ = ("meta", "topic", "partition", "offset", "key", "reason", "detail", "value_digest", "attempts", "consumer_group", "record_type", "value_bytes")
    META_FIELD_NUMBER: _ClassVar[int]
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    VALUE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    CONSUMER_GROUP_FIELD_NUMBER: _ClassVar[int]
    RECORD_TYPE_FIELD_NUMBER: _ClassVar[int]
    VALUE_BYTES_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    topic: str
    partition: int
    offset: int
    key: bytes
    reason: DeadLetterReason
    detail: str
    value_digest: str
    attempts: int
    consumer_group: str
    record_type: str
    value_bytes: int
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., topic: _Optional[str] = ..., partition: _Optional[int] = ..., offset: _Optional[int] = ..., key: _Optional[bytes] = ..., reason: _Optional[_Union[DeadLetterReason, str]] = ..., detail: _Optional[str] = ..., value_digest: _Optional[str] = ..., attempts: _Optional[int] = ..., consumer_group: _Optional[str] = ..., record_type: _Optional[str] = ..., value_bytes: _Optional[int] = ...) -> None: ...

class ChainLink(_message.Message):
    __slots__ = ("topic", "partition", "sequence", "offset", "mac")
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    MAC_FIELD_NUMBER: _ClassVar[int]
    topic: str
    partition: int
    sequence: int
    offset: int
    mac: bytes
    def __init__(self, topic: _Optional[str] = ..., partition: _Optional[int] = ..., sequence: _Optional[int] = ..., offset: _Optional[int] = ..., mac: _Optional[bytes] = ...) -> None: ...

class PartitionOffset(_message.Message):
    __slots__ = ("topic", "partition", "offset")
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    topic: str
    partition: int
    offset: int
    def __init__(self, topic: _Optional[str] = ..., partition: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class ProducerStarted(_message.Message):
    __slots__ = ("meta", "member", "predecessor_id", "links", "cause")
    META_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    PREDECESSOR_ID_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    member: str
    predecessor_id: str
    links: _containers.RepeatedCompositeFieldContainer[ChainLink]
    cause: str
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., member: _Optional[str] = ..., predecessor_id: _Optional[str] = ..., links: _Optional[_Iterable[_Union[ChainLink, _Mapping]]] = ..., cause: _Optional[str] = ...) -> None: ...

class Redriven(_message.Message):
    __slots__ = ("meta", "topic", "partition", "offset", "letter_id", "consumer_group", "note")
    META_FIELD_NUMBER: _ClassVar[int]
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LETTER_ID_FIELD_NUMBER: _ClassVar[int]
    CONSUMER_GROUP_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    topic: str
    partition: int
    offset: int
    letter_id: str
    consumer_group: str
    note: str
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., topic: _Optional[str] = ..., partition: _Optional[int] = ..., offset: _Optional[int] = ..., letter_id: _Optional[str] = ..., consumer_group: _Optional[str] = ..., note: _Optional[str] = ...) -> None: ...

class Discarded(_message.Message):
    __slots__ = ("meta", "topic", "partition", "offset", "letter_id", "consumer_group", "note")
    META_FIELD_NUMBER: _ClassVar[int]
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LETTER_ID_FIELD_NUMBER: _ClassVar[int]
    CONSUMER_GROUP_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    topic: str
    partition: int
    offset: int
    letter_id: str
    consumer_group: str
    note: str
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., topic: _Optional[str] = ..., partition: _Optional[int] = ..., offset: _Optional[int] = ..., letter_id: _Optional[str] = ..., consumer_group: _Optional[str] = ..., note: _Optional[str] = ...) -> None: ...

class PartitionCheckpoint(_message.Message):
    __slots__ = ("topic", "topic_id", "partition", "first_offset", "next_offset", "records", "digest")
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    FIRST_OFFSET_FIELD_NUMBER: _ClassVar[int]
    NEXT_OFFSET_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    topic: str
    topic_id: str
    partition: int
    first_offset: int
    next_offset: int
    records: int
    digest: bytes
    def __init__(self, topic: _Optional[str] = ..., topic_id: _Optional[str] = ..., partition: _Optional[int] = ..., first_offset: _Optional[int] = ..., next_offset: _Optional[int] = ..., records: _Optional[int] = ..., digest: _Optional[bytes] = ...) -> None: ...

class LogCheckpointContent(_message.Message):
    __slots__ = ("number", "previous_digest", "cluster_id", "partitions")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    number: int
    previous_digest: bytes
    cluster_id: str
    partitions: _containers.RepeatedCompositeFieldContainer[PartitionCheckpoint]
    def __init__(self, number: _Optional[int] = ..., previous_digest: _Optional[bytes] = ..., cluster_id: _Optional[str] = ..., partitions: _Optional[_Iterable[_Union[PartitionCheckpoint, _Mapping]]] = ...) -> None: ...

class LogCheckpoint(_message.Message):
    __slots__ = ("meta", "content", "signature", "public_key")
    META_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    content: bytes
    signature: bytes
    public_key: bytes
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., content: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., public_key: _Optional[bytes] = ...) -> None: ...

class KeyRotated(_message.Message):
    __slots__ = ("meta", "key_id", "previous_key_id", "algorithm", "public_key", "signer")
    META_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_KEY_ID_FIELD_NUMBER: _ClassVar[int]
    ALGORITHM_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    SIGNER_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    key_id: str
    previous_key_id: str
    algorithm: KeyAlgorithm
    public_key: bytes
    signer: str
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., key_id: _Optional[str] = ..., previous_key_id: _Optional[str] = ..., algorithm: _Optional[_Union[KeyAlgorithm, str]] = ..., public_key: _Optional[bytes] = ..., signer: _Optional[str] = ...) -> None: ...

class KeyRevoked(_message.Message):
    __slots__ = ("meta", "key_id", "effective_from", "reason")
    META_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    EFFECTIVE_FROM_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    key_id: str
    effective_from: _containers.RepeatedCompositeFieldContainer[PartitionOffset]
    reason: str
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., key_id: _Optional[str] = ..., effective_from: _Optional[_Iterable[_Union[PartitionOffset, _Mapping]]] = ..., reason: _Optional[str] = ...) -> None: ...

class RestoredPartition(_message.Message):
    __slots__ = ("topic", "topic_id", "new_topic_id", "partition", "first_offset", "next_offset")
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    NEW_TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    FIRST_OFFSET_FIELD_NUMBER: _ClassVar[int]
    NEXT_OFFSET_FIELD_NUMBER: _ClassVar[int]
    topic: str
    topic_id: str
    new_topic_id: str
    partition: int
    first_offset: int
    next_offset: int
    def __init__(self, topic: _Optional[str] = ..., topic_id: _Optional[str] = ..., new_topic_id: _Optional[str] = ..., partition: _Optional[int] = ..., first_offset: _Optional[int] = ..., next_offset: _Optional[int] = ...) -> None: ...

class LogRestoredContent(_message.Message):
    __slots__ = ("seal", "seal_digest", "cluster_id", "new_cluster_id", "records", "partitions")
    SEAL_FIELD_NUMBER: _ClassVar[int]
    SEAL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    NEW_CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    seal: int
    seal_digest: bytes
    cluster_id: str
    new_cluster_id: str
    records: int
    partitions: _containers.RepeatedCompositeFieldContainer[RestoredPartition]
    def __init__(self, seal: _Optional[int] = ..., seal_digest: _Optional[bytes] = ..., cluster_id: _Optional[str] = ..., new_cluster_id: _Optional[str] = ..., records: _Optional[int] = ..., partitions: _Optional[_Iterable[_Union[RestoredPartition, _Mapping]]] = ...) -> None: ...

class LogRestored(_message.Message):
    __slots__ = ("meta", "content", "signature", "public_key")
    META_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    content: bytes
    signature: bytes
    public_key: bytes
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., content: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., public_key: _Optional[bytes] = ...) -> None: ...
