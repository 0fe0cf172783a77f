create table blueprint_registrations (
  topic_partition integer, record_offset bigint, append_time timestamptz, event_id varchar, event_time timestamptz,
  blueprint_id varchar, name varchar, tier varchar, risk double, stage uinteger, quarantine_only boolean,
  approval_required boolean, description varchar, layouts varchar[],
  parameters map(varchar, struct(min_value double, max_value double)), descriptor_digest varchar
);

create table blueprint_approvals (
  topic_partition integer, record_offset bigint, append_time timestamptz, event_id varchar, event_time timestamptz,
  source varchar, blueprint_id varchar, descriptor_digest varchar, approved_by varchar, reason varchar
);

create table blueprint_withdrawals (
  topic_partition integer, record_offset bigint, append_time timestamptz, event_id varchar, event_time timestamptz,
  source varchar, blueprint_id varchar, descriptor_digest varchar, withdrawn_by varchar, reason varchar
);

create table kernel_updates (
  topic_partition integer, record_offset bigint, append_time timestamptz, event_id varchar, event_time timestamptz,
  kernel_id varchar, blueprint_id varchar, artifact_ref varchar, checksum varchar, guard_digest varchar,
  compile_ms double, layout varchar, in_shape uinteger[], out_shape uinteger[], dtype varchar,
  kernel_parameters map(varchar, double), spec_digest varchar, spec_bytes ubigint, weights_digest varchar,
  weights_bytes ubigint, parameters ubigint, multiply_adds_per_sample ubigint, strategy varchar, format_version uinteger
);

create table compile_requests (
  topic_partition integer, record_offset bigint, append_time timestamptz, event_id varchar, event_time timestamptz,
  kernel_id varchar, blueprint_id varchar, layout varchar, dtype varchar
);

create table compile_starts (
  topic_partition integer, record_offset bigint, append_time timestamptz, event_id varchar, event_time timestamptz,
  causation_id varchar, kernel_id varchar, attempt uinteger
);

create table compile_finishes (
  topic_partition integer, record_offset bigint, append_time timestamptz, event_id varchar, event_time timestamptz,
  causation_id varchar, kernel_id varchar, artifact_ref varchar, compile_ms double, strategy varchar,
  fallback_reason varchar, prewarm struct(samples uinteger, p50_ms double, p95_ms double, batch uinteger)
);

create table compile_failures (
  topic_partition integer, record_offset bigint, append_time timestamptz, event_id varchar, event_time timestamptz,
  causation_id varchar, kernel_id varchar, blueprint_id varchar, reason varchar, attempt uinteger,
  retried boolean, retry_after_ms double
);

create table kernel_asks (
  topic_partition integer, record_offset bigint, append_time timestamptz, event_id varchar, event_time timestamptz,
  source varchar, request_id varchar, blueprint_id varchar, run_id varchar, kernel_id varchar, issued_at timestamptz
);

create table kernel_answers (
  topic_partition integer, record_offset bigint, append_time timestamptz, event_id varchar, event_time timestamptz,
  causation_id varchar, request_id varchar, blueprint_id varchar, run_id varchar, kernel_id varchar,
  artifact_ref varchar, prewarm struct(samples uinteger, p50_ms double, p95_ms double, batch uinteger)
);

create table kernel_refusals (
  topic_partition integer, record_offset bigint, append_time timestamptz, event_id varchar, event_time timestamptz,
  causation_id varchar, request_id varchar, blueprint_id varchar, run_id varchar, kernel_id varchar, reason varchar
);

create table kernel_parts (
  topic_partition integer, record_offset bigint, append_time timestamptz, event_id varchar, event_time timestamptz,
  causation_id varchar, kernel_id varchar, artifact_ref varchar, blueprint_id varchar, kind varchar,
  part_digest varchar, part_bytes ubigint, forge varchar,
  platform struct(torch_version varchar, device varchar, isa varchar, threads uinteger),
  guard_digest varchar,
  parity struct(
    batches uinteger[], forward_abs_max double, backward_abs_max double, tolerance double, passed boolean
  ),
  compile_ms double, warm_compile_ms double, speedup double, chosen boolean, reason varchar
);

create table kernel_benchmarks (
  topic_partition integer, record_offset bigint, append_time timestamptz, event_id varchar, event_time timestamptz,
  causation_id varchar, blueprint_id varchar, kernel_id varchar, layout varchar, version uinteger,
  platform struct(torch_version varchar, device varchar, isa varchar, threads uinteger),
  profile varchar, latency struct(samples uinteger, p50_ms double, p95_ms double, batch uinteger),
  throughput_samples_per_s double
);

create table kernel_integrity_failures (
  topic_partition integer, record_offset bigint, append_time timestamptz, event_id varchar, event_time timestamptz,
  source varchar, kernel_id varchar, artifact_ref varchar, part varchar, reason varchar
);

create table kernel_evictions (
  topic_partition integer, record_offset bigint, append_time timestamptz, event_id varchar, event_time timestamptz,
  source varchar, kernel_id varchar, artifact_ref varchar, reason varchar, freed_bytes ubigint
);
