create table field_report_facts (
  topic_partition integer, record_offset bigint, append_time timestamptz, event_id varchar, event_time timestamptz,
  report_id varchar, decision_id varchar, command_id varchar, run_id varchar, episode_id varchar, epoch uinteger,
  seed_id varchar, blueprint_id varchar, outcome varchar, command_result varchar, command_type varchar,
  seed_operation varchar, metrics map(varchar, double), reward_parts map(varchar, double),
  window_begin_epoch uinteger, window_epochs uinteger, issued_at timestamptz, policy_version varchar,
  follow_up_actions struct(action_type varchar, rationale varchar)[], notes varchar, next_state_event_id varchar,
  terminated boolean, truncated boolean, counterfactual_gain double
);
