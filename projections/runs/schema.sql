-- Facts as the events state them; enums are the contract's names.
create table run_requests (
  topic_partition integer, record_offset bigint, append_time timestamptz, event_id varchar, event_time timestamptz,
  run_id varchar, task varchar, host varchar, policy varchar, policy_parameters map(varchar, double),
  epochs uinteger, seed ubigint, experiment_name varchar, device varchar, hyperparameters map(varchar, double),
  re_executable boolean, decision_wait_seconds double, kernel_wait_seconds double, digest_every_epochs uinteger,
  slots varchar[], forked_from varchar, forked_epochs uinteger, replicate uinteger
);

create table run_claims (
  topic_partition integer, record_offset bigint, append_time timestamptz, event_id varchar, event_time timestamptz,
  run_id varchar, attempt uinteger, worker varchar, producer_id varchar, request_event_id varchar
);

create table run_starts (
  topic_partition integer, record_offset bigint, append_time timestamptz, event_id varchar, event_time timestamptz,
  run_id varchar, attempt uinteger, worker varchar, producer_id varchar,
  torch varchar, python varchar, instruction_set varchar, threads uinteger, device varchar, world_size uinteger,
  deterministic_algorithms boolean, blas varchar,
  code_version varchar, dependencies_digest varchar, data_digest varchar, parameters ubigint, initial_digest varchar,
  resumed_epochs uinteger
);

create table run_states (
  topic_partition integer, record_offset bigint, append_time timestamptz, event_id varchar, event_time timestamptz,
  run_id varchar, producer_id varchar, attempt uinteger, epoch uinteger, epochs_planned uinteger, global_step ubigint,
  train_loss double, val_loss double, val_accuracy double, metrics map(varchar, double), digest varchar,
  policy varchar, parameters ubigint, multiply_adds ubigint, multiply_adds_per_sample ubigint,
  task varchar, host varchar, seed ubigint, experiment_name varchar,
  slots struct(slot varchar, module varchar, placement varchar, layout varchar, seed_id varchar)[],
  breaker_state varchar, breaker_held boolean, paused boolean, paused_until_epoch uinteger, halted boolean
);

create table run_seed_states (
  topic_partition integer, record_offset bigint, run_id varchar, attempt uinteger, epoch uinteger,
  seed_id varchar, slot varchar, blueprint_id varchar, stage varchar, alpha double, gradient_norm double,
  learning_rate double, age_epochs uinteger, stage_epochs uinteger, risk_score double, metrics map(varchar, double)
);

create table run_outcomes (
  topic_partition integer, record_offset bigint, append_time timestamptz, event_id varchar, event_time timestamptz,
  run_id varchar, producer_id varchar, attempt uinteger, epoch uinteger, state_event_id varchar, result varchar,
  reason varchar,
  command_id varchar, command_event_id varchar, command_offset bigint, command_type varchar, seed_operation varchar,
  seed_id varchar, kernel_digest varchar, latency_ms double, decision_id varchar, gate_verdicts map(varchar, boolean),
  choices map(varchar, double),
  late_commands struct(command_id varchar, event_id varchar, epoch uinteger, reason varchar)[],
  late_commands_unlisted uinteger
);

create table run_checkpoints (
  topic_partition integer, record_offset bigint, append_time timestamptz, event_id varchar, event_time timestamptz,
  run_id varchar, producer_id varchar, attempt uinteger, epoch uinteger, blob_digest varchar, size_bytes ubigint,
  weights_digest varchar
);

create table run_rollbacks (
  topic_partition integer, record_offset bigint, append_time timestamptz, event_id varchar, event_time timestamptz,
  run_id varchar, producer_id varchar, attempt uinteger, from_epoch uinteger, to_epoch uinteger,
  checkpoint_digest varchar, reason varchar, digest_before varchar, digest_after varchar, rate_factor double,
  faults uinteger, command_id varchar
);

