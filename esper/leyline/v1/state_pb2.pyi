from esper.leyline.v1 import health_pb2 as _health_pb2
from esper.leyline.v1 import meta_pb2 as _meta_pb2
from esper.leyline.v1 import seeds_pb2 as _seeds_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class HardwareContext(_message.Message):
    __slots__ = ("device_type", "device_id", "total_memory_gb", "available_memory_gb", "temperature_celsius", "utilization_percent", "compute_capability")
    DEVICE_TYPE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    TOTAL_MEMORY_GB_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_MEMORY_GB_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_CELSIUS_FIELD_NUMBER: _ClassVar[int]
    UTILIZATION_PERCENT_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_CAPABILITY_FIELD_NUMBER: _ClassVar[int]
    device_type: str
    device_id: str
    total_memory_gb: float
    available_memory_gb: float
    temperature_celsius: float
    utilization_percent: float
    compute_capability: int
    def __init__(self, device_type: _Optional[str] = ..., device_id: _Optional[str] = ..., total_memory_gb: _Optional[float] = ..., available_memory_gb: _Optional[float] = ..., temperature_celsius: _Optional[float] = ..., utilization_percent: _Optional[float] = ..., compute_capability: _Optional[int] = ...) -> None: ...

class SlotState(_message.Message):
    __slots__ = ("slot", "module", "placement", "layout", "in_shape", "out_shape", "seed_id", "layer_depth")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    MODULE_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    IN_SHAPE_FIELD_NUMBER: _ClassVar[int]
    OUT_SHAPE_FIELD_NUMBER: _ClassVar[int]
    SEED_ID_FIELD_NUMBER: _ClassVar[int]
    LAYER_DEPTH_FIELD_NUMBER: _ClassVar[int]
    slot: str
    module: str
    placement: str
    layout: str
    in_shape: _containers.RepeatedScalarFieldContainer[int]
    out_shape: _containers.RepeatedScalarFieldContainer[int]
    seed_id: str
    layer_depth: int
    def __init__(self, slot: _Optional[str] = ..., module: _Optional[str] = ..., placement: _Optional[str] = ..., layout: _Optional[str] = ..., in_shape: _Optional[_Iterable[int]] = ..., out_shape: _Optional[_Iterable[int]] = ..., seed_id: _Optional[str] = ..., layer_depth: _Optional[int] = ...) -> None: ...

class GrowthState(_message.Message):
    __slots__ = ("breaker", "breaker_held", "paused", "paused_until_epoch", "halted")
    BREAKER_FIELD_NUMBER: _ClassVar[int]
    BREAKER_HELD_FIELD_NUMBER: _ClassVar[int]
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    PAUSED_UNTIL_EPOCH_FIELD_NUMBER: _ClassVar[int]
    HALTED_FIELD_NUMBER: _ClassVar[int]
    breaker: _health_pb2.CircuitBreakerState
    breaker_held: bool
    paused: bool
    paused_until_epoch: int
    halted: bool
    def __init__(self, breaker: _Optional[_Union[_health_pb2.CircuitBreakerState, str]] = ..., breaker_held: _Optional[bool] = ..., paused: _Optional[bool] = ..., paused_until_epoch: _Optional[int] = ..., halted: _Optional[bool] = ...) -> None: ...

class SystemStatePacket(_message.Message):
    __slots__ = ("meta", "version", "training_run_id", "experiment_name", "attempt", "current_epoch", "epochs_planned", "global_step", "training_loss", "validation_loss", "validation_accuracy", "training_metrics", "seed_states", "slots", "hardware_context", "weights_digest", "policy", "parameters", "multiply_adds", "multiply_adds_per_sample", "task", "host", "seed", "growth", "follows_epoch")
    class TrainingMetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    META_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TRAINING_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENT_NAME_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    CURRENT_EPOCH_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_PLANNED_FIELD_NUMBER: _ClassVar[int]
    GLOBAL_STEP_FIELD_NUMBER: _ClassVar[int]
    TRAINING_LOSS_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_LOSS_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_ACCURACY_FIELD_NUMBER: _ClassVar[int]
    TRAINING_METRICS_FIELD_NUMBER: _ClassVar[int]
    SEED_STATES_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    MULTIPLY_ADDS_FIELD_NUMBER: _ClassVar[int]
    MULTIPLY_ADDS_PER_SAMPLE_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    GROWTH_FIELD_NUMBER: _ClassVar[int]
    FOLLOWS_EPOCH_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    version: int
    training_run_id: str
    experiment_name: str
    attempt: int
    current_epoch: int
    epochs_planned: int
    global_step: int
    training_loss: float
    validation_loss: float
    validation_accuracy: float
    training_metrics: _containers.ScalarMap[str, float]
    seed_states: _containers.RepeatedCompositeFieldContainer[_seeds_pb2.SeedState]
    slots: _containers.RepeatedCompositeFieldContainer[SlotState]
    hardware_context: HardwareContext
    weights_digest: str
    policy: str
    parameters: int
    multiply_adds: int
    multiply_adds_per_sample: int
    task: str
    host: str
    seed: int
    growth: GrowthState
    follows_epoch: int
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., version: _Optional[int] = ..., training_run_id: _Optional[str] = ..., experiment_name: _Optional[str] = ..., attempt: _Optional[int] = ..., current_epoch: _Optional[int] = ..., epochs_planned: _Optional[int] = ..., global_step: _Optional[int] = ..., training_loss: _Optional[float] = ..., validation_loss: _Optional[float] = ..., validation_accuracy: _Optional[float] = ..., training_metrics: _Optional[_Mapping[str, float]] = ..., seed_states: _Optional[_Iterable[_Union[_seeds_pb2.SeedState, _Mapping]]] = ..., slots: _Optional[_Iterable[_Union[SlotState, _Mapping]]] = ..., hardware_context: _Optional[_Union[HardwareContext, _Mapping]] = ..., weights_digest: _Optional[str] = ..., policy: _Optional[str] = ..., parameters: _Optional[int] = ..., multiply_adds: _Optional[int] = ..., multiply_adds_per_sample: _Optional[int] = ..., task: _Optional[str] = ..., host: _Optional[str] = ..., seed: _Optional[int] = ..., growth: _Optional[_Union[GrowthState, _Mapping]] = ..., follows_epoch: _Optional[int] = ...) -> None: ...
