-- Everything that happened to a policy, in order.
create view policy_history as
select policy_id, policy_version, event, other_version, reason, issued_by, record_offset, happened_at
from (
  select policy_id, policy_version, 'candidate' as event, nullif(parent_policy_version, '') as other_version,
    null as reason, null as issued_by, record_offset, append_time as happened_at
  from policy_updates
  union all
  select policy_id, policy_version, if(passed, 'validated', 'rejected'), nullif(incumbent_policy_version, ''),
    nullif(reason, ''), null, record_offset, append_time
  from policy_validations
  union all
  select policy_id, policy_version, 'promoted', nullif(previous_policy_version, ''), nullif(reason, ''),
    nullif(issued_by, ''), record_offset, append_time
  from policy_promotions
  union all
  select policy_id, policy_version, 'rolled_back', nullif(restored_policy_version, ''), nullif(reason, ''),
    nullif(issued_by, ''), record_offset, append_time
  from policy_rollbacks
);

-- Which version decides, by policy: the one promoted, or brought back by a rollback, last. No row: none ever did.
create view current_policies as
select policy_id, if(event = 'promoted', policy_version, other_version) as policy_version,
  if(event = 'promoted', other_version, policy_version) as instead_of, event as since_event, reason, issued_by,
  happened_at as since
from policy_history where event in ('promoted', 'rolled_back')
qualify row_number() over (partition by policy_id order by record_offset desc) = 1;

-- One row for each version that was made, as first said, and where it stands: candidate, validated, rejected,
-- active, retired (another was promoted after it) or rolled_back.
create view policies as
with last_words as (
  select policy_id, policy_version, event, happened_at from policy_history
  qualify row_number() over (partition by policy_id, policy_version order by record_offset desc) = 1
), verdicts as (
  from policy_validations
  qualify row_number() over (partition by policy_id, policy_version order by record_offset desc) = 1
), counts as (
  select policy_id, policy_version, count(*) filter (event = 'promoted') as promotions from policy_history
  group by policy_id, policy_version
)
select u.policy_id, u.policy_version,
  case
    when c.policy_version is not null then 'active'
    when l.event = 'promoted' then 'retired'
    else l.event
  end as status,
  u.algorithm, u.episodes, u.transitions, u.seed, nullif(u.parent_policy_version, '') as parent_policy_version,
  u.scores as training_scores, v.scores as validation_scores, v.passed, n.promotions, u.hyperparameters,
  u.observation_schema, u.policy_digest, u.weights_digest, u.payload_bytes, u.code_version, u.dependencies_digest,
  u.torch, u.device, u.training_run_id, u.event_id, u.append_time as made_at, l.happened_at as status_since
from (
  from policy_updates
  qualify row_number() over (partition by policy_id, policy_version order by record_offset) = 1
) u
join last_words l using (policy_id, policy_version)
join counts n using (policy_id, policy_version)
left join verdicts v using (policy_id, policy_version)
left join current_policies c using (policy_id, policy_version);

-- Each figure of each validation, in the order of the gates.
create view policy_checks as
select policy_id, policy_version, validation, checked.i as step, checks[checked.i].name as figure,
  checks[checked.i].value as value, checks[checked.i].comparison as comparison, checks[checked.i].bound as bound,
  checks[checked.i].passed as passed, nullif(incumbent_policy_version, '') as incumbent_policy_version, validated_at
from (
  select *, row_number() over (partition by policy_id, policy_version order by record_offset) as validation,
    append_time as validated_at
  from policy_validations
) v, lateral (select unnest(range(1, len(v.checks) + 1)) as i) checked;

-- The records that each version was trained on, by partition.
create view policy_training_data as
select policy_id, policy_version, r.topic, r.topic_partition, r.first_offset, r.end_offset,
  r.end_offset - r.first_offset as records, r.topic_id
from (select policy_id, policy_version, unnest(training_data) as r from (
  from policy_updates qualify row_number() over (partition by policy_id, policy_version order by record_offset) = 1
));

-- The ancestors of each version: itself at generation 0, what it was trained from at 1, and so on to the first.
create view policy_lineage as
with recursive versions as (
  select policy_id, policy_version, policy_digest, nullif(parent_policy_version, '') as parent from policy_updates
  qualify row_number() over (partition by policy_id, policy_version order by record_offset) = 1
), line as (
  select policy_id, policy_version, 0 as generation, policy_version as ancestor, policy_digest as ancestor_digest,
    parent, [policy_version] as path
  from versions
  union all
  -- The path ends what would go round: no version is its own ancestor.
  select l.policy_id, l.policy_version, l.generation + 1, l.parent, v.policy_digest, v.parent,
    list_append(l.path, l.parent)
  from line l left join versions v on v.policy_id = l.policy_id and v.policy_version = l.parent
  where l.parent is not null and not list_contains(l.path, l.parent)
)
select policy_id, policy_version, generation, ancestor, ancestor_digest, ancestor_digest is not null as known
from line;
