insert into policy_updates by name
select topic_partition, record_offset, append_time, meta.event_id, meta.time as event_time,
  policy_id, tamiyo_policy_version as policy_version, policy_digest, weights_digest,
  coalesce(octet_length(payload), 0) as payload_bytes, specification, observation_schema, training_run_id, issued_at,
  parent_policy_version, parent_policy_digest,
  list_transform(training_data, lambda r: {
    'topic': r.topic, 'topic_id': r.topic_id, 'topic_partition': r.partition, 'first_offset': r.first_offset,
    'end_offset': r.end_offset
  }) as training_data,
  code_version, dependencies_digest, seed, numerics.torch, numerics.device, algorithm, hyperparameters, scores,
  episodes, transitions
from PolicyUpdate;

insert into policy_validations by name
select topic_partition, record_offset, append_time, meta.event_id, meta.time as event_time,
  policy_id, tamiyo_policy_version as policy_version, policy_digest, passed,
  list_transform(checks, lambda c: {
    'name': c.name, 'value': c.value, 'bound': c.bound, 'comparison': c.comparison, 'passed': c.passed
  }) as checks,
  incumbent_policy_version, incumbent_policy_digest,
  list_transform(evaluation_data, lambda r: {
    'topic': r.topic, 'topic_id': r.topic_id, 'topic_partition': r.partition, 'first_offset': r.first_offset,
    'end_offset': r.end_offset
  }) as evaluation_data,
  code_version, seed, reason, scores
from PolicyValidated;

insert into policy_promotions by name
select topic_partition, record_offset, append_time, meta.event_id, meta.time as event_time,
  policy_id, tamiyo_policy_version as policy_version, policy_digest, previous_policy_version, previous_policy_digest,
  validation_event_id, issued_by, reason
from PolicyPromoted;

insert into policy_rollbacks by name
select topic_partition, record_offset, append_time, meta.event_id, meta.time as event_time,
  policy_id, tamiyo_policy_version as policy_version, policy_digest, restored_policy_version, restored_policy_digest,
  list_transform(breaches, lambda c: {
    'name': c.name, 'value': c.value, 'bound': c.bound, 'comparison': c.comparison, 'passed': c.passed
  }) as breaches,
  issued_by, reason
from PolicyRolledBack;
