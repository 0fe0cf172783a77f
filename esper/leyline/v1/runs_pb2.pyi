from esper.leyline.v1 import meta_pb2 as _meta_pb2
from esper.leyline.v1 import seeds_pb2 as _seeds_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StackPlace(_message.Message):
    __slots__ = ("stack_id", "index", "size")
    STACK_ID_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    stack_id: str
    index: int
    size: int
    def __init__(self, stack_id: _Optional[str] = ..., index: _Optional[int] = ..., size: _Optional[int] = ...) -> None: ...

class BuiltIn(_message.Message):
    __slots__ = ("slot", "spec")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    slot: str
    spec: bytes
    def __init__(self, slot: _Optional[str] = ..., spec: _Optional[bytes] = ...) -> None: ...

class LearningRateAfter(_message.Message):
    __slots__ = ("epoch", "learning_rate")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    learning_rate: float
    def __init__(self, epoch: _Optional[int] = ..., learning_rate: _Optional[float] = ...) -> None: ...

class TrainingRunRequested(_message.Message):
    __slots__ = ("meta", "run_id", "task", "host", "policy", "policy_parameters", "epochs", "seed", "experiment_name", "device", "hyperparameters", "re_executable", "decision_wait_seconds", "kernel_wait_seconds", "digest_every_epochs", "slots", "forked_from", "forked_epochs", "replicate", "built_in", "learning_rates", "stack")
    class PolicyParametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class HyperparametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    META_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    POLICY_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENT_NAME_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    HYPERPARAMETERS_FIELD_NUMBER: _ClassVar[int]
    RE_EXECUTABLE_FIELD_NUMBER: _ClassVar[int]
    DECISION_WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    KERNEL_WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DIGEST_EVERY_EPOCHS_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    FORKED_FROM_FIELD_NUMBER: _ClassVar[int]
    FORKED_EPOCHS_FIELD_NUMBER: _ClassVar[int]
    REPLICATE_FIELD_NUMBER: _ClassVar[int]
    BUILT_IN_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATES_FIELD_NUMBER: _ClassVar[int]
    STACK_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    run_id: str
    task: str
    host: str
    policy: str
    policy_parameters: _containers.ScalarMap[str, float]
    epochs: int
    seed: int
    experiment_name: str
    device: str
    hyperparameters: _containers.ScalarMap[str, float]
    re_executable: bool
    decision_wait_seconds: float
    kernel_wait_seconds: float
    digest_every_epochs: int
    slots: _containers.RepeatedScalarFieldContainer[str]
    forked_from: str
    forked_epochs: int
    replicate: int
    built_in: _containers.RepeatedCompositeFieldContainer[BuiltIn]
    learning_rates: _containers.RepeatedCompositeFieldContainer[LearningRateAfter]
    stack: StackPlace
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., run_id: _Optional[str] = ..., task: _Optional[str] = ..., host: _Optional[str] = ..., policy: _Optional[str] = ..., policy_parameters: _Optional[_Mapping[str, float]] = ..., epochs: _Optional[int] = ..., seed: _Optional[int] = ..., experiment_name: _Optional[str] = ..., device: _Optional[str] = ..., hyperparameters: _Optional[_Mapping[str, float]] = ..., re_executable: _Optional[bool] = ..., decision_wait_seconds: _Optional[float] = ..., kernel_wait_seconds: _Optional[float] = ..., digest_every_epochs: _Optional[int] = ..., slots: _Optional[_Iterable[str]] = ..., forked_from: _Optional[str] = ..., forked_epochs: _Optional[int] = ..., replicate: _Optional[int] = ..., built_in: _Optional[_Iterable[_Union[BuiltIn, _Mapping]]] = ..., learning_rates: _Optional[_Iterable[_Union[LearningRateAfter, _Mapping]]] = ..., stack: _Optional[_Union[StackPlace, _Mapping]] = ...) -> None: ...

class TrainingRunClaimed(_message.Message):
    __slots__ = ("meta", "run_id", "attempt", "worker", "producer_id", "request_event_id", "home_id")
    META_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    PRODUCER_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    HOME_ID_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    run_id: str
    attempt: int
    worker: str
    producer_id: str
    request_event_id: str
    home_id: str
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., run_id: _Optional[str] = ..., attempt: _Optional[int] = ..., worker: _Optional[str] = ..., producer_id: _Optional[str] = ..., request_event_id: _Optional[str] = ..., home_id: _Optional[str] = ...) -> None: ...

class NumericsFingerprint(_message.Message):
    __slots__ = ("torch", "python", "instruction_set", "threads", "device", "world_size", "deterministic_algorithms", "blas", "collective", "stack_size")
    TORCH_FIELD_NUMBER: _ClassVar[int]
    PYTHON_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_SET_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    DETERMINISTIC_ALGORITHMS_FIELD_NUMBER: _ClassVar[int]
    BLAS_FIELD_NUMBER: _ClassVar[int]
    COLLECTIVE_FIELD_NUMBER: _ClassVar[int]
    STACK_SIZE_FIELD_NUMBER: _ClassVar[int]
    torch: str
    python: str
    instruction_set: str
    threads: int
    device: str
    world_size: int
    deterministic_algorithms: bool
    blas: str
    collective: str
    stack_size: int
    def __init__(self, torch: _Optional[str] = ..., python: _Optional[str] = ..., instruction_set: _Optional[str] = ..., threads: _Optional[int] = ..., device: _Optional[str] = ..., world_size: _Optional[int] = ..., deterministic_algorithms: _Optional[bool] = ..., blas: _Optional[str] = ..., collective: _Optional[str] = ..., stack_size: _Optional[int] = ...) -> None: ...

