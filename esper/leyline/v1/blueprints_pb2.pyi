from esper.leyline.v1 import meta_pb2 as _meta_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BlueprintTier(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BLUEPRINT_TIER_UNSPECIFIED: _ClassVar[BlueprintTier]
    BLUEPRINT_TIER_SAFE: _ClassVar[BlueprintTier]
    BLUEPRINT_TIER_EXPERIMENTAL: _ClassVar[BlueprintTier]
    BLUEPRINT_TIER_HIGH_RISK: _ClassVar[BlueprintTier]
BLUEPRINT_TIER_UNSPECIFIED: BlueprintTier
BLUEPRINT_TIER_SAFE: BlueprintTier
BLUEPRINT_TIER_EXPERIMENTAL: BlueprintTier
BLUEPRINT_TIER_HIGH_RISK: BlueprintTier

class BlueprintParameterBounds(_message.Message):
    __slots__ = ("min_value", "max_value")
    MIN_VALUE_FIELD_NUMBER: _ClassVar[int]
    MAX_VALUE_FIELD_NUMBER: _ClassVar[int]
    min_value: float
    max_value: float
    def __init__(self, min_value: _Optional[float] = ..., max_value: _Optional[float] = ...) -> None: ...

class BlueprintDescriptor(_message.Message):
    __slots__ = ("blueprint_id", "name", "tier", "allowed_parameters", "risk", "stage", "quarantine_only", "approval_required", "description", "layouts")
    class AllowedParametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: BlueprintParameterBounds
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[BlueprintParameterBounds, _Mapping]] = ...) -> None: ...
    BLUEPRINT_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    RISK_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    QUARANTINE_ONLY_FIELD_NUMBER: _ClassVar[int]
    APPROVAL_REQUIRED_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    LAYOUTS_FIELD_NUMBER: _ClassVar[int]
    blueprint_id: str
    name: str
    tier: BlueprintTier
    allowed_parameters: _containers.MessageMap[str, BlueprintParameterBounds]
    risk: float
    stage: int
    quarantine_only: bool
    approval_required: bool
    description: str
    layouts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, blueprint_id: _Optional[str] = ..., name: _Optional[str] = ..., tier: _Optional[_Union[BlueprintTier, str]] = ..., allowed_parameters: _Optional[_Mapping[str, BlueprintParameterBounds]] = ..., risk: _Optional[float] = ..., stage: _Optional[int] = ..., quarantine_only: _Optional[bool] = ..., approval_required: _Optional[bool] = ..., description: _Optional[str] = ..., layouts: _Optional[_Iterable[str]] = ...) -> None: ...

class BlueprintRegistered(_message.Message):
    __slots__ = ("meta", "descriptor", "descriptor_digest")
    META_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTOR_DIGEST_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    descriptor: BlueprintDescriptor
    descriptor_digest: str
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., descriptor: _Optional[_Union[BlueprintDescriptor, _Mapping]] = ..., descriptor_digest: _Optional[str] = ...) -> None: ...

class BlueprintApproved(_message.Message):
    __slots__ = ("meta", "blueprint_id", "descriptor_digest", "approved_by", "reason")
    META_FIELD_NUMBER: _ClassVar[int]
    BLUEPRINT_ID_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTOR_DIGEST_FIELD_NUMBER: _ClassVar[int]
    APPROVED_BY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    blueprint_id: str
    descriptor_digest: str
    approved_by: str
    reason: str
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., blueprint_id: _Optional[str] = ..., descriptor_digest: _Optional[str] = ..., approved_by: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class BlueprintWithdrawn(_message.Message):
    __slots__ = ("meta", "blueprint_id", "descriptor_digest", "withdrawn_by", "reason")
    META_FIELD_NUMBER: _ClassVar[int]
    BLUEPRINT_ID_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTOR_DIGEST_FIELD_NUMBER: _ClassVar[int]
    WITHDRAWN_BY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    blueprint_id: str
    descriptor_digest: str
    withdrawn_by: str
    reason: str
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., blueprint_id: _Optional[str] = ..., descriptor_digest: _Optional[str] = ..., withdrawn_by: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...
