-- One row for each decision that was closed; of two reports of one decision the first counts.
create view field_reports as
select run_id, episode_id, epoch, decision_id, command_id, report_id, nullif(seed_id, '') as seed_id,
  nullif(blueprint_id, '') as blueprint_id, replace(outcome, 'FIELD_REPORT_OUTCOME_', '') as outcome,
  replace(command_result, 'COMMAND_RESULT_', '') as command_result,
  replace(command_type, 'COMMAND_', '') as command_type, replace(seed_operation, 'SEED_OP_', '') as seed_operation,
  list_sum(map_values(reward_parts)) as reward, reward_parts, metrics, counterfactual_gain, window_begin_epoch,
  window_epochs, terminated, truncated, policy_version, notes, issued_at, append_time as reported_at
from field_report_facts
qualify row_number() over (partition by run_id, report_id order by record_offset) = 1;
