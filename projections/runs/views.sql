-- A higher attempt fences the lower ones: what they wrote of epochs beyond those that it took over does not count.

-- Who may speak for each attempt: the producer whose claim stands first; what another writes counts for nothing.
-- `last_epoch` is the last epoch that the attempt may speak of; null while no later attempt has started. Of the epoch
-- after it the packet alone may be this attempt's: a successor goes on from a packet without an outcome as it stands.
create view attempts as
with claims as (
  from run_claims qualify row_number() over (partition by run_id, attempt order by record_offset) = 1
), starts as (
  from run_starts semi join claims using (run_id, attempt, producer_id)
  qualify row_number() over (partition by run_id, attempt order by record_offset) = 1
)
select c.run_id, c.attempt, c.worker, c.producer_id, c.request_event_id, c.record_offset, c.append_time,
  s.append_time as started_at, s.resumed_epochs, s.device, s.code_version,
  min(s.resumed_epochs) over (
    partition by c.run_id order by c.attempt desc rows between unbounded preceding and 1 preceding
  ) as last_epoch
from claims c left join starts s using (run_id, attempt);

-- One row for each run and epoch, from the attempt that counts, with what became of its command.
create view epochs as
with states as (
  select s.* from run_states s join attempts a using (run_id, attempt, producer_id)
  where a.last_epoch is null or s.epoch <= a.last_epoch + 1
  qualify row_number() over (partition by s.run_id, s.epoch order by s.attempt desc, s.record_offset) = 1
), outcomes as (
  select o.* from run_outcomes o join attempts a using (run_id, attempt, producer_id)
  where a.last_epoch is null or o.epoch <= a.last_epoch
  qualify row_number() over (partition by o.run_id, o.epoch order by o.attempt desc, o.record_offset) = 1
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
  s.metrics, s.event_id as state_event_id, o.event_id as outcome_event_id, o.kernel_digest, o.gate_verdicts,
  nullif(o.decision_id, '') as decision_id, o.late_commands_unlisted, s.append_time as finished_at,
  o.append_time as settled_at
from states s left join outcomes o on o.run_id = s.run_id and o.epoch = s.epoch;

-- Every move of every seed, in order, with the epochs that it stayed where the move brought it (null: it is there).
create view seed_timeline as
select m.run_id, m.seed_id, m.slot, m.blueprint_id, m.epoch, replace(m.from_stage, 'SEED_STAGE_', '') as from_stage,
  replace(m.to_stage, 'SEED_STAGE_', '') as stage,
  lead(m.epoch) over moves - m.epoch as epochs_in_stage, m.reason, nullif(m.command_id, '') as command_id, m.alpha,
  list_transform(m.gates_not_measured, lambda g: replace(g, 'SEED_GATE_', '')) as gates_not_measured, m.metrics,
  m.attempt, m.event_id, m.append_time as moved_at, row_number() over moves as move
from seed_moves m left join attempts a using (run_id, attempt)
where a.last_epoch is null or m.epoch <= a.last_epoch
window moves as (partition by m.run_id, m.seed_id order by m.record_offset);

-- One row for each seed of each run: where it is now and how it got there.
create view seeds as
select run_id, seed_id, slot, blueprint_id, stage, epoch, attempt, alpha, reason, command_id,
  min(epoch) over (partition by run_id, seed_id) as first_epoch
from seed_timeline
qualify row_number() over (partition by run_id, seed_id order by move desc) = 1;

-- One row for each gate that was measured, with the figures and their bounds.
create view gates as
select g.run_id, g.epoch, g.seed_id, replace(g.gate, 'SEED_GATE_', '') as gate, g.passed, g.checks, g.command_id,
  g.attempt, g.event_id, g.append_time
from gate_evaluations g left join attempts a using (run_id, attempt)
where a.last_epoch is null or g.epoch <= a.last_epoch;

-- One row for each figure that made a gate fail.
create view gate_failures as
with slots as (
  select run_id, seed_id, any_value(slot order by record_offset) as slot,
    any_value(blueprint_id order by record_offset) as blueprint_id
  from seed_moves group by run_id, seed_id
)
select g.run_id, g.epoch, g.seed_id, s.blueprint_id, s.slot, g.gate, c.name as figure, c.value, c.comparison, c.bound,
  nullif(g.command_id, '') as command_id, g.append_time as measured_at
from (
  select * exclude (checks), unnest(
    coalesce(nullif(list_filter(checks, lambda c: not c.passed), []), [null])
  ) as c
  from gates where not passed
) g left join slots s using (run_id, seed_id);

-- Moves that the lifecycle or a gate refused.
create view refused_moves as
select m.run_id, m.epoch, m.seed_id, replace(m.from_stage, 'SEED_STAGE_', '') as from_stage,
  replace(m.to_stage, 'SEED_STAGE_', '') as to_stage, m.reason, nullif(m.command_id, '') as command_id,
  m.append_time as refused_at
from rejected_moves m left join attempts a using (run_id, attempt)
where a.last_epoch is null or m.epoch <= a.last_epoch;

-- What was changed of how a seed learns.
create view tunings as
select t.run_id, t.epoch, t.seed_id, replace(t.stage, 'SEED_STAGE_', '') as stage, t.rate_factor, t.epochs, t.reason,
  nullif(t.command_id, '') as command_id, t.attempt, t.append_time as tuned_at
from seed_tunings t left join attempts a using (run_id, attempt)
where a.last_epoch is null or t.epoch <= a.last_epoch
qualify row_number() over (
  partition by t.run_id, t.epoch, t.seed_id order by t.attempt desc, t.record_offset desc
) = 1;

-- Kernels that were tried out in quarantine instead of on the host, the newest trial of each seed.
create view quarantines as
select t.run_id, t.epoch, t.seed_id, t.slot, t.blueprint_id, replace(t.verdict, 'QUARANTINE_VERDICT_', '') as verdict,
  t.detail, t.steps, t.seconds, t.peak_memory_bytes, t.figures, t.kernel_id, t.artifact_ref,
  nullif(t.command_id, '') as command_id, t.attempt, t.append_time as ended_at
from kernel_trials t left join attempts a using (run_id, attempt)
where a.last_epoch is null or t.epoch <= a.last_epoch
qualify row_number() over (
  partition by t.run_id, t.epoch, t.seed_id order by t.attempt desc, t.record_offset desc
) = 1;

-- Commands that were not applied, most because they came too late; `epoch` is the edge that found them.
create view late_commands as
select run_id, epoch, c.command_id, c.epoch as command_epoch, c.reason, c.event_id, noted_at
from (select run_id, epoch, settled_at as noted_at, unnest(late_commands) as c from epochs);

-- Checkpoints that count, the newest write of each epoch.
create view checkpoints as
select c.run_id, c.epoch, c.attempt, c.blob_digest, c.size_bytes, c.weights_digest, c.append_time as saved_at
from run_checkpoints c join attempts a using (run_id, attempt, producer_id)
where a.last_epoch is null or c.epoch <= a.last_epoch
qualify row_number() over (partition by c.run_id, c.epoch order by c.attempt desc, c.record_offset desc) = 1;

-- Returns to a checkpoint: at the edge of which epoch, to the end of which, and why: by command, or a fault. The host
-- trains on with `rate_factor` of its schedule's learning rate; `faults` counts the returns that faults forced so far.
create view rollbacks as
select r.run_id, r.attempt, r.from_epoch, r.to_epoch, r.checkpoint_digest, r.reason, r.append_time as rolled_back_at,
  nullif(r.digest_before, '') as digest_before, nullif(r.digest_after, '') as digest_after,
  nullif(r.rate_factor, 0) as rate_factor, r.faults, nullif(r.command_id, '') as command_id
from run_rollbacks r join attempts a using (run_id, attempt, producer_id)
where a.last_epoch is null or r.from_epoch <= a.last_epoch
qualify row_number() over (partition by r.run_id, r.from_epoch order by r.attempt desc, r.record_offset) = 1;

-- Epochs after which something held growth back: a pause, an open breaker, the halt after an emergency.
create view growth_holds as
select s.run_id, s.epoch, s.breaker_state, s.breaker_held, s.paused, nullif(s.paused_until_epoch, 0) as paused_until_epoch,
  s.halted
from run_states s join attempts a using (run_id, attempt, producer_id)
where (a.last_epoch is null or s.epoch <= a.last_epoch + 1) and s.breaker_state is not null
  and s.breaker_state <> 'CIRCUIT_STATE_UNKNOWN'
qualify row_number() over (partition by s.run_id, s.epoch order by s.attempt desc, s.record_offset) = 1;

-- Where each run that somebody took stands: running, finished or failed, and the event that says so.
create view run_status as
with ends as (
  select run_id, attempt, record_offset, append_time, 'finished' as status
  from run_finishes semi join attempts using (run_id, attempt, producer_id)
  union all
  select run_id, attempt, record_offset, append_time, 'failed' from run_failures
), claims_seen as (
  select e.run_id, e.record_offset, max(c.attempt) as attempt
  from ends e join attempts c on c.run_id = e.run_id and c.record_offset < e.record_offset
  group by e.run_id, e.record_offset
), words as (
  -- Attempt 0 speaks for the run as a whole; the end of an attempt that a later claim fenced says nothing.
  select e.run_id, e.attempt, e.record_offset, e.append_time, e.status
  from ends e left join claims_seen s using (run_id, record_offset)
  where e.attempt = 0 or s.attempt is null or s.attempt <= e.attempt
  union all
  select run_id, attempt, record_offset, append_time, 'running' from attempts
)
select run_id, status, record_offset, append_time as since
from words qualify row_number() over (partition by run_id order by record_offset desc) = 1;

-- One row for each run, as `esper train` prints it.
create view runs as
with last_claim as (
  from attempts qualify row_number() over (partition by run_id order by attempt desc) = 1
), requests as (
  from run_requests qualify row_number() over (partition by run_id order by record_offset) = 1
), last_epoch as (
  select run_id, max(epoch) as epochs, arg_max(val_loss, epoch) as val_loss,
    arg_max(val_accuracy, epoch) as val_accuracy, arg_max(parameters, epoch) as parameters,
    arg_max(multiply_adds, epoch) as multiply_adds,
    arg_max(multiply_adds_per_sample, epoch) as multiply_adds_per_sample,
    arg_max(digest, epoch) as digest
  from epochs group by run_id
), described as (
  -- Only packets tell of a run whose request is not in this log.
  select run_id, arg_min(task, record_offset) as task, arg_min(host, record_offset) as host,
    arg_min(policy, record_offset) as policy, arg_min(seed, record_offset) as seed
  from run_states anti join run_requests using (run_id) group by run_id
), grown as (
  select run_id, list({
    'seed_id': seed_id, 'slot': slot, 'blueprint_id': blueprint_id, 'stage': stage
  } order by seed_id) as seeds
  from seeds group by run_id
), ids as (
  select run_id from requests
  union select run_id from attempts
  union select run_id from described
  union select run_id from run_status
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
  r.epochs as epochs_planned, r.forked_from, r.forked_epochs, r.replicate, r.experiment_name, r.device, r.re_executable, c.attempt, c.worker,
  x.reason as failure, x.detail as failure_detail, r.append_time as requested_at,
  coalesce(f.append_time, x.append_time) as ended_at
from ids i
left join requests r using (run_id)
left join described d using (run_id)
left join run_status l using (run_id)
left join last_claim c using (run_id)
left join last_epoch e using (run_id)
left join grown g using (run_id)
left join run_finishes f on f.run_id = i.run_id and f.record_offset = l.record_offset and l.status = 'finished'
left join run_failures x on x.run_id = i.run_id and x.record_offset = l.record_offset and l.status = 'failed';

-- Finished runs by task, the best first: by accuracy on the test set, then by loss.
create view leaderboard as
select task, rank() over (partition by task order by accuracy desc, loss) as place, run_id, host, policy, seed,
  accuracy, loss, epochs, parameters, multiply_adds,
  len(list_filter(seeds, lambda s: s.stage = 'FOSSILIZED')) as grafts_kept, ended_at
from runs where status = 'finished';

-- What each policy reached on each task and host, over the seeds of its finished runs.
create view policy_results as
select task, host, policy, count(*) as runs, count(distinct seed) as seeds, avg(accuracy) as mean_accuracy,
  stddev_samp(accuracy) as sd_accuracy, min(accuracy) as worst_accuracy, max(accuracy) as best_accuracy,
  avg(loss) as mean_loss, avg(parameters) as mean_parameters, avg(multiply_adds) as mean_multiply_adds
from runs where status = 'finished' group by task, host, policy;

-- One row for each seed, with what it was worth: the held-out loss without it minus with it, measured last. A loss that
-- is not finite is the worst there is: such a seed hurt, but no difference can be said.
create view grafts as
with counted as (
  select s.run_id, s.seed_id, s.epoch, s.metrics, 0 as later
  from run_seed_states s
  semi join (
    select r.topic_partition, r.record_offset
    from run_states r join attempts a using (run_id, attempt, producer_id)
    where a.last_epoch is null or r.epoch <= a.last_epoch + 1
    qualify row_number() over (partition by r.run_id, r.epoch order by r.attempt desc, r.record_offset) = 1
  ) using (topic_partition, record_offset)
  union all
  select run_id, seed_id, epoch, metrics, move from seed_timeline
), measured as (
  select run_id, seed_id, max(epoch) as measured_epoch,
    arg_max(metrics['loss_seed_off'], (epoch, later)) as loss_seed_off,
    arg_max(metrics['loss_seed_on'], (epoch, later)) as loss_seed_on
  from counted
  where metrics['loss_seed_off'] is not null and metrics['loss_seed_on'] is not null
  group by run_id, seed_id
), moves as (
  select run_id, seed_id, min(epoch) as germinated_epoch, min(epoch) filter (stage = 'BLENDING') as grafted_epoch,
    min(epoch) filter (stage in ('FOSSILIZED', 'CULLED')) as settled_epoch,
    bool_or(stage = 'FOSSILIZED') as kept, bool_or(stage = 'CULLED') as culled
  from seed_timeline group by run_id, seed_id
)
select s.run_id, r.task, r.host, r.policy, s.seed_id, s.slot, s.blueprint_id, s.stage, s.reason,
  m.kept, m.culled, m.germinated_epoch, m.grafted_epoch, m.settled_epoch, x.measured_epoch,
  x.loss_seed_off, x.loss_seed_on, x.loss_seed_off > x.loss_seed_on as helped, x.loss_seed_on > x.loss_seed_off as hurt,
  if(isfinite(x.loss_seed_off) and isfinite(x.loss_seed_on), x.loss_seed_off - x.loss_seed_on, null) as gain,
  gain / nullif(abs(x.loss_seed_off), 0) as relative_gain
from seeds s
join moves m using (run_id, seed_id)
left join measured x using (run_id, seed_id)
left join (
  select run_id, arg_min(task, record_offset) as task, arg_min(host, record_offset) as host,
    arg_min(policy, record_offset) as policy
  from (
    select run_id, task, host, policy, record_offset from run_requests
    union all
    select run_id, task, host, policy, record_offset from run_states anti join run_requests using (run_id)
  )
  group by run_id
) r using (run_id);

-- What each blueprint was worth on each task. Seeds that nothing measured count as seeds and in no figure of gain.
create view blueprint_results as
select task, blueprint_id, count(*) as seeds, count(grafted_epoch) as grafted, count(*) filter (kept) as kept,
  count(*) filter (culled) as culled, count(helped) as measured, count(*) filter (helped) as helped,
  count(*) filter (hurt) as hurt, avg(gain) as mean_gain,
  stddev_samp(gain) as sd_gain, median(gain) as median_gain, min(gain) as worst_gain, max(gain) as best_gain,
  avg(relative_gain) as mean_relative_gain
from grafts group by task, blueprint_id;

-- One row for each epoch that a policy decided on: what it wanted, what was done, and how the next epoch went.
create view policy_decisions as
with steps as (
  select *, if(lead(epoch) over steps = epoch + 1, lead(val_loss) over steps, null) as next_val_loss
  from epochs window steps as (partition by run_id order by epoch)
)
select e.run_id, e.epoch, d.policy, nullif(d.policy_version, '') as policy_version,
  nullif(d.policy_digest, '') as policy_digest,
  case
    when coalesce(d.proposed_type, 'COMMAND_UNKNOWN') = 'COMMAND_UNKNOWN' then null
    when d.proposed_type = 'COMMAND_SEED' then lower(replace(d.proposed_operation, 'SEED_OP_', ''))
    else lower(replace(d.proposed_type, 'COMMAND_', ''))
  end as proposed,
  d.overridden, nullif(d.override_reason, '') as override_reason, e.command, e.outcome, e.seed_id, e.val_loss,
  e.next_val_loss, e.next_val_loss - e.val_loss as val_loss_change, d.log_probability, d.value_estimate, d.reasons,
  d.event_id as decision_id, e.command_id, d.append_time as decided_at
from steps e
join decisions d on d.run_id = e.run_id and d.attempt = e.attempt and d.event_id = e.decision_id;

-- What each version of a policy did, and how the validation loss moved in the epoch after it.
create view policy_actions as
select policy, policy_version, proposed, count(*) as decisions, count(*) filter (outcome = 'applied') as applied,
  count(*) filter (outcome like 'rejected%') as rejected, count(*) filter (overridden) as overridden,
  count(val_loss_change) as measured, avg(val_loss_change) as mean_val_loss_change,
  stddev_samp(val_loss_change) as sd_val_loss_change, count(*) filter (val_loss_change < 0) as loss_fell,
  count(*) filter (val_loss_change > 0) as loss_rose
from policy_decisions group by policy, policy_version, proposed;

-- What each epoch's edge took, by the broker's clock, without the way of its command.
create view edge_times as
with decided as (
  select run_id, attempt, state_event_id, min(append_time) as decided_at,
    arg_min(command_id, record_offset) as command_id
  from decisions group by run_id, attempt, state_event_id
), edges as (
  select run_id, epoch, attempt, command, outcome, latency_ms, command_id, state_event_id, finished_at, settled_at,
    lag(settled_at) over before as edge_before, lag(epoch) over before as epoch_before
  from epochs window before as (partition by run_id, attempt order by epoch)
)
select e.run_id, e.epoch, e.attempt, e.command, e.outcome, e.finished_at, e.settled_at, d.decided_at,
  coalesce(e.command_id, nullif(d.command_id, '')) as command_id,
  date_diff('microsecond', coalesce(e.edge_before, if(e.epoch_before is null, a.started_at, null)), e.finished_at)
    / 1000.0 as train_ms,
  date_diff('microsecond', e.finished_at, d.decided_at) / 1000.0 as decide_ms,
  date_diff('microsecond', e.finished_at, e.settled_at) / 1000.0 as wait_ms, e.latency_ms
from edges e
left join attempts a using (run_id, attempt)
left join decided d using (run_id, attempt, state_event_id);

-- Where the time of each epoch went (milliseconds apart, so 0 is less than one). train: from the edge before; decide:
-- packet to decision; deliver: decision to command; apply: command, or packet where none came, to outcome. `wait_ms` is
-- all of the edge. Kernel waits stand in `kernel_requests`.
create view epoch_times as
with commanded as (
  select run_id, command_id, min(append_time) as commanded_at from commands group by run_id, command_id
)
select e.run_id, e.epoch, e.attempt, e.command, e.outcome, e.finished_at, e.train_ms, e.decide_ms,
  date_diff('microsecond', e.decided_at, c.commanded_at) / 1000.0 as deliver_ms,
  date_diff('microsecond', coalesce(c.commanded_at, e.finished_at), e.settled_at) / 1000.0 as apply_ms,
  e.wait_ms, e.latency_ms
from edge_times e left join commanded c using (run_id, command_id);

-- Where the time of each run went, in seconds, with the tails of its decisions in milliseconds.
create view run_times as
with spent as (
  select run_id, count(*) as epochs, sum(train_ms) / 1000 as train_seconds, sum(wait_ms) / 1000 as wait_seconds,
    quantile_cont(decide_ms, [0.5, 0.99]) as decide, quantile_cont(wait_ms, [0.5, 0.99]) as wait,
    max(wait_ms) as wait_ms_max
  from edge_times group by run_id
), tries as (
  select run_id, count(*) as attempts, min(append_time) as claimed_at,
    sum(date_diff('microsecond', append_time, started_at)) / 1e6 as start_seconds
  from attempts group by run_id
)
select l.run_id, r.task, l.status, t.attempts, s.epochs,
  date_diff('microsecond', r.append_time, t.claimed_at) / 1e6 as queue_seconds, t.start_seconds,
  s.train_seconds, s.wait_seconds, s.wait_seconds / nullif(s.train_seconds + s.wait_seconds, 0) as wait_share,
  s.decide[1] as decide_ms_p50, s.decide[2] as decide_ms_p99, s.wait[1] as wait_ms_p50, s.wait[2] as wait_ms_p99,
  s.wait_ms_max, if(l.status = 'running', null, date_diff('microsecond', r.append_time, l.since) / 1e6) as total_seconds
from run_status l
left join (
  from run_requests qualify row_number() over (partition by run_id order by record_offset) = 1
) r using (run_id)
left join tries t using (run_id)
left join spent s using (run_id);

-- Runs that were asked for and that no worker has taken.
create view waiting_runs as
select run_id, task, host, policy, seed, device, append_time as requested_at
from run_requests anti join run_status using (run_id)
qualify row_number() over (partition by run_id order by record_offset) = 1;

-- Epochs of running runs whose packet has no outcome yet.
create view undecided_epochs as
select e.run_id, e.epoch, e.attempt, a.worker, e.finished_at as since
from epochs e join run_status r using (run_id) left join attempts a using (run_id, attempt)
where e.outcome is null and r.status = 'running';
