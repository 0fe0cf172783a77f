import datetime

from esper.leyline.v1 import health_pb2 as _health_pb2
from esper.leyline.v1 import meta_pb2 as _meta_pb2
from esper.leyline.v1 import runs_pb2 as _runs_pb2
from esper.leyline.v1 import seeds_pb2 as _seeds_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CommandType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COMMAND_UNKNOWN: _ClassVar[CommandType]
    COMMAND_SEED: _ClassVar[CommandType]
    COMMAND_ROLLBACK: _ClassVar[CommandType]
    COMMAND_OPTIMIZER: _ClassVar[CommandType]
    COMMAND_CIRCUIT_BREAKER: _ClassVar[CommandType]
    COMMAND_PAUSE: _ClassVar[CommandType]
    COMMAND_EMERGENCY: _ClassVar[CommandType]
    COMMAND_STRUCTURAL_PRUNING: _ClassVar[CommandType]
    COMMAND_CONTINUE: _ClassVar[CommandType]

class SeedOperation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SEED_OP_UNKNOWN: _ClassVar[SeedOperation]
    SEED_OP_GERMINATE: _ClassVar[SeedOperation]
    SEED_OP_START_TRAINING: _ClassVar[SeedOperation]
    SEED_OP_START_GRAFTING: _ClassVar[SeedOperation]
    SEED_OP_STABILIZE: _ClassVar[SeedOperation]
    SEED_OP_EVALUATE: _ClassVar[SeedOperation]
    SEED_OP_FINE_TUNE: _ClassVar[SeedOperation]
    SEED_OP_FOSSILIZE: _ClassVar[SeedOperation]
    SEED_OP_CULL: _ClassVar[SeedOperation]
    SEED_OP_CANCEL: _ClassVar[SeedOperation]

