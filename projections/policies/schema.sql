-- The weights stay in the log: a table keeps their digest and their size.
create table policy_updates (
  topic_partition integer, record_offset bigint, append_time timestamptz, event_id varchar, event_time timestamptz,
  policy_id varchar, policy_version varchar, policy_digest varchar, weights_digest varchar, payload_bytes ubigint,
  specification varchar, observation_schema varchar, training_run_id varchar, issued_at timestamptz,
  parent_policy_version varchar, parent_policy_digest varchar,
  training_data struct(
    topic varchar, topic_id varchar, topic_partition uinteger, first_offset bigint, end_offset bigint
  )[],
  code_version varchar, dependencies_digest varchar, seed ubigint, torch varchar, device varchar, algorithm varchar,
  hyperparameters map(varchar, double), scores map(varchar, double), episodes ubigint, transitions ubigint
);

create table policy_validations (
  topic_partition integer, record_offset bigint, append_time timestamptz, event_id varchar, event_time timestamptz,
  policy_id varchar, policy_version varchar, policy_digest varchar, passed boolean,
  checks struct(name varchar, value double, bound double, comparison varchar, passed boolean)[],
  incumbent_policy_version varchar, incumbent_policy_digest varchar,
  evaluation_data struct(
    topic varchar, topic_id varchar, topic_partition uinteger, first_offset bigint, end_offset bigint
  )[],
  code_version varchar, seed ubigint, reason varchar, scores map(varchar, double)
);

create table policy_promotions (
  topic_partition integer, record_offset bigint, append_time timestamptz, event_id varchar, event_time timestamptz,
  policy_id varchar, policy_version varchar, policy_digest varchar, previous_policy_version varchar,
  previous_policy_digest varchar, validation_event_id varchar, issued_by varchar, reason varchar
);

create table policy_rollbacks (
  topic_partition integer, record_offset bigint, append_time timestamptz, event_id varchar, event_time timestamptz,
  policy_id varchar, policy_version varchar, policy_digest varchar, restored_policy_version varchar,
  restored_policy_digest varchar,
  breaches struct(name varchar, value double, bound double, comparison varchar, passed boolean)[],
  issued_by varchar, reason varchar
);
