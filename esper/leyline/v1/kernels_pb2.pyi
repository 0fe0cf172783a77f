import datetime

from esper.leyline.v1 import meta_pb2 as _meta_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class KernelRequestSpec(_message.Message):
    __slots__ = ("blueprint_id", "parameters", "layout", "in_shape", "out_shape", "dtype")
    class ParametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    BLUEPRINT_ID_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    IN_SHAPE_FIELD_NUMBER: _ClassVar[int]
    OUT_SHAPE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    blueprint_id: str
    parameters: _containers.ScalarMap[str, float]
    layout: str
    in_shape: _containers.RepeatedScalarFieldContainer[int]
    out_shape: _containers.RepeatedScalarFieldContainer[int]
    dtype: str
    def __init__(self, blueprint_id: _Optional[str] = ..., parameters: _Optional[_Mapping[str, float]] = ..., layout: _Optional[str] = ..., in_shape: _Optional[_Iterable[int]] = ..., out_shape: _Optional[_Iterable[int]] = ..., dtype: _Optional[str] = ...) -> None: ...

class ArtifactManifest(_message.Message):
    __slots__ = ("request", "kernel_id", "spec_digest", "spec_bytes", "weights_digest", "weights_bytes", "guard_digest", "parameters", "multiply_adds_per_sample", "format_version", "strategy")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    KERNEL_ID_FIELD_NUMBER: _ClassVar[int]
    SPEC_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SPEC_BYTES_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_BYTES_FIELD_NUMBER: _ClassVar[int]
    GUARD_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    MULTIPLY_ADDS_PER_SAMPLE_FIELD_NUMBER: _ClassVar[int]
    FORMAT_VERSION_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    request: KernelRequestSpec
    kernel_id: str
    spec_digest: str
    spec_bytes: int
    weights_digest: str
    weights_bytes: int
    guard_digest: str
    parameters: int
    multiply_adds_per_sample: int
    format_version: int
    strategy: str
    def __init__(self, request: _Optional[_Union[KernelRequestSpec, _Mapping]] = ..., kernel_id: _Optional[str] = ..., spec_digest: _Optional[str] = ..., spec_bytes: _Optional[int] = ..., weights_digest: _Optional[str] = ..., weights_bytes: _Optional[int] = ..., guard_digest: _Optional[str] = ..., parameters: _Optional[int] = ..., multiply_adds_per_sample: _Optional[int] = ..., format_version: _Optional[int] = ..., strategy: _Optional[str] = ...) -> None: ...

class KernelCatalogUpdate(_message.Message):
    __slots__ = ("meta", "blueprint_id", "artifact_ref", "checksum", "guard_digest", "compile_ms", "manifest", "kernel_id")
    META_FIELD_NUMBER: _ClassVar[int]
    BLUEPRINT_ID_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_REF_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    GUARD_DIGEST_FIELD_NUMBER: _ClassVar[int]
    COMPILE_MS_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    KERNEL_ID_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    blueprint_id: str
    artifact_ref: str
    checksum: str
    guard_digest: str
    compile_ms: float
    manifest: ArtifactManifest
    kernel_id: str
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., blueprint_id: _Optional[str] = ..., artifact_ref: _Optional[str] = ..., checksum: _Optional[str] = ..., guard_digest: _Optional[str] = ..., compile_ms: _Optional[float] = ..., manifest: _Optional[_Union[ArtifactManifest, _Mapping]] = ..., kernel_id: _Optional[str] = ...) -> None: ...

class CompileRequested(_message.Message):
    __slots__ = ("meta", "kernel_id", "request")
    META_FIELD_NUMBER: _ClassVar[int]
    KERNEL_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    kernel_id: str
    request: KernelRequestSpec
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., kernel_id: _Optional[str] = ..., request: _Optional[_Union[KernelRequestSpec, _Mapping]] = ...) -> None: ...

class CompileStarted(_message.Message):
    __slots__ = ("meta", "kernel_id", "attempt")
    META_FIELD_NUMBER: _ClassVar[int]
    KERNEL_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    kernel_id: str
    attempt: int
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., kernel_id: _Optional[str] = ..., attempt: _Optional[int] = ...) -> None: ...

class CompileFinished(_message.Message):
    __slots__ = ("meta", "kernel_id", "artifact_ref", "compile_ms", "strategy")
    META_FIELD_NUMBER: _ClassVar[int]
    KERNEL_ID_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_REF_FIELD_NUMBER: _ClassVar[int]
    COMPILE_MS_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    kernel_id: str
    artifact_ref: str
    compile_ms: float
    strategy: str
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., kernel_id: _Optional[str] = ..., artifact_ref: _Optional[str] = ..., compile_ms: _Optional[float] = ..., strategy: _Optional[str] = ...) -> None: ...

class CompileFailed(_message.Message):
    __slots__ = ("meta", "kernel_id", "blueprint_id", "reason", "attempt")
    META_FIELD_NUMBER: _ClassVar[int]
    KERNEL_ID_FIELD_NUMBER: _ClassVar[int]
    BLUEPRINT_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    kernel_id: str
    blueprint_id: str
    reason: str
    attempt: int
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., kernel_id: _Optional[str] = ..., blueprint_id: _Optional[str] = ..., reason: _Optional[str] = ..., attempt: _Optional[int] = ...) -> None: ...

class KernelPrefetchRequest(_message.Message):
    __slots__ = ("meta", "request_id", "blueprint_id", "training_run_id", "issued_at", "kernel_id", "request")
    META_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    BLUEPRINT_ID_FIELD_NUMBER: _ClassVar[int]
    TRAINING_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ISSUED_AT_FIELD_NUMBER: _ClassVar[int]
    KERNEL_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    request_id: str
    blueprint_id: str
    training_run_id: str
    issued_at: _timestamp_pb2.Timestamp
    kernel_id: str
    request: KernelRequestSpec
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., request_id: _Optional[str] = ..., blueprint_id: _Optional[str] = ..., training_run_id: _Optional[str] = ..., issued_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., kernel_id: _Optional[str] = ..., request: _Optional[_Union[KernelRequestSpec, _Mapping]] = ...) -> None: ...

class KernelArtifactReady(_message.Message):
    __slots__ = ("meta", "request_id", "blueprint_id", "artifact_ref", "checksum", "guard_digest", "kernel_id", "training_run_id")
    META_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    BLUEPRINT_ID_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_REF_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    GUARD_DIGEST_FIELD_NUMBER: _ClassVar[int]
    KERNEL_ID_FIELD_NUMBER: _ClassVar[int]
    TRAINING_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    request_id: str
    blueprint_id: str
    artifact_ref: str
    checksum: str
    guard_digest: str
    kernel_id: str
    training_run_id: str
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., request_id: _Optional[str] = ..., blueprint_id: _Optional[str] = ..., artifact_ref: _Optional[str] = ..., checksum: _Optional[str] = ..., guard_digest: _Optional[str] = ..., kernel_id: _Optional[str] = ..., training_run_id: _Optional[str] = ...) -> None: ...

class KernelArtifactError(_message.Message):
    __slots__ = ("meta", "request_id", "blueprint_id", "reason", "kernel_id", "training_run_id")
    META_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    BLUEPRINT_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    KERNEL_ID_FIELD_NUMBER: _ClassVar[int]
    TRAINING_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    request_id: str
    blueprint_id: str
    reason: str
    kernel_id: str
    training_run_id: str
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., request_id: _Optional[str] = ..., blueprint_id: _Optional[str] = ..., reason: _Optional[str] = ..., kernel_id: _Optional[str] = ..., training_run_id: _Optional[str] = ...) -> None: ...
