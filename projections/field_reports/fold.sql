insert into field_report_facts by name
select topic_partition, record_offset, append_time, meta.event_id, meta.time as event_time,
  report_id, decision_id, command_id, training_run_id as run_id, episode_id, epoch, seed_id, blueprint_id,
  outcome, command_result, command_type, seed_operation, metrics, reward_parts,
  observation_window_begin_epoch as window_begin_epoch, observation_window_epochs as window_epochs, issued_at,
  tamiyo_policy_version as policy_version,
  list_transform(follow_up_actions, lambda a: {
    'action_type': a.action_type, 'rationale': a.rationale
  }) as follow_up_actions,
  notes, next_state_event_id, terminated, truncated, counterfactual_gain
from FieldReport;
