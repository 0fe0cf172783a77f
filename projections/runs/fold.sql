insert into run_requests by name
select topic_partition, record_offset, append_time, meta.event_id, meta.time as event_time,
  run_id, task, host, policy, policy_parameters, epochs, seed, experiment_name, device, hyperparameters, re_executable,
  decision_wait_seconds, kernel_wait_seconds, digest_every_epochs, slots, nullif(forked_from, '') as forked_from,
  if(forked_from = '', null, forked_epochs) as forked_epochs, if(forked_from = '', null, replicate) as replicate
from TrainingRunRequested;

insert into run_claims by name
select topic_partition, record_offset, append_time, meta.event_id, meta.time as event_time,
  run_id, attempt, worker, meta.producer_id, request_event_id
from TrainingRunClaimed;

insert into run_starts by name
select topic_partition, record_offset, append_time, meta.event_id, meta.time as event_time,
  run_id, attempt, worker, meta.producer_id, numerics.torch, numerics.python, numerics.instruction_set,
  numerics.threads, numerics.device, numerics.world_size, numerics.deterministic_algorithms, numerics.blas,
  code_version, dependencies_digest, data_digest, parameters, initial_digest, resumed_epochs
from TrainingRunStarted;

insert into run_states by name
select topic_partition, record_offset, append_time, meta.event_id, meta.producer_id, meta.time as event_time,
  training_run_id as run_id, attempt, current_epoch as epoch, epochs_planned, global_step,
  training_loss as train_loss, validation_loss as val_loss, validation_accuracy as val_accuracy,
  training_metrics as metrics, weights_digest as digest, policy, parameters, multiply_adds, multiply_adds_per_sample,
  task, host, seed, experiment_name,
  list_transform(slots, lambda s: {
    'slot': s.slot, 'module': s.module, 'placement': s.placement, 'layout': s.layout, 'seed_id': s.seed_id
  }) as slots,
  growth.breaker as breaker_state, growth.breaker_held, growth.paused, growth.paused_until_epoch, growth.halted
from SystemStatePacket;

insert into run_seed_states by name
select topic_partition, record_offset, training_run_id as run_id, attempt, current_epoch as epoch,
  state.seed_id, state.slot, state.blueprint_id, state.stage, state.alpha, state.gradient_norm, state.learning_rate,
  state.age_epochs, state.stage_epochs, state.risk_score, state.metrics
from SystemStatePacket, unnest(seed_states) as seeds(state);

insert into run_outcomes by name
select topic_partition, record_offset, append_time, meta.event_id, meta.producer_id, meta.time as event_time,
  run_id, attempt, epoch, state_event_id, result, reason, command_id, command_event_id, command_offset, command_type,
  seed_operation, seed_id, kernel_digest, latency_ms, decision_id, gate_verdicts, choices,
  list_transform(late_commands, lambda c: {
    'command_id': c.command_id, 'event_id': c.event_id, 'epoch': c.epoch, 'reason': c.reason
  }) as late_commands,
  late_commands_unlisted
from CommandOutcome;

insert into run_checkpoints by name
select topic_partition, record_offset, append_time, meta.event_id, meta.producer_id, meta.time as event_time,
  run_id, attempt, epoch, blob_digest, size_bytes, weights_digest
from CheckpointSaved;

insert into run_rollbacks by name
select topic_partition, record_offset, append_time, meta.event_id, meta.producer_id, meta.time as event_time,
  run_id, attempt, from_epoch, to_epoch, checkpoint_digest, reason, digest_before, digest_after, rate_factor, faults,
  command_id
from RunRolledBack;

insert into run_finishes by name
select topic_partition, record_offset, append_time, meta.event_id, meta.producer_id, meta.time as event_time,
  run_id, attempt, epochs, accuracy, loss, validation_accuracy as val_accuracy, validation_loss as val_loss,
  parameters, multiply_adds, multiply_adds_per_sample, digest,
  list_transform(seeds, lambda s: {
    'seed_id': s.seed_id, 'slot': s.slot, 'blueprint_id': s.blueprint_id, 'stage': s.stage
  }) as seeds
from TrainingRunFinished;

insert into run_failures by name
select topic_partition, record_offset, append_time, meta.event_id, meta.time as event_time,
  run_id, attempt, reason, detail, epochs
from TrainingRunFailed;

insert into decisions by name
select topic_partition, record_offset, append_time, meta.event_id, meta.time as event_time,
  run_id, attempt, epoch, state_event_id, policy, policy_version, policy_digest,
  observation_schema, observation_names, observation,
  list_transform(heads, lambda h: {
    'name': h.name, 'actions': h.actions, 'mask': h.mask, 'probabilities': h.probabilities, 'chosen': h.chosen,
    'log_probability': h.log_probability
  }) as heads,
  log_probability, rng_seed, rng_counter, value_estimate, proposed.command_type as proposed_type,
  proposed.seed_operation.operation as proposed_operation, overridden, override_reason, command_id, reasons
from DecisionMade;

insert into commands by name
select topic_partition, record_offset, append_time, meta.event_id, meta.time as event_time, meta.source,
  meta.causation_id, training_run_id as run_id, command_id, command_type, epoch, target_seed_id as seed_id,
  seed_operation.operation as seed_operation, seed_operation.slot, seed_operation.blueprint_id,
  seed_operation.parameters, optimizer_adjustment.optimizer_id, optimizer_adjustment.hyperparameters,
  circuit_breaker.desired_state as breaker_state, rollback_payload as rollback, issued_at, issued_by, decision_id,
  first_epoch, last_epoch, annotations
from AdaptationCommand;

insert into seed_moves by name
select topic_partition, record_offset, append_time, meta.event_id, meta.time as event_time,
  run_id, attempt, epoch, seed_id, slot, blueprint_id, from_stage, to_stage, reason, command_id, alpha,
  gate_event_ids, gates_not_measured, metrics, blend_mode, alpha_curve
from SeedStageChanged;

insert into gate_evaluations by name
select topic_partition, record_offset, append_time, meta.event_id, meta.time as event_time,
  run_id, attempt, epoch, seed_id, gate, passed,
  list_transform(checks, lambda c: {
    'name': c.name, 'value': c.value, 'bound': c.bound, 'comparison': c.comparison, 'passed': c.passed
  }) as checks,
  command_id
from GateEvaluated;

insert into rejected_moves by name
select topic_partition, record_offset, append_time, meta.event_id, meta.time as event_time,
  run_id, attempt, epoch, seed_id, from_stage, to_stage, reason, command_id, gate_event_ids
from SeedMoveRejected;

insert into seed_tunings by name
select topic_partition, record_offset, append_time, meta.event_id, meta.time as event_time,
  run_id, attempt, epoch, seed_id, stage, rate_factor, epochs, reason, command_id
from SeedTuned;

insert into kernel_trials by name
select topic_partition, record_offset, append_time, meta.event_id, meta.time as event_time,
  training_run_id as run_id, attempt, epoch, seed_id, slot, blueprint_id, kernel_id, artifact_ref, verdict, detail,
  steps, seconds, peak_memory_bytes, figures, command_id
from KernelQuarantined;
