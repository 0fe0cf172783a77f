from esper.leyline.v1 import meta_pb2 as _meta_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
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
