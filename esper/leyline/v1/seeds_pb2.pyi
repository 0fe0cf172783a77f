from esper.leyline.v1 import meta_pb2 as _meta_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SeedLifecycleStage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SEED_STAGE_UNKNOWN: _ClassVar[SeedLifecycleStage]
    SEED_STAGE_DORMANT: _ClassVar[SeedLifecycleStage]
    SEED_STAGE_GERMINATED: _ClassVar[SeedLifecycleStage]
    SEED_STAGE_TRAINING: _ClassVar[SeedLifecycleStage]
    SEED_STAGE_BLENDING: _ClassVar[SeedLifecycleStage]
    SEED_STAGE_SHADOWING: _ClassVar[SeedLifecycleStage]
    SEED_STAGE_PROBATIONARY: _ClassVar[SeedLifecycleStage]
    SEED_STAGE_FOSSILIZED: _ClassVar[SeedLifecycleStage]
    SEED_STAGE_CULLED: _ClassVar[SeedLifecycleStage]
    SEED_STAGE_EMBARGOED: _ClassVar[SeedLifecycleStage]
    SEED_STAGE_RESETTING: _ClassVar[SeedLifecycleStage]
    SEED_STAGE_TERMINATED: _ClassVar[SeedLifecycleStage]

class SeedLifecycleGate(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SEED_GATE_UNKNOWN: _ClassVar[SeedLifecycleGate]
    SEED_GATE_G0_SANITY: _ClassVar[SeedLifecycleGate]
    SEED_GATE_G1_GRADIENT_HEALTH: _ClassVar[SeedLifecycleGate]
    SEED_GATE_G2_STABILITY: _ClassVar[SeedLifecycleGate]
    SEED_GATE_G3_INTERFACE: _ClassVar[SeedLifecycleGate]
    SEED_GATE_G4_SYSTEM_IMPACT: _ClassVar[SeedLifecycleGate]
    SEED_GATE_G5_RESET: _ClassVar[SeedLifecycleGate]

class BlendMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BLEND_MODE_UNSPECIFIED: _ClassVar[BlendMode]
    BLEND_MODE_RESIDUAL: _ClassVar[BlendMode]
    BLEND_MODE_CONVEX: _ClassVar[BlendMode]
    BLEND_MODE_CHANNEL: _ClassVar[BlendMode]
    BLEND_MODE_CONFIDENCE: _ClassVar[BlendMode]

class AlphaCurve(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ALPHA_CURVE_UNSPECIFIED: _ClassVar[AlphaCurve]
    ALPHA_CURVE_LINEAR: _ClassVar[AlphaCurve]
    ALPHA_CURVE_COSINE: _ClassVar[AlphaCurve]
    ALPHA_CURVE_SIGMOID: _ClassVar[AlphaCurve]

class QuarantineVerdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    QUARANTINE_VERDICT_UNSPECIFIED: _ClassVar[QuarantineVerdict]
    QUARANTINE_VERDICT_COMPLETED: _ClassVar[QuarantineVerdict]
    QUARANTINE_VERDICT_NOT_FINITE: _ClassVar[QuarantineVerdict]
    QUARANTINE_VERDICT_EXPLOSION: _ClassVar[QuarantineVerdict]
    QUARANTINE_VERDICT_VANISHED: _ClassVar[QuarantineVerdict]
    QUARANTINE_VERDICT_HANG: _ClassVar[QuarantineVerdict]
    QUARANTINE_VERDICT_DEADLOCK: _ClassVar[QuarantineVerdict]
    QUARANTINE_VERDICT_MEMORY: _ClassVar[QuarantineVerdict]
    QUARANTINE_VERDICT_THREADS: _ClassVar[QuarantineVerdict]
    QUARANTINE_VERDICT_RACE: _ClassVar[QuarantineVerdict]
    QUARANTINE_VERDICT_UNSTABLE: _ClassVar[QuarantineVerdict]
    QUARANTINE_VERDICT_CRASHED: _ClassVar[QuarantineVerdict]
SEED_STAGE_UNKNOWN: SeedLifecycleStage
SEED_STAGE_DORMANT: SeedLifecycleStage
SEED_STAGE_GERMINATED: SeedLifecycleStage
SEED_STAGE_TRAINING: SeedLifecycleStage
SEED_STAGE_BLENDING: SeedLifecycleStage
SEED_STAGE_SHADOWING: SeedLifecycleStage
SEED_STAGE_PROBATIONARY: SeedLifecycleStage
SEED_STAGE_FOSSILIZED: SeedLifecycleStage
SEED_STAGE_CULLED: SeedLifecycleStage
SEED_STAGE_EMBARGOED: SeedLifecycleStage
SEED_STAGE_RESETTING: SeedLifecycleStage
SEED_STAGE_TERMINATED: SeedLifecycleStage
SEED_GATE_UNKNOWN: SeedLifecycleGate
SEED_GATE_G0_SANITY: SeedLifecycleGate
SEED_GATE_G1_GRADIENT_HEALTH: SeedLifecycleGate
SEED_GATE_G2_STABILITY: SeedLifecycleGate
SEED_GATE_G3_INTERFACE: SeedLifecycleGate
SEED_GATE_G4_SYSTEM_IMPACT: SeedLifecycleGate
SEED_GATE_G5_RESET: SeedLifecycleGate
BLEND_MODE_UNSPECIFIED: BlendMode
BLEND_MODE_RESIDUAL: BlendMode
BLEND_MODE_CONVEX: BlendMode
BLEND_MODE_CHANNEL: BlendMode
BLEND_MODE_CONFIDENCE: BlendMode
ALPHA_CURVE_UNSPECIFIED: AlphaCurve
ALPHA_CURVE_LINEAR: AlphaCurve
ALPHA_CURVE_COSINE: AlphaCurve
ALPHA_CURVE_SIGMOID: AlphaCurve
QUARANTINE_VERDICT_UNSPECIFIED: QuarantineVerdict
QUARANTINE_VERDICT_COMPLETED: QuarantineVerdict
QUARANTINE_VERDICT_NOT_FINITE: QuarantineVerdict
QUARANTINE_VERDICT_EXPLOSION: QuarantineVerdict
QUARANTINE_VERDICT_VANISHED: QuarantineVerdict
QUARANTINE_VERDICT_HANG: QuarantineVerdict
QUARANTINE_VERDICT_DEADLOCK: QuarantineVerdict
QUARANTINE_VERDICT_MEMORY: QuarantineVerdict
QUARANTINE_VERDICT_THREADS: QuarantineVerdict
QUARANTINE_VERDICT_RACE: QuarantineVerdict
QUARANTINE_VERDICT_UNSTABLE: QuarantineVerdict
QUARANTINE_VERDICT_CRASHED: QuarantineVerdict

class SeedState(_message.Message):
    __slots__ = ("seed_id", "stage", "gradient_norm", "learning_rate", "layer_depth", "metrics", "age_epochs", "risk_score", "slot", "blueprint_id", "alpha", "stage_epochs")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    SEED_ID_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_NORM_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    LAYER_DEPTH_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    AGE_EPOCHS_FIELD_NUMBER: _ClassVar[int]
    RISK_SCORE_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    BLUEPRINT_ID_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    STAGE_EPOCHS_FIELD_NUMBER: _ClassVar[int]
    seed_id: str
    stage: SeedLifecycleStage
    gradient_norm: float
    learning_rate: float
    layer_depth: int
    metrics: _containers.ScalarMap[str, float]
    age_epochs: int
    risk_score: float
    slot: str
    blueprint_id: str
    alpha: float
    stage_epochs: int
    def __init__(self, seed_id: _Optional[str] = ..., stage: _Optional[_Union[SeedLifecycleStage, str]] = ..., gradient_norm: _Optional[float] = ..., learning_rate: _Optional[float] = ..., layer_depth: _Optional[int] = ..., metrics: _Optional[_Mapping[str, float]] = ..., age_epochs: _Optional[int] = ..., risk_score: _Optional[float] = ..., slot: _Optional[str] = ..., blueprint_id: _Optional[str] = ..., alpha: _Optional[float] = ..., stage_epochs: _Optional[int] = ...) -> None: ...

class GateCheck(_message.Message):
    __slots__ = ("name", "value", "bound", "comparison", "passed")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    BOUND_FIELD_NUMBER: _ClassVar[int]
    COMPARISON_FIELD_NUMBER: _ClassVar[int]
    PASSED_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: float
    bound: float
    comparison: str
    passed: bool
    def __init__(self, name: _Optional[str] = ..., value: _Optional[float] = ..., bound: _Optional[float] = ..., comparison: _Optional[str] = ..., passed: _Optional[bool] = ...) -> None: ...

class GateEvaluated(_message.Message):
    __slots__ = ("meta", "run_id", "attempt", "epoch", "seed_id", "gate", "passed", "checks", "command_id")
    META_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEED_ID_FIELD_NUMBER: _ClassVar[int]
    GATE_FIELD_NUMBER: _ClassVar[int]
    PASSED_FIELD_NUMBER: _ClassVar[int]
    CHECKS_FIELD_NUMBER: _ClassVar[int]
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    run_id: str
    attempt: int
    epoch: int
    seed_id: str
    gate: SeedLifecycleGate
    passed: bool
    checks: _containers.RepeatedCompositeFieldContainer[GateCheck]
    command_id: str
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., run_id: _Optional[str] = ..., attempt: _Optional[int] = ..., epoch: _Optional[int] = ..., seed_id: _Optional[str] = ..., gate: _Optional[_Union[SeedLifecycleGate, str]] = ..., passed: _Optional[bool] = ..., checks: _Optional[_Iterable[_Union[GateCheck, _Mapping]]] = ..., command_id: _Optional[str] = ...) -> None: ...

class SeedStageChanged(_message.Message):
    __slots__ = ("meta", "run_id", "attempt", "epoch", "seed_id", "slot", "blueprint_id", "from_stage", "to_stage", "reason", "command_id", "alpha", "gate_event_ids", "gates_not_measured", "metrics", "blend_mode", "alpha_curve")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    META_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEED_ID_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    BLUEPRINT_ID_FIELD_NUMBER: _ClassVar[int]
    FROM_STAGE_FIELD_NUMBER: _ClassVar[int]
    TO_STAGE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    GATE_EVENT_IDS_FIELD_NUMBER: _ClassVar[int]
    GATES_NOT_MEASURED_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    BLEND_MODE_FIELD_NUMBER: _ClassVar[int]
    ALPHA_CURVE_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    run_id: str
    attempt: int
    epoch: int
    seed_id: str
    slot: str
    blueprint_id: str
    from_stage: SeedLifecycleStage
    to_stage: SeedLifecycleStage
    reason: str
    command_id: str
    alpha: float
    gate_event_ids: _containers.RepeatedScalarFieldContainer[str]
    gates_not_measured: _containers.RepeatedScalarFieldContainer[SeedLifecycleGate]
    metrics: _containers.ScalarMap[str, float]
    blend_mode: BlendMode
    alpha_curve: AlphaCurve
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., run_id: _Optional[str] = ..., attempt: _Optional[int] = ..., epoch: _Optional[int] = ..., seed_id: _Optional[str] = ..., slot: _Optional[str] = ..., blueprint_id: _Optional[str] = ..., from_stage: _Optional[_Union[SeedLifecycleStage, str]] = ..., to_stage: _Optional[_Union[SeedLifecycleStage, str]] = ..., reason: _Optional[str] = ..., command_id: _Optional[str] = ..., alpha: _Optional[float] = ..., gate_event_ids: _Optional[_Iterable[str]] = ..., gates_not_measured: _Optional[_Iterable[_Union[SeedLifecycleGate, str]]] = ..., metrics: _Optional[_Mapping[str, float]] = ..., blend_mode: _Optional[_Union[BlendMode, str]] = ..., alpha_curve: _Optional[_Union[AlphaCurve, str]] = ...) -> None: ...