class TrainingRunStarted(_message.Message):
    __slots__ = ("meta", "run_id", "attempt", "worker", "numerics", "code_version", "dependencies_digest", "data_digest", "parameters", "initial_digest", "resumed_epochs")
    META_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_FIELD_NUMBER: _ClassVar[int]
    CODE_VERSION_FIELD_NUMBER: _ClassVar[int]
    DEPENDENCIES_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DATA_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    INITIAL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    RESUMED_EPOCHS_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    run_id: str
    attempt: int
    worker: str
    numerics: NumericsFingerprint
    code_version: str
    dependencies_digest: str
    data_digest: str
    parameters: int
    initial_digest: str
    resumed_epochs: int
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., run_id: _Optional[str] = ..., attempt: _Optional[int] = ..., worker: _Optional[str] = ..., numerics: _Optional[_Union[NumericsFingerprint, _Mapping]] = ..., code_version: _Optional[str] = ..., dependencies_digest: _Optional[str] = ..., data_digest: _Optional[str] = ..., parameters: _Optional[int] = ..., initial_digest: _Optional[str] = ..., resumed_epochs: _Optional[int] = ...) -> None: ...

class SeedSummary(_message.Message):
    __slots__ = ("seed_id", "slot", "blueprint_id", "stage")
    SEED_ID_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    BLUEPRINT_ID_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    seed_id: str
    slot: str
    blueprint_id: str
    stage: _seeds_pb2.SeedLifecycleStage
    def __init__(self, seed_id: _Optional[str] = ..., slot: _Optional[str] = ..., blueprint_id: _Optional[str] = ..., stage: _Optional[_Union[_seeds_pb2.SeedLifecycleStage, str]] = ...) -> None: ...

class TrainingRunFinished(_message.Message):
    __slots__ = ("meta", "run_id", "attempt", "epochs", "accuracy", "loss", "parameters", "multiply_adds", "multiply_adds_per_sample", "digest", "seeds", "validation_accuracy", "validation_loss")
    META_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    MULTIPLY_ADDS_FIELD_NUMBER: _ClassVar[int]
    MULTIPLY_ADDS_PER_SAMPLE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SEEDS_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_ACCURACY_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_LOSS_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    run_id: str
    attempt: int
    epochs: int
    accuracy: float
    loss: float
    parameters: int
    multiply_adds: int
    multiply_adds_per_sample: int
    digest: str
    seeds: _containers.RepeatedCompositeFieldContainer[SeedSummary]
    validation_accuracy: float
    validation_loss: float
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., run_id: _Optional[str] = ..., attempt: _Optional[int] = ..., epochs: _Optional[int] = ..., accuracy: _Optional[float] = ..., loss: _Optional[float] = ..., parameters: _Optional[int] = ..., multiply_adds: _Optional[int] = ..., multiply_adds_per_sample: _Optional[int] = ..., digest: _Optional[str] = ..., seeds: _Optional[_Iterable[_Union[SeedSummary, _Mapping]]] = ..., validation_accuracy: _Optional[float] = ..., validation_loss: _Optional[float] = ...) -> None: ...

class TrainingRunFailed(_message.Message):
    __slots__ = ("meta", "run_id", "attempt", "reason", "detail", "epochs")
    META_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    run_id: str
    attempt: int
    reason: str
    detail: str
    epochs: int
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., run_id: _Optional[str] = ..., attempt: _Optional[int] = ..., reason: _Optional[str] = ..., detail: _Optional[str] = ..., epochs: _Optional[int] = ...) -> None: ...

class CheckpointSaved(_message.Message):
    __slots__ = ("meta", "run_id", "attempt", "epoch", "blob_digest", "size_bytes", "weights_digest")
    META_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    BLOB_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    run_id: str
    attempt: int
    epoch: int
    blob_digest: str
    size_bytes: int
    weights_digest: str
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., run_id: _Optional[str] = ..., attempt: _Optional[int] = ..., epoch: _Optional[int] = ..., blob_digest: _Optional[str] = ..., size_bytes: _Optional[int] = ..., weights_digest: _Optional[str] = ...) -> None: ...

class RunRolledBack(_message.Message):
    __slots__ = ("meta", "run_id", "attempt", "from_epoch", "to_epoch", "checkpoint_digest", "reason", "digest_before", "digest_after", "rate_factor", "faults", "command_id")
    META_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    FROM_EPOCH_FIELD_NUMBER: _ClassVar[int]
    TO_EPOCH_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DIGEST_BEFORE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_AFTER_FIELD_NUMBER: _ClassVar[int]
    RATE_FACTOR_FIELD_NUMBER: _ClassVar[int]
    FAULTS_FIELD_NUMBER: _ClassVar[int]
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    meta: _meta_pb2.EventMeta
    run_id: str
    attempt: int
    from_epoch: int
    to_epoch: int
    checkpoint_digest: str
    reason: str
    digest_before: str
    digest_after: str
    rate_factor: float
    faults: int
    command_id: str
    def __init__(self, meta: _Optional[_Union[_meta_pb2.EventMeta, _Mapping]] = ..., run_id: _Optional[str] = ..., attempt: _Optional[int] = ..., from_epoch: _Optional[int] = ..., to_epoch: _Optional[int] = ..., checkpoint_digest: _Optional[str] = ..., reason: _Optional[str] = ..., digest_before: _Optional[str] = ..., digest_after: _Optional[str] = ..., rate_factor: _Optional[float] = ..., faults: _Optional[int] = ..., command_id: _Optional[str] = ...) -> None: ...
