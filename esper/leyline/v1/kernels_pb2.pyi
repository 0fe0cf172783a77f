import datetime

from esper.leyline.v1 import meta_pb2 as _meta_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CompiledKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COMPILED_KIND_UNSPECIFIED: _ClassVar[CompiledKind]
    COMPILED_KIND_INDUCTOR_CACHE: _ClassVar[CompiledKind]
    COMPILED_KIND_AOT_PACKAGE: _ClassVar[CompiledKind]
    COMPILED_KIND_AOT_TRAIN_PACKAGE: _ClassVar[CompiledKind]
COMPILED_KIND_UNSPECIFIED: CompiledKind
COMPILED_KIND_INDUCTOR_CACHE: CompiledKind
COMPILED_KIND_AOT_PACKAGE: CompiledKind
COMPILED_KIND_AOT_TRAIN_PACKAGE: CompiledKind

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

class LatencyFigures(_message.Message):
    __slots__ = ("samples", "p50_ms", "p95_ms", "batch")
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    P50_MS_FIELD_NUMBER: _ClassVar[int]
    P95_MS_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    samples: int
    p50_ms: float
    p95_ms: float
    batch: int
    def __init__(self, samples: _Optional[int] = ..., p50_ms: _Optional[float] = ..., p95_ms: _Optional[float] = ..., batch: _Optional[int] = ...) -> None: ...

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
    __slots__ = ("meta", "kernel_id", "artifact_ref", "compile_ms", "strategy", "fallback_reason", "prewarm")
    META_FIELD_NUMBER: _ClassVar[int]
    KERNEL_ID_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_REF_FIELD_NUMBER: _ClassVar[int]
    COMPILE_MS_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_REASON_FIELD_NUMBER: _ClassVar[int]
    PREWARM_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    kernel_id: str
    artifact_ref: str
    compile_ms: float
    strategy: str
    fallback_reason: str
    prewarm: LatencyFigures
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., kernel_id: _Optional[str] = ..., artifact_ref: _Optional[str] = ..., compile_ms: _Optional[float] = ..., strategy: _Optional[str] = ..., fallback_reason: _Optional[str] = ..., prewarm: _Optional[_Union[LatencyFigures, _Mapping]] = ...) -> None: ...

class CompileFailed(_message.Message):
    __slots__ = ("meta", "kernel_id", "blueprint_id", "reason", "attempt", "retried", "retry_after_ms")
    META_FIELD_NUMBER: _ClassVar[int]
    KERNEL_ID_FIELD_NUMBER: _ClassVar[int]
    BLUEPRINT_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    RETRIED_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    kernel_id: str
    blueprint_id: str
    reason: str
    attempt: int
    retried: bool
    retry_after_ms: float
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., kernel_id: _Optional[str] = ..., blueprint_id: _Optional[str] = ..., reason: _Optional[str] = ..., attempt: _Optional[int] = ..., retried: _Optional[bool] = ..., retry_after_ms: _Optional[float] = ...) -> None: ...

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
    __slots__ = ("meta", "request_id", "blueprint_id", "artifact_ref", "checksum", "guard_digest", "kernel_id", "training_run_id", "prewarm")
    META_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    BLUEPRINT_ID_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_REF_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    GUARD_DIGEST_FIELD_NUMBER: _ClassVar[int]
    KERNEL_ID_FIELD_NUMBER: _ClassVar[int]
    TRAINING_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    PREWARM_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    request_id: str
    blueprint_id: str
    artifact_ref: str
    checksum: str
    guard_digest: str
    kernel_id: str
    training_run_id: str
    prewarm: LatencyFigures
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., request_id: _Optional[str] = ..., blueprint_id: _Optional[str] = ..., artifact_ref: _Optional[str] = ..., checksum: _Optional[str] = ..., guard_digest: _Optional[str] = ..., kernel_id: _Optional[str] = ..., training_run_id: _Optional[str] = ..., prewarm: _Optional[_Union[LatencyFigures, _Mapping]] = ...) -> None: ...

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

class Platform(_message.Message):
    __slots__ = ("torch_version", "device", "isa", "threads")
    TORCH_VERSION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    ISA_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    torch_version: str
    device: str
    isa: str
    threads: int
    def __init__(self, torch_version: _Optional[str] = ..., device: _Optional[str] = ..., isa: _Optional[str] = ..., threads: _Optional[int] = ...) -> None: ...

class ParityFigures(_message.Message):
    __slots__ = ("batches", "forward_abs_max", "backward_abs_max", "tolerance", "passed")
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    FORWARD_ABS_MAX_FIELD_NUMBER: _ClassVar[int]
    BACKWARD_ABS_MAX_FIELD_NUMBER: _ClassVar[int]
    TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    PASSED_FIELD_NUMBER: _ClassVar[int]
    batches: _containers.RepeatedScalarFieldContainer[int]
    forward_abs_max: float
    backward_abs_max: float
    tolerance: float
    passed: bool
    def __init__(self, batches: _Optional[_Iterable[int]] = ..., forward_abs_max: _Optional[float] = ..., backward_abs_max: _Optional[float] = ..., tolerance: _Optional[float] = ..., passed: _Optional[bool] = ...) -> None: ...

