from esper.leyline.v1 import commands_pb2 as _commands_pb2
from esper.leyline.v1 import meta_pb2 as _meta_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DecisionHead(_message.Message):
    __slots__ = ("name", "actions", "mask", "probabilities", "chosen", "log_probability")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    LOG_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    name: str
    actions: _containers.RepeatedScalarFieldContainer[str]
    mask: _containers.RepeatedScalarFieldContainer[bool]
    probabilities: _containers.RepeatedScalarFieldContainer[float]
    chosen: int
    log_probability: float
    def __init__(self, name: _Optional[str] = ..., actions: _Optional[_Iterable[str]] = ..., mask: _Optional[_Iterable[bool]] = ..., probabilities: _Optional[_Iterable[float]] = ..., chosen: _Optional[int] = ..., log_probability: _Optional[float] = ...) -> None: ...

class DecisionMade(_message.Message):
    __slots__ = ("meta", "run_id", "attempt", "epoch", "state_event_id", "policy", "policy_version", "policy_digest", "observation_schema", "observation_names", "observation", "heads", "log_probability", "rng_seed", "rng_counter", "value_estimate", "proposed", "overridden", "override_reason", "command_id", "reasons", "policy_event_id", "executed")
    META_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STATE_EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    POLICY_DIGEST_FIELD_NUMBER: _ClassVar[int]
    OBSERVATION_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    OBSERVATION_NAMES_FIELD_NUMBER: _ClassVar[int]
    OBSERVATION_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    LOG_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    RNG_SEED_FIELD_NUMBER: _ClassVar[int]
    RNG_COUNTER_FIELD_NUMBER: _ClassVar[int]
    VALUE_ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    PROPOSED_FIELD_NUMBER: _ClassVar[int]
    OVERRIDDEN_FIELD_NUMBER: _ClassVar[int]
    OVERRIDE_REASON_FIELD_NUMBER: _ClassVar[int]
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    POLICY_EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    EXECUTED_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    run_id: str
    attempt: int
    epoch: int
    state_event_id: str
    policy: str
    policy_version: str
    policy_digest: str
    observation_schema: str
    observation_names: _containers.RepeatedScalarFieldContainer[str]
    observation: _containers.RepeatedScalarFieldContainer[float]
    heads: _containers.RepeatedCompositeFieldContainer[DecisionHead]
    log_probability: float
    rng_seed: int
    rng_counter: int
    value_estimate: float
    proposed: _commands_pb2.AdaptationCommand
    overridden: bool
    override_reason: str
    command_id: str
    reasons: _containers.RepeatedScalarFieldContainer[str]
    policy_event_id: str
    executed: _commands_pb2.AdaptationCommand
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., run_id: _Optional[str] = ..., attempt: _Optional[int] = ..., epoch: _Optional[int] = ..., state_event_id: _Optional[str] = ..., policy: _Optional[str] = ..., policy_version: _Optional[str] = ..., policy_digest: _Optional[str] = ..., observation_schema: _Optional[str] = ..., observation_names: _Optional[_Iterable[str]] = ..., observation: _Optional[_Iterable[float]] = ..., heads: _Optional[_Iterable[_Union[DecisionHead, _Mapping]]] = ..., log_probability: _Optional[float] = ..., rng_seed: _Optional[int] = ..., rng_counter: _Optional[int] = ..., value_estimate: _Optional[float] = ..., proposed: _Optional[_Union[_commands_pb2.AdaptationCommand, _Mapping]] = ..., overridden: _Optional[bool] = ..., override_reason: _Optional[str] = ..., command_id: _Optional[str] = ..., reasons: _Optional[_Iterable[str]] = ..., policy_event_id: _Optional[str] = ..., executed: _Optional[_Union[_commands_pb2.AdaptationCommand, _Mapping]] = ...) -> None: ...
