import datetime

from esper.leyline.v1 import meta_pb2 as _meta_pb2
from esper.leyline.v1 import runs_pb2 as _runs_pb2
from esper.leyline.v1 import seeds_pb2 as _seeds_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OffsetRange(_message.Message):
    __slots__ = ("topic", "topic_id", "partition", "first_offset", "end_offset")
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    FIRST_OFFSET_FIELD_NUMBER: _ClassVar[int]
    END_OFFSET_FIELD_NUMBER: _ClassVar[int]
    topic: str
    topic_id: str
    partition: int
    first_offset: int
    end_offset: int
    def __init__(self, topic: _Optional[str] = ..., topic_id: _Optional[str] = ..., partition: _Optional[int] = ..., first_offset: _Optional[int] = ..., end_offset: _Optional[int] = ...) -> None: ...

class PolicyUpdate(_message.Message):
    __slots__ = ("meta", "version", "policy_id", "training_run_id", "issued_at", "tamiyo_policy_version", "payload", "policy_digest", "weights_digest", "specification", "observation_schema", "parent_policy_version", "parent_policy_digest", "training_data", "code_version", "dependencies_digest", "seed", "numerics", "algorithm", "hyperparameters", "scores", "episodes", "transitions", "learned_on")
    class HyperparametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class ScoresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    META_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    POLICY_ID_FIELD_NUMBER: _ClassVar[int]
    TRAINING_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ISSUED_AT_FIELD_NUMBER: _ClassVar[int]
    TAMIYO_POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    POLICY_DIGEST_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SPECIFICATION_FIELD_NUMBER: _ClassVar[int]
    OBSERVATION_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    PARENT_POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    PARENT_POLICY_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TRAINING_DATA_FIELD_NUMBER: _ClassVar[int]
    CODE_VERSION_FIELD_NUMBER: _ClassVar[int]
    DEPENDENCIES_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_FIELD_NUMBER: _ClassVar[int]
    ALGORITHM_FIELD_NUMBER: _ClassVar[int]
    HYPERPARAMETERS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    EPISODES_FIELD_NUMBER: _ClassVar[int]
    TRANSITIONS_FIELD_NUMBER: _ClassVar[int]
    LEARNED_ON_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    version: int
    policy_id: str
    training_run_id: str
    issued_at: _timestamp_pb2.Timestamp
    tamiyo_policy_version: str
    payload: bytes
    policy_digest: str
    weights_digest: str
    specification: str
    observation_schema: str
    parent_policy_version: str
    parent_policy_digest: str
    training_data: _containers.RepeatedCompositeFieldContainer[OffsetRange]
    code_version: str
    dependencies_digest: str
    seed: int
    numerics: _runs_pb2.NumericsFingerprint
    algorithm: str
    hyperparameters: _containers.ScalarMap[str, float]
    scores: _containers.ScalarMap[str, float]
    episodes: int
    transitions: int
    learned_on: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., version: _Optional[int] = ..., policy_id: _Optional[str] = ..., training_run_id: _Optional[str] = ..., issued_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., tamiyo_policy_version: _Optional[str] = ..., payload: _Optional[bytes] = ..., policy_digest: _Optional[str] = ..., weights_digest: _Optional[str] = ..., specification: _Optional[str] = ..., observation_schema: _Optional[str] = ..., parent_policy_version: _Optional[str] = ..., parent_policy_digest: _Optional[str] = ..., training_data: _Optional[_Iterable[_Union[OffsetRange, _Mapping]]] = ..., code_version: _Optional[str] = ..., dependencies_digest: _Optional[str] = ..., seed: _Optional[int] = ..., numerics: _Optional[_Union[_runs_pb2.NumericsFingerprint, _Mapping]] = ..., algorithm: _Optional[str] = ..., hyperparameters: _Optional[_Mapping[str, float]] = ..., scores: _Optional[_Mapping[str, float]] = ..., episodes: _Optional[int] = ..., transitions: _Optional[int] = ..., learned_on: _Optional[_Iterable[str]] = ...) -> None: ...

