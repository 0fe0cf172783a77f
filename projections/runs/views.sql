-- A higher attempt fences the lower ones: what they wrote of epochs beyond those that it took over does not count.

-- Who may speak for each attempt: the producer whose claim stands first. What another writes counts for nothing.
create view attempts as
select run_id, attempt, worker, producer_id, request_event_id, record_offset, append_time
from run_claims qualify row_number() over (partition by run_id, attempt order by record_offset) = 1;

-- One row for each run and epoch, from the attempt that counts, with what became of its command.
create view epochs as
with states as (
  from run_states s semi join attempts a using (run_id, attempt, producer_id)
  where not exists (
    from run_starts f where f.run_id = s.run_id and f.attempt > s.attempt and f.resumed_epochs < s.epoch
  )
  qualify row_number() over (partition by run_id, epoch order by attempt desc, record_offset) = 1
), outcomes as (
  from run_outcomes o semi join attempts a using (run_id, attempt, producer_id)
  where not exists (
    from run_starts f where f.run_id = o.run_id and f.attempt > o.attempt and f.resumed_epochs < o.epoch
  )
  qualify row_number() over (partition by run_id, epoch order by attempt desc, record_offset) = 1
)
select s.run_id, s.epoch, s.attempt, s.train_loss, s.val_loss, s.val_accuracy, nullif(s.digest, '') as digest,
  nullif(o.command_id, '') as command_id,
  case
    when coalesce(o.command_type, 'COMMAND_UNKNOWN') = 'COMMAND_UNKNOWN' then null
    when o.command_type = 'COMMAND_SEED' then lower(replace(o.seed_operation, 'SEED_OP_', ''))
    else lower(replace(o.command_type, 'COMMAND_', ''))
  end as command,
  lower(replace(o.result, 'COMMAND_RESULT_', '')) || if(o.reason = '', '', ':' || o.reason) as outcome,
  if(o.result = 'COMMAND_RESULT_NONE', null, o.latency_ms) as latency_ms,
  nullif(o.seed_id, '') as seed_id, o.late_commands, s.parameters, s.multiply_adds, s.multiply_adds_per_sample,
  s.metrics, s.event_id as state_event_id, o.event_id as outcome_event_id, o.kernel_digest, o.gate_verdicts
from states s left join outcomes o on o.run_id = s.run_id and o.epoch = s.epoch;

-- One row for each seed of each run: where it is now and how it got there.
create view seeds as
select run_id, seed_id, slot, blueprint_id, replace(to_stage, 'SEED_STAGE_', '') as stage, epoch, attempt, alpha,
  reason, command_id,
  min(epoch) over (partition by run_id, seed_id) as first_epoch
from seed_moves m
where not exists (
  from run_starts f where f.run_id = m.run_id and f.attempt > m.attempt and f.resumed_epochs < m.epoch
)
qualify row_number() over (partition by run_id, seed_id order by record_offset desc) = 1;

-- One row for each gate that was measured, with the figures and their bounds.
create view gates as
select run_id, epoch, seed_id, replace(gate, 'SEED_GATE_', '') as gate, passed, checks, command_id, attempt, event_id,
  append_time
from gate_evaluations g
where not exists (
  from run_starts f where f.run_id = g.run_id and f.attempt > g.attempt and f.resumed_epochs < g.epoch
);

-- One row for each run, as `esper train` prints it.
create view runs as
with claims as (
  from attempts
), ends as (
  select run_id, attempt, record_offset, 'finished' as status
  from run_finishes semi join attempts using (run_id, attempt, producer_id)
  union all
  select run_id, attempt, record_offset, 'failed' from run_failures
), counting as (
  -- Attempt 0 speaks for the run as a whole; the end of an attempt that a later claim fenced says nothing.
  from ends e
  where e.attempt = 0 or not exists (
    from claims c where c.run_id = e.run_id and c.attempt > e.attempt and c.record_offset < e.record_offset
  )
), latest as (
  select run_id, arg_max(status, record_offset) as status, max(record_offset) as record_offset
  from (
    select run_id, record_offset, status from counting
    union all
    select run_id, record_offset, 'running' from claims
  )
  group by run_id
), last_claim as (
  from claims qualify row_number() over (partition by run_id order by attempt desc) = 1
), requests as (
  from run_requests qualify row_number() over (partition by run_id order by record_offset) = 1
), last_epoch as (
  select run_id, max(epoch) as epochs, arg_max(val_loss, epoch) as val_loss,
    arg_max(val_accuracy, epoch) as val_accuracy, arg_max(parameters, epoch) as parameters,
    arg_max(multiply_adds, epoch) as multiply_adds, arg_max(multiply_adds_per_sample, epoch) as multiply_adds_per_sample,
    arg_max(digest, epoch) as digest
  from epochs group by run_id
), described as (
  from run_states qualify row_number() over (partition by run_id order by record_offset) = 1
), grown as (
  select run_id, list({
    'seed_id': seed_id, 'slot': slot, 'blueprint_id': blueprint_id, 'stage': stage
  } order by seed_id) as seeds
  from seeds group by run_id
), ids as (
  select run_id from requests
  union select run_id from claims
  union select run_id from run_states
  union select run_id from ends
)
select i.run_id, coalesce(r.task, d.task) as task, coalesce(r.host, d.host) as host,
  coalesce(r.policy, d.policy) as policy, coalesce(r.seed, d.seed) as seed,
  coalesce(f.epochs, e.epochs, 0) as epochs, coalesce(l.status, if(d.run_id is null, 'requested', 'running')) as status,
  f.accuracy, f.loss, coalesce(f.parameters, e.parameters) as parameters,
  coalesce(f.multiply_adds, e.multiply_adds) as multiply_adds,
  coalesce(f.multiply_adds_per_sample, e.multiply_adds_per_sample) as multiply_adds_per_sample,
  coalesce(f.digest, e.digest) as digest,
  coalesce(
    list_transform(f.seeds, lambda s: {
      'seed_id': s.seed_id, 'slot': s.slot, 'blueprint_id': s.blueprint_id,
      'stage': replace(s.stage, 'SEED_STAGE_', '')
    }),
    g.seeds,
    []
  ) as seeds,
  coalesce(f.val_accuracy, e.val_accuracy) as val_accuracy, coalesce(f.val_loss, e.val_loss) as val_loss,
  r.epochs as epochs_planned, r.experiment_name, r.device, r.re_executable, c.attempt, c.worker,
  x.reason as failure, x.detail as failure_detail, r.append_time as requested_at
from ids i
left join requests r using (run_id)
left join described d using (run_id)
left join latest l using (run_id)
left join last_claim c using (run_id)
left join last_epoch e using (run_id)
left join grown g using (run_id)
left join run_finishes f on f.run_id = i.run_id and f.record_offset = l.record_offset and l.status = 'finished'
left join run_failures x on x.run_id = i.run_id and x.record_offset = l.record_offset and l.status = 'failed';