class CommandResult(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COMMAND_RESULT_UNSPECIFIED: _ClassVar[CommandResult]
    COMMAND_RESULT_APPLIED: _ClassVar[CommandResult]
    COMMAND_RESULT_REJECTED: _ClassVar[CommandResult]
    COMMAND_RESULT_NONE: _ClassVar[CommandResult]
COMMAND_UNKNOWN: CommandType
COMMAND_SEED: CommandType
COMMAND_ROLLBACK: CommandType
COMMAND_OPTIMIZER: CommandType
COMMAND_CIRCUIT_BREAKER: CommandType
COMMAND_PAUSE: CommandType
COMMAND_EMERGENCY: CommandType
COMMAND_STRUCTURAL_PRUNING: CommandType
COMMAND_CONTINUE: CommandType
SEED_OP_UNKNOWN: SeedOperation
SEED_OP_GERMINATE: SeedOperation
SEED_OP_START_TRAINING: SeedOperation
SEED_OP_START_GRAFTING: SeedOperation
SEED_OP_STABILIZE: SeedOperation
SEED_OP_EVALUATE: SeedOperation
SEED_OP_FINE_TUNE: SeedOperation
SEED_OP_FOSSILIZE: SeedOperation
SEED_OP_CULL: SeedOperation
SEED_OP_CANCEL: SeedOperation
COMMAND_RESULT_UNSPECIFIED: CommandResult
COMMAND_RESULT_APPLIED: CommandResult
COMMAND_RESULT_REJECTED: CommandResult
COMMAND_RESULT_NONE: CommandResult

class CommandSeedOperation(_message.Message):
    __slots__ = ("operation", "blueprint_id", "parameters", "slot", "blend_mode", "alpha_curve", "hold")
    class ParametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    BLUEPRINT_ID_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    BLEND_MODE_FIELD_NUMBER: _ClassVar[int]
    ALPHA_CURVE_FIELD_NUMBER: _ClassVar[int]
    HOLD_FIELD_NUMBER: _ClassVar[int]
    operation: SeedOperation
    blueprint_id: str
    parameters: _containers.ScalarMap[str, float]
    slot: str
    blend_mode: _seeds_pb2.BlendMode
    alpha_curve: _seeds_pb2.AlphaCurve
    hold: bool
    def __init__(self, operation: _Optional[_Union[SeedOperation, str]] = ..., blueprint_id: _Optional[str] = ..., parameters: _Optional[_Mapping[str, float]] = ..., slot: _Optional[str] = ..., blend_mode: _Optional[_Union[_seeds_pb2.BlendMode, str]] = ..., alpha_curve: _Optional[_Union[_seeds_pb2.AlphaCurve, str]] = ..., hold: _Optional[bool] = ...) -> None: ...

class CommandStructuralPruning(_message.Message):
    __slots__ = ("loss_rise_max",)
    LOSS_RISE_MAX_FIELD_NUMBER: _ClassVar[int]
    loss_rise_max: float
    def __init__(self, loss_rise_max: _Optional[float] = ...) -> None: ...

class CommandOptimizerAdjustment(_message.Message):
    __slots__ = ("optimizer_id", "hyperparameters")
    class HyperparametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    OPTIMIZER_ID_FIELD_NUMBER: _ClassVar[int]
    HYPERPARAMETERS_FIELD_NUMBER: _ClassVar[int]
    optimizer_id: str
    hyperparameters: _containers.ScalarMap[str, float]
    def __init__(self, optimizer_id: _Optional[str] = ..., hyperparameters: _Optional[_Mapping[str, float]] = ...) -> None: ...

class CommandCircuitBreaker(_message.Message):
    __slots__ = ("desired_state", "rationale")
    DESIRED_STATE_FIELD_NUMBER: _ClassVar[int]
    RATIONALE_FIELD_NUMBER: _ClassVar[int]
    desired_state: _health_pb2.CircuitBreakerState
    rationale: str
    def __init__(self, desired_state: _Optional[_Union[_health_pb2.CircuitBreakerState, str]] = ..., rationale: _Optional[str] = ...) -> None: ...

class CommandPause(_message.Message):
    __slots__ = ("resume", "epochs", "rationale")
    RESUME_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    RATIONALE_FIELD_NUMBER: _ClassVar[int]
    resume: bool
    epochs: int
    rationale: str
    def __init__(self, resume: _Optional[bool] = ..., epochs: _Optional[int] = ..., rationale: _Optional[str] = ...) -> None: ...

class AdaptationCommand(_message.Message):
    __slots__ = ("meta", "version", "command_id", "command_type", "target_seed_id", "training_run_id", "epoch", "issued_at", "issued_by", "seed_operation", "optimizer_adjustment", "circuit_breaker", "rollback_payload", "pause", "structural_pruning", "execution_deadline_ms", "decision_id", "first_epoch", "last_epoch", "annotations", "candidates")
    class AnnotationsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    META_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    COMMAND_TYPE_FIELD_NUMBER: _ClassVar[int]
    TARGET_SEED_ID_FIELD_NUMBER: _ClassVar[int]
    TRAINING_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ISSUED_AT_FIELD_NUMBER: _ClassVar[int]
    ISSUED_BY_FIELD_NUMBER: _ClassVar[int]
    SEED_OPERATION_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_ADJUSTMENT_FIELD_NUMBER: _ClassVar[int]
    CIRCUIT_BREAKER_FIELD_NUMBER: _ClassVar[int]
    ROLLBACK_PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    PAUSE_FIELD_NUMBER: _ClassVar[int]
    STRUCTURAL_PRUNING_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_EPOCH_FIELD_NUMBER: _ClassVar[int]
    LAST_EPOCH_FIELD_NUMBER: _ClassVar[int]
    ANNOTATIONS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    version: int
    command_id: str
    command_type: CommandType
    target_seed_id: str
    training_run_id: str
    epoch: int
    issued_at: _timestamp_pb2.Timestamp
    issued_by: str
    seed_operation: CommandSeedOperation
    optimizer_adjustment: CommandOptimizerAdjustment
    circuit_breaker: CommandCircuitBreaker
    rollback_payload: _struct_pb2.Struct
    pause: CommandPause
    structural_pruning: CommandStructuralPruning
    execution_deadline_ms: int
    decision_id: str
    first_epoch: int
    last_epoch: int
    annotations: _containers.ScalarMap[str, str]
    candidates: _containers.RepeatedCompositeFieldContainer[CommandSeedOperation]
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., version: _Optional[int] = ..., command_id: _Optional[str] = ..., command_type: _Optional[_Union[CommandType, str]] = ..., target_seed_id: _Optional[str] = ..., training_run_id: _Optional[str] = ..., epoch: _Optional[int] = ..., issued_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., issued_by: _Optional[str] = ..., seed_operation: _Optional[_Union[CommandSeedOperation, _Mapping]] = ..., optimizer_adjustment: _Optional[_Union[CommandOptimizerAdjustment, _Mapping]] = ..., circuit_breaker: _Optional[_Union[CommandCircuitBreaker, _Mapping]] = ..., rollback_payload: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., pause: _Optional[_Union[CommandPause, _Mapping]] = ..., structural_pruning: _Optional[_Union[CommandStructuralPruning, _Mapping]] = ..., execution_deadline_ms: _Optional[int] = ..., decision_id: _Optional[str] = ..., first_epoch: _Optional[int] = ..., last_epoch: _Optional[int] = ..., annotations: _Optional[_Mapping[str, str]] = ..., candidates: _Optional[_Iterable[_Union[CommandSeedOperation, _Mapping]]] = ...) -> None: ...