class SeedTuned(_message.Message):
    __slots__ = ("meta", "run_id", "attempt", "epoch", "seed_id", "stage", "rate_factor", "epochs", "reason", "command_id")
    META_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEED_ID_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    RATE_FACTOR_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    run_id: str
    attempt: int
    epoch: int
    seed_id: str
    stage: SeedLifecycleStage
    rate_factor: float
    epochs: int
    reason: str
    command_id: str
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., run_id: _Optional[str] = ..., attempt: _Optional[int] = ..., epoch: _Optional[int] = ..., seed_id: _Optional[str] = ..., stage: _Optional[_Union[SeedLifecycleStage, str]] = ..., rate_factor: _Optional[float] = ..., epochs: _Optional[int] = ..., reason: _Optional[str] = ..., command_id: _Optional[str] = ...) -> None: ...

class SeedMoveRejected(_message.Message):
    __slots__ = ("meta", "run_id", "attempt", "epoch", "seed_id", "from_stage", "to_stage", "reason", "command_id", "gate_event_ids")
    META_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEED_ID_FIELD_NUMBER: _ClassVar[int]
    FROM_STAGE_FIELD_NUMBER: _ClassVar[int]
    TO_STAGE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    GATE_EVENT_IDS_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    run_id: str
    attempt: int
    epoch: int
    seed_id: str
    from_stage: SeedLifecycleStage
    to_stage: SeedLifecycleStage
    reason: str
    command_id: str
    gate_event_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., run_id: _Optional[str] = ..., attempt: _Optional[int] = ..., epoch: _Optional[int] = ..., seed_id: _Optional[str] = ..., from_stage: _Optional[_Union[SeedLifecycleStage, str]] = ..., to_stage: _Optional[_Union[SeedLifecycleStage, str]] = ..., reason: _Optional[str] = ..., command_id: _Optional[str] = ..., gate_event_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class KernelQuarantined(_message.Message):
    __slots__ = ("meta", "training_run_id", "seed_id", "slot", "blueprint_id", "kernel_id", "artifact_ref", "verdict", "detail", "steps", "seconds", "peak_memory_bytes", "figures", "attempt", "epoch", "command_id")
    class FiguresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    META_FIELD_NUMBER: _ClassVar[int]
    TRAINING_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    SEED_ID_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    BLUEPRINT_ID_FIELD_NUMBER: _ClassVar[int]
    KERNEL_ID_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_REF_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    PEAK_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    training_run_id: str
    seed_id: str
    slot: str
    blueprint_id: str
    kernel_id: str
    artifact_ref: str
    verdict: QuarantineVerdict
    detail: str
    steps: int
    seconds: float
    peak_memory_bytes: int
    figures: _containers.ScalarMap[str, float]
    attempt: int
    epoch: int
    command_id: str
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., training_run_id: _Optional[str] = ..., seed_id: _Optional[str] = ..., slot: _Optional[str] = ..., blueprint_id: _Optional[str] = ..., kernel_id: _Optional[str] = ..., artifact_ref: _Optional[str] = ..., verdict: _Optional[_Union[QuarantineVerdict, str]] = ..., detail: _Optional[str] = ..., steps: _Optional[int] = ..., seconds: _Optional[float] = ..., peak_memory_bytes: _Optional[int] = ..., figures: _Optional[_Mapping[str, float]] = ..., attempt: _Optional[int] = ..., epoch: _Optional[int] = ..., command_id: _Optional[str] = ...) -> None: ...