class PolicyValidated(_message.Message):
    __slots__ = ("meta", "policy_id", "tamiyo_policy_version", "policy_digest", "passed", "checks", "incumbent_policy_version", "incumbent_policy_digest", "evaluation_data", "code_version", "seed", "reason", "scores")
    class ScoresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    META_FIELD_NUMBER: _ClassVar[int]
    POLICY_ID_FIELD_NUMBER: _ClassVar[int]
    TAMIYO_POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    POLICY_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PASSED_FIELD_NUMBER: _ClassVar[int]
    CHECKS_FIELD_NUMBER: _ClassVar[int]
    INCUMBENT_POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    INCUMBENT_POLICY_DIGEST_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_DATA_FIELD_NUMBER: _ClassVar[int]
    CODE_VERSION_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    policy_id: str
    tamiyo_policy_version: str
    policy_digest: str
    passed: bool
    checks: _containers.RepeatedCompositeFieldContainer[_seeds_pb2.GateCheck]
    incumbent_policy_version: str
    incumbent_policy_digest: str
    evaluation_data: _containers.RepeatedCompositeFieldContainer[OffsetRange]
    code_version: str
    seed: int
    reason: str
    scores: _containers.ScalarMap[str, float]
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., policy_id: _Optional[str] = ..., tamiyo_policy_version: _Optional[str] = ..., policy_digest: _Optional[str] = ..., passed: _Optional[bool] = ..., checks: _Optional[_Iterable[_Union[_seeds_pb2.GateCheck, _Mapping]]] = ..., incumbent_policy_version: _Optional[str] = ..., incumbent_policy_digest: _Optional[str] = ..., evaluation_data: _Optional[_Iterable[_Union[OffsetRange, _Mapping]]] = ..., code_version: _Optional[str] = ..., seed: _Optional[int] = ..., reason: _Optional[str] = ..., scores: _Optional[_Mapping[str, float]] = ...) -> None: ...

class PolicyPromoted(_message.Message):
    __slots__ = ("meta", "policy_id", "tamiyo_policy_version", "policy_digest", "previous_policy_version", "previous_policy_digest", "validation_event_id", "issued_by", "reason")
    META_FIELD_NUMBER: _ClassVar[int]
    POLICY_ID_FIELD_NUMBER: _ClassVar[int]
    TAMIYO_POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    POLICY_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_POLICY_DIGEST_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    ISSUED_BY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    policy_id: str
    tamiyo_policy_version: str
    policy_digest: str
    previous_policy_version: str
    previous_policy_digest: str
    validation_event_id: str
    issued_by: str
    reason: str
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., policy_id: _Optional[str] = ..., tamiyo_policy_version: _Optional[str] = ..., policy_digest: _Optional[str] = ..., previous_policy_version: _Optional[str] = ..., previous_policy_digest: _Optional[str] = ..., validation_event_id: _Optional[str] = ..., issued_by: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class PolicyRolledBack(_message.Message):
    __slots__ = ("meta", "policy_id", "tamiyo_policy_version", "policy_digest", "restored_policy_version", "restored_policy_digest", "breaches", "issued_by", "reason")
    META_FIELD_NUMBER: _ClassVar[int]
    POLICY_ID_FIELD_NUMBER: _ClassVar[int]
    TAMIYO_POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    POLICY_DIGEST_FIELD_NUMBER: _ClassVar[int]
    RESTORED_POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    RESTORED_POLICY_DIGEST_FIELD_NUMBER: _ClassVar[int]
    BREACHES_FIELD_NUMBER: _ClassVar[int]
    ISSUED_BY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    policy_id: str
    tamiyo_policy_version: str
    policy_digest: str
    restored_policy_version: str
    restored_policy_digest: str
    breaches: _containers.RepeatedCompositeFieldContainer[_seeds_pb2.GateCheck]
    issued_by: str
    reason: str
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., policy_id: _Optional[str] = ..., tamiyo_policy_version: _Optional[str] = ..., policy_digest: _Optional[str] = ..., restored_policy_version: _Optional[str] = ..., restored_policy_digest: _Optional[str] = ..., breaches: _Optional[_Iterable[_Union[_seeds_pb2.GateCheck, _Mapping]]] = ..., issued_by: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...