class LateCommand(_message.Message):
    __slots__ = ("command_id", "event_id", "epoch", "reason", "offset")
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    command_id: str
    event_id: str
    epoch: int
    reason: str
    offset: int
    def __init__(self, command_id: _Optional[str] = ..., event_id: _Optional[str] = ..., epoch: _Optional[int] = ..., reason: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class CommandOutcome(_message.Message):
    __slots__ = ("meta", "run_id", "attempt", "epoch", "state_event_id", "result", "reason", "command_id", "command_event_id", "command_offset", "command_type", "seed_operation", "seed_id", "kernel_digest", "latency_ms", "late_commands", "command", "gate_verdicts", "decision_id", "late_commands_unlisted", "rolled_back", "choices")
    class GateVerdictsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bool
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bool] = ...) -> None: ...
    class ChoicesEntry(_message.Message):
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
    STATE_EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    COMMAND_EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    COMMAND_OFFSET_FIELD_NUMBER: _ClassVar[int]
    COMMAND_TYPE_FIELD_NUMBER: _ClassVar[int]
    SEED_OPERATION_FIELD_NUMBER: _ClassVar[int]
    SEED_ID_FIELD_NUMBER: _ClassVar[int]
    KERNEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    LATE_COMMANDS_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    GATE_VERDICTS_FIELD_NUMBER: _ClassVar[int]
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    LATE_COMMANDS_UNLISTED_FIELD_NUMBER: _ClassVar[int]
    ROLLED_BACK_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    run_id: str
    attempt: int
    epoch: int
    state_event_id: str
    result: CommandResult
    reason: str
    command_id: str
    command_event_id: str
    command_offset: int
    command_type: CommandType
    seed_operation: SeedOperation
    seed_id: str
    kernel_digest: str
    latency_ms: float
    late_commands: _containers.RepeatedCompositeFieldContainer[LateCommand]
    command: AdaptationCommand
    gate_verdicts: _containers.ScalarMap[str, bool]
    decision_id: str
    late_commands_unlisted: int
    rolled_back: _runs_pb2.RunRolledBack
    choices: _containers.ScalarMap[str, float]
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., run_id: _Optional[str] = ..., attempt: _Optional[int] = ..., epoch: _Optional[int] = ..., state_event_id: _Optional[str] = ..., result: _Optional[_Union[CommandResult, str]] = ..., reason: _Optional[str] = ..., command_id: _Optional[str] = ..., command_event_id: _Optional[str] = ..., command_offset: _Optional[int] = ..., command_type: _Optional[_Union[CommandType, str]] = ..., seed_operation: _Optional[_Union[SeedOperation, str]] = ..., seed_id: _Optional[str] = ..., kernel_digest: _Optional[str] = ..., latency_ms: _Optional[float] = ..., late_commands: _Optional[_Iterable[_Union[LateCommand, _Mapping]]] = ..., command: _Optional[_Union[AdaptationCommand, _Mapping]] = ..., gate_verdicts: _Optional[_Mapping[str, bool]] = ..., decision_id: _Optional[str] = ..., late_commands_unlisted: _Optional[int] = ..., rolled_back: _Optional[_Union[_runs_pb2.RunRolledBack, _Mapping]] = ..., choices: _Optional[_Mapping[str, float]] = ...) -> None: ...