create table run_finishes (
  topic_partition integer, record_offset bigint, append_time timestamptz, event_id varchar, event_time timestamptz,
  run_id varchar, producer_id varchar, attempt uinteger, epochs uinteger, accuracy double, loss double,
  val_accuracy double, val_loss double, parameters ubigint, multiply_adds ubigint, multiply_adds_per_sample ubigint,
  digest varchar,
  seeds struct(seed_id varchar, slot varchar, blueprint_id varchar, stage varchar)[]
);

create table run_failures (
  topic_partition integer, record_offset bigint, append_time timestamptz, event_id varchar, event_time timestamptz,
  run_id varchar, attempt uinteger, reason varchar, detail varchar, epochs uinteger
);

create table decisions (
  topic_partition integer, record_offset bigint, append_time timestamptz, event_id varchar, event_time timestamptz,
  run_id varchar, attempt uinteger, epoch uinteger, state_event_id varchar, policy varchar, policy_version varchar,
  policy_digest varchar, observation_schema varchar, observation_names varchar[], observation double[],
  heads struct(name varchar, actions varchar[], mask boolean[], probabilities double[], chosen uinteger,
    log_probability double)[],
  log_probability double, rng_seed ubigint, rng_counter ubigint, value_estimate double, proposed_type varchar,
  proposed_operation varchar, overridden boolean, override_reason varchar, command_id varchar, reasons varchar[]
);

create table commands (
  topic_partition integer, record_offset bigint, append_time timestamptz, event_id varchar, event_time timestamptz,
  source varchar, causation_id varchar, run_id varchar, command_id varchar, command_type varchar, epoch uinteger,
  seed_id varchar, seed_operation varchar, slot varchar, blueprint_id varchar, parameters map(varchar, double),
  optimizer_id varchar, hyperparameters map(varchar, double), breaker_state varchar, rollback varchar,
  issued_at timestamptz, issued_by varchar, decision_id varchar, first_epoch uinteger, last_epoch uinteger,
  annotations map(varchar, varchar)
);

create table seed_moves (
  topic_partition integer, record_offset bigint, append_time timestamptz, event_id varchar, event_time timestamptz,
  run_id varchar, attempt uinteger, epoch uinteger, seed_id varchar, slot varchar, blueprint_id varchar,
  from_stage varchar, to_stage varchar, reason varchar, command_id varchar, alpha double,
  gate_event_ids varchar[], gates_not_measured varchar[], metrics map(varchar, double), blend_mode varchar,
  alpha_curve varchar
);

create table gate_evaluations (
  topic_partition integer, record_offset bigint, append_time timestamptz, event_id varchar, event_time timestamptz,
  run_id varchar, attempt uinteger, epoch uinteger, seed_id varchar, gate varchar, passed boolean,
  checks struct(name varchar, value double, bound double, comparison varchar, passed boolean)[], command_id varchar
);

create table rejected_moves (
  topic_partition integer, record_offset bigint, append_time timestamptz, event_id varchar, event_time timestamptz,
  run_id varchar, attempt uinteger, epoch uinteger, seed_id varchar, from_stage varchar, to_stage varchar,
  reason varchar, command_id varchar, gate_event_ids varchar[]
);

create table seed_tunings (
  topic_partition integer, record_offset bigint, append_time timestamptz, event_id varchar, event_time timestamptz,
  run_id varchar, attempt uinteger, epoch uinteger, seed_id varchar, stage varchar, rate_factor double,
  epochs uinteger, reason varchar, command_id varchar
);

create table kernel_trials (
  topic_partition integer, record_offset bigint, append_time timestamptz, event_id varchar, event_time timestamptz,
  run_id varchar, attempt uinteger, epoch uinteger, seed_id varchar, slot varchar, blueprint_id varchar,
  kernel_id varchar, artifact_ref varchar, verdict varchar, detail varchar, steps uinteger, seconds double,
  peak_memory_bytes ubigint, figures map(varchar, double), command_id varchar
);