class KernelPartCompiled(_message.Message):
    __slots__ = ("meta", "kernel_id", "artifact_ref", "blueprint_id", "kind", "part_digest", "part_bytes", "forge", "platform", "guard_digest", "parity", "compile_ms", "warm_compile_ms", "speedup", "chosen", "reason")
    META_FIELD_NUMBER: _ClassVar[int]
    KERNEL_ID_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_REF_FIELD_NUMBER: _ClassVar[int]
    BLUEPRINT_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    PART_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PART_BYTES_FIELD_NUMBER: _ClassVar[int]
    FORGE_FIELD_NUMBER: _ClassVar[int]
    PLATFORM_FIELD_NUMBER: _ClassVar[int]
    GUARD_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PARITY_FIELD_NUMBER: _ClassVar[int]
    COMPILE_MS_FIELD_NUMBER: _ClassVar[int]
    WARM_COMPILE_MS_FIELD_NUMBER: _ClassVar[int]
    SPEEDUP_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    kernel_id: str
    artifact_ref: str
    blueprint_id: str
    kind: CompiledKind
    part_digest: str
    part_bytes: int
    forge: str
    platform: Platform
    guard_digest: str
    parity: ParityFigures
    compile_ms: float
    warm_compile_ms: float
    speedup: float
    chosen: bool
    reason: str
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., kernel_id: _Optional[str] = ..., artifact_ref: _Optional[str] = ..., blueprint_id: _Optional[str] = ..., kind: _Optional[_Union[CompiledKind, str]] = ..., part_digest: _Optional[str] = ..., part_bytes: _Optional[int] = ..., forge: _Optional[str] = ..., platform: _Optional[_Union[Platform, _Mapping]] = ..., guard_digest: _Optional[str] = ..., parity: _Optional[_Union[ParityFigures, _Mapping]] = ..., compile_ms: _Optional[float] = ..., warm_compile_ms: _Optional[float] = ..., speedup: _Optional[float] = ..., chosen: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class BlueprintBenchmarkProfile(_message.Message):
    __slots__ = ("name", "latency", "throughput_samples_per_s")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LATENCY_FIELD_NUMBER: _ClassVar[int]
    THROUGHPUT_SAMPLES_PER_S_FIELD_NUMBER: _ClassVar[int]
    name: str
    latency: LatencyFigures
    throughput_samples_per_s: float
    def __init__(self, name: _Optional[str] = ..., latency: _Optional[_Union[LatencyFigures, _Mapping]] = ..., throughput_samples_per_s: _Optional[float] = ...) -> None: ...

class BlueprintBenchmark(_message.Message):
    __slots__ = ("version", "blueprint_id", "kernel_id", "layout", "profiles", "platform")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BLUEPRINT_ID_FIELD_NUMBER: _ClassVar[int]
    KERNEL_ID_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    PROFILES_FIELD_NUMBER: _ClassVar[int]
    PLATFORM_FIELD_NUMBER: _ClassVar[int]
    version: int
    blueprint_id: str
    kernel_id: str
    layout: str
    profiles: _containers.RepeatedCompositeFieldContainer[BlueprintBenchmarkProfile]
    platform: Platform
    def __init__(self, version: _Optional[int] = ..., blueprint_id: _Optional[str] = ..., kernel_id: _Optional[str] = ..., layout: _Optional[str] = ..., profiles: _Optional[_Iterable[_Union[BlueprintBenchmarkProfile, _Mapping]]] = ..., platform: _Optional[_Union[Platform, _Mapping]] = ...) -> None: ...

class BenchmarkReport(_message.Message):
    __slots__ = ("meta", "benchmark")
    META_FIELD_NUMBER: _ClassVar[int]
    BENCHMARK_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    benchmark: BlueprintBenchmark
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., benchmark: _Optional[_Union[BlueprintBenchmark, _Mapping]] = ...) -> None: ...

class KernelIntegrityFailed(_message.Message):
    __slots__ = ("meta", "kernel_id", "artifact_ref", "part", "reason")
    META_FIELD_NUMBER: _ClassVar[int]
    KERNEL_ID_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_REF_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    kernel_id: str
    artifact_ref: str
    part: str
    reason: str
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., kernel_id: _Optional[str] = ..., artifact_ref: _Optional[str] = ..., part: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class KernelEvicted(_message.Message):
    __slots__ = ("meta", "kernel_id", "artifact_ref", "reason", "freed_bytes")
    META_FIELD_NUMBER: _ClassVar[int]
    KERNEL_ID_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_REF_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FREED_BYTES_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    kernel_id: str
    artifact_ref: str
    reason: str
    freed_bytes: int
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., kernel_id: _Optional[str] = ..., artifact_ref: _Optional[str] = ..., reason: _Optional[str] = ..., freed_bytes: _Optional[int] = ...) -> None: ...
