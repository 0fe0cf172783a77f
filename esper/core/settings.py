"""Every setting of Esper, read once from the environment (and an optional .env file)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from esper.core.errors import SettingsError


def _listed(value: object) -> object:
    """Take a comma-separated list apart; anything else is left to pydantic."""
    return tuple(part for word in value.split(",") if (part := word.strip())) if isinstance(value, str) else value


#: Comma-separated in the environment, where pydantic-settings would expect JSON.
_Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)]
_Folders = Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_listed)]


class Settings(BaseSettings):
    """What can be set from outside; `.env.example` lists the same names (a test compares them)."""

    model_config = SettingsConfigDict(env_prefix="ESPER_", env_file=".env", extra="ignore", frozen=True)

    home: Path = Field(Path("var"), description="Folder of everything local: broker data, blobs, projections, keys.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "WARNING", description="Threshold of the loggers under esper.*"
    )
    leyline_secret: SecretStr | None = Field(
        None, description="Signing secret, at least 32 bytes; unset: the key that `esper init` made in the home."
    )
    leyline_previous_secrets: SecretStr | None = Field(
        None, description="Comma-separated older secrets that may verify but not sign."
    )
    signature_scheme: Literal["hmac", "ed25519"] = Field(
        "hmac",
        description="ed25519: commands, kernels and events about keys are believed only with their source's own key.",
    )
    kafka_bootstrap: str | None = Field(
        None, description="host:port[,host:port] of any Kafka cluster; unset: the local broker of the home."
    )
    kafka_replication_factor: int = Field(1, ge=1, le=9, description="Replicas of every topic.")
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="Kafka security protocol."
    )
    kafka_sasl_mechanism: str = Field("SCRAM-SHA-512", description="SASL mechanism, used with a SASL protocol.")
    kafka_sasl_username: str | None = Field(None, description="SASL user.")
    kafka_sasl_password: SecretStr | None = Field(None, description="SASL password.")
    kafka_ssl_ca: Path | None = Field(None, description="CA bundle for TLS.")
    broker_port: int | None = Field(
        None, ge=1024, le=65535, description="Port of the local broker; unset: a free one is chosen and remembered."
    )
    broker_start_seconds: float = Field(60.0, gt=0, description="How long the local broker may take to start.")
    connect_seconds: float = Field(10.0, gt=0, description="How long a command waits for a broker that is away.")
    broker_retry_seconds: float = Field(
        60.0, gt=0, description="How long a running member keeps trying a broker that went away, before it exits 3."
    )
    member_session_seconds: float = Field(6.0, ge=6.0, description="Consumer group session timeout.")
    member_poll_seconds: float = Field(
        300.0, ge=6.0, description="How long a member that asks for no records keeps its partitions."
    )
    member_drain_seconds: float = Field(
        20.0, gt=0, description="How long partitions that are taken away wait for the handler that is at work in them."
    )
    handler_seconds_max: float = Field(
        3600.0, gt=0, description="How long one handler may work on one event before its member's partitions move on."
    )
    consume_failures_max: int = Field(
        5, ge=1, le=100, description="Events of different keys parked in a row after which the consume breaker opens."
    )
    consume_open_seconds: float = Field(
        30.0, gt=0, description="How long an open consume breaker takes no records before it lets one probe pass."
    )
    parked_keys_max: int = Field(1_000, ge=1, description="Parked keys beyond which a member stops and says so.")
    parked_records_max: int = Field(
        100_000, ge=1, description="Records parked or waiting behind parked ones beyond which a member stops."
    )
    decision_wait_seconds: float = Field(10.0, gt=0, description="How long an epoch waits for its command.")
    kernel_wait_seconds: float = Field(60.0, gt=0, description="How long an epoch's edge waits for a kernel.")
    worker_devices: str = Field(
        "", description="GPUs by CUDA's numbers or UUIDs, 0,1,2: worker N sees only number N of them, counted round."
    )
    rank_wait_seconds: float = Field(
        300.0, gt=0, description="How long ranks of one run wait for each other, edges of the first one included."
    )
    kernel_cache_seconds: float = Field(
        3_600.0, gt=0, description="How long an opened kernel is believed without another look at its stored bytes."
    )
    kernel_slow_seconds: float = Field(
        0.25, gt=0, description="Reading one kernel from the store that takes longer counts against the store."
    )
    kernel_device_bytes: int = Field(
        64 << 20, ge=0, description="Most that a run keeps of built kernels on its device; 0: nothing."
    )
    kernel_device_epochs: int = Field(
        20, ge=1, description="Epochs after which a kernel on a run's device goes that was not used."
    )
    memory_share_max: float = Field(
        0.95, gt=0, le=1, description="Share of a run's memory in use above which caches go and nothing germinates."
    )
    replay_stacks: bool = Field(
        True, description="Take a stack's steps on a GPU as replays of one that is recorded as a CUDA graph."
    )
    collect_every_epochs: int = Field(
        50, ge=0, description="Epochs after which a run collects garbage and gives back unused memory; 0: never."
    )
    latency_budgets: str = Field(
        "", description="Milliseconds per operation, as in decide=18,fetch=10; also: germinate, blend, measure."
    )
    enforce_latency: bool = Field(
        False, description="Whether overrun latency budgets end fetches and germinations; else they are evidence."
    )
    kernel_maintenance_seconds: float = Field(
        300.0, gt=0, description="How often Urza looks whether what the catalogue lists is still stored."
    )
    compile_seconds_max: float = Field(60.0, gt=0, description="Longest that one piece of the forge's work may take.")
    compile_memory_bytes_max: int = Field(
        4 << 30, ge=1 << 28, description="Most memory that the forge's compiler and all that it starts may hold."
    )
    compile_attempts_max: int = Field(
        3, ge=1, le=20, description="How often the forge tries a compilation that fails for a passing reason."
    )
    compile_backoff_seconds: float = Field(
        0.5, gt=0, description="Wait before the second attempt at a compilation; it doubles with each further one."
    )
    compile_failures_max: int = Field(
        3, ge=1, le=100, description="Faulty compilations in a row after which the forge's breaker opens."
    )
    compile_open_seconds: float = Field(
        30.0, gt=0, description="How long an open forge breaker measures and optimises nothing before it probes."
    )
    compiled_parts: bool = Field(
        False, description="Whether the forge also compiles kernels to machine code, for this home and machine alone."
    )
    compile_part_seconds_max: float = Field(300.0, gt=0, description="Longest that making one compiled part may take.")
    prewarm_samples: int = Field(200, ge=20, description="Calls that the forge times of each kernel that it made.")
    command_window_seconds: float = Field(
        60.0, gt=0, description="Most that a command's append time may lie behind its issue time."
    )
    kernel_window_seconds: float = Field(
        60.0, gt=0, description="Most that a kernel request's append time may lie behind its issue time; replies too."
    )
    publish_failures_max: int = Field(
        3, ge=1, le=100, description="Failed deliveries in a row after which a source's publish breaker opens."
    )
    publish_open_seconds: float = Field(
        30.0, gt=0, description="How long an open publish breaker refuses before it lets one probe pass."
    )
    telemetry_backlog_records: int = Field(
        5_000, ge=1, le=5_000, description="Unacknowledged records from which on telemetry is sampled; truth never is."
    )
    emergency_hold_seconds: float = Field(
        60.0, gt=0, description="How long an emergency signal is in force unless its origin ends it earlier."
    )
    metrics_seconds: float = Field(30.0, gt=0, description="How often the housekeeper emits the fabric's metrics.")
    retention_seconds: float = Field(300.0, gt=0, description="How often the housekeeper deletes what has expired.")
    tracing: bool = Field(False, description="Whether records carry a W3C traceparent header.")
    topics_dir: Path | None = Field(None, description="Folder of the topic files; unset: the shipped ones.")
    projections_dir: Path | None = Field(None, description="Folder of the projections; unset: the shipped ones.")
    contracts: _Names = Field(
        (), description="Your own contracts, comma-separated: descriptor sets (FILE.binpb) and importable modules."
    )
    extra_topics_dirs: _Folders = Field(
        (), description="Folders of your own topic files, comma-separated, beside those of ESPER_TOPICS_DIR."
    )
    extra_projections_dirs: _Folders = Field(
        (), description="Folders of your own projections, comma-separated, beside those of ESPER_PROJECTIONS_DIR."
    )
    checkpoint_every_epochs: int = Field(
        10, ge=0, description="Epochs after which a run's whole state is kept as a checkpoint; 0: never."
    )
    checkpoint_records: int = Field(
        1_000, ge=1, description="Records after which the housekeeper signs a checkpoint of the log."
    )
    checkpoint_seconds: float = Field(
        60.0, gt=0, description="Longest that a record waits for a checkpoint of the log to cover it."
    )
    policy_watch_reports: int = Field(
        100,
        ge=0,
        le=10_000,
        description="Field reports of each partition by which a promoted policy is watched; 0: it is not.",
    )
    policy_watch_reports_min: int = Field(
        50, ge=2, description="Field reports of a promoted policy from which on it is judged."
    )
    policy_watch_reward_drop: float = Field(
        0.0, ge=0, description="Fall of the mean reward of a decision, beyond chance, that ends a promotion."
    )
    policy_watch_bad_rise: float = Field(
        0.1, ge=0, le=1, description="Rise of the share of aborted and harmful decisions, beyond chance, that ends one."
    )
    policy_watch_aborted_share: float = Field(
        0.5, ge=0, le=1, description="Share of aborted decisions above which a promotion ends."
    )
    policy_watch_invalid_share: float = Field(
        0.1, ge=0, le=1, description="Share of decisions after which the loss is no number that ends a promotion."
    )
    sql_timeout_seconds: float = Field(30.0, gt=0, description="Longest that one SQL query may run.")
    sql_memory_limit: str = Field("2GB", description="Memory that the projector's database may use.")
    rebuild_memory_limit: str = Field("512MB", description="Memory that the database of a rebuild may use.")

    @property
    def loopback(self) -> bool:
        """Whether the broker is the home's own, on loopback."""
        return self.kafka_bootstrap is None


def load_settings(**overrides: object) -> Settings:
    """Return the settings of this process.

    Raises:
        SettingsError: a value is malformed; the message names the variable.
    """
    try:
        return Settings(**overrides)  # type: ignore[arg-type]  # pydantic validates at run time
    except ValidationError as error:
        first = error.errors()[0]
        name = "ESPER_" + "_".join(map(str, first["loc"])).upper()
        raise SettingsError(
            f"setting {name} cannot be used",
            cause=str(first["msg"]),
            next_step="`esper --help` and .env.example name every setting",
        ) from error
