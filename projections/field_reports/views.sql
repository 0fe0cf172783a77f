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

-- How the decisions of each version of a policy turned out, by what was ordered. `reward` is the unweighted sum of the
-- reward's parts; `gain` is the held-out loss without the seed minus with it, where something measured it.
create view policy_outcomes as
select nullif(policy_version, '') as policy_version,
  case
    when command_type = 'SEED' then lower(seed_operation) else lower(nullif(command_type, 'UNKNOWN'))
  end as command,
  count(*) as reports, count(*) filter (outcome = 'SUCCESS') as successes,
  count(*) filter (outcome = 'NEUTRAL') as neutral, count(*) filter (outcome = 'REGRESSION') as regressions,
  count(*) filter (outcome = 'ABORTED') as aborted, count(reward) as rewarded, avg(reward) as mean_reward,
  stddev_samp(reward) as sd_reward, count(counterfactual_gain) as measured, avg(counterfactual_gain) as mean_gain,
  stddev_samp(counterfactual_gain) as sd_gain
from field_reports group by all;

-- Each part of each report's reward.
create view reward_parts as
select run_id, epoch, report_id, policy_version, part.key as part, part.value as value
from (select run_id, epoch, report_id, policy_version, unnest(map_entries(reward_parts)) as part from field_reports);
