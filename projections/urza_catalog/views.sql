-- The blueprints as last registered, and whether they may be grafted: allowed, approved, or the word for which every
-- subsystem refuses them. An approval holds for the descriptor that it was given to and until the next withdrawal; a
-- withdrawal holds until the descriptor that is registered is approved again.
create view blueprints as
with latest as (
  from blueprint_registrations
  qualify row_number() over (partition by blueprint_id order by record_offset desc) = 1
), withdrawn as (
  from blueprint_withdrawals
  qualify row_number() over (partition by blueprint_id order by record_offset desc) = 1
), approved as (
  select a.* from blueprint_approvals a left join withdrawn w using (blueprint_id)
  where a.record_offset > coalesce(w.record_offset, -1)
  qualify row_number() over (partition by blueprint_id, a.descriptor_digest order by a.record_offset desc) = 1
), judged as (
  select l.*, a.blueprint_id is not null as is_approved, w.blueprint_id is not null as is_withdrawn,
    l.quarantine_only or l.tier = 'BLUEPRINT_TIER_HIGH_RISK' as only_quarantine,
    l.approval_required or l.tier <> 'BLUEPRINT_TIER_SAFE' as needs_approval,
    if(a.blueprint_id is not null, a.approved_by, w.withdrawn_by) as decided_by,
    if(a.blueprint_id is not null, a.reason, w.reason) as decision_reason
  from latest l left join approved a using (blueprint_id, descriptor_digest) left join withdrawn w using (blueprint_id)
)
select j.blueprint_id, j.name, replace(j.tier, 'BLUEPRINT_TIER_', '') as tier, j.risk, j.layouts, j.parameters,
  j.stage, j.quarantine_only, j.approval_required,
  case when is_withdrawn and not is_approved then 'withdrawn'
    when only_quarantine then 'quarantine_only'
    when is_approved then 'approved'
    when not needs_approval then 'allowed'
    when exists (from approved o where o.blueprint_id = j.blueprint_id) then 'approval_outdated'
    else 'approval_required' end as status,
  j.decided_by, j.decision_reason, j.description, j.descriptor_digest, j.append_time as registered_at
from judged j;

-- The kernels that can be fetched, each as last catalogued, with the latency that was measured where it was made, and
-- those that the forge could not make. What was removed from the store since then is left out: it can be made again.
-- status: ready; damaged (its bytes were refused since it was catalogued, so it is made again when next asked for);
-- failed (there is none). reason: of damaged and failed what was wrong; of ready what its making or measuring lacked.
create view urza_catalog as
with latest as (
  from kernel_updates qualify row_number() over (partition by kernel_id order by record_offset desc) = 1
), removed as (
  select kernel_id, artifact_ref, max(append_time) as removed_at from kernel_evictions group by all
), stored as (
  select u.* from latest u left join removed r using (kernel_id, artifact_ref)
  where r.removed_at is null or r.removed_at < u.append_time
), prewarmed as (
  from compile_finishes where prewarm.samples > 0
  qualify row_number() over (partition by kernel_id, artifact_ref order by record_offset desc) = 1
), parts as (
  select kernel_id, artifact_ref, count(distinct part_digest) as compiled_parts
  from kernel_parts where part_digest <> '' group by all
), ended as (
  from (
    select kernel_id, nullif(blueprint_id, '') as blueprint_id, reason as failure, null as hindrance, record_offset
    from compile_failures where not coalesce(retried, false)
    union all
    select kernel_id, null, null, nullif(fallback_reason, ''), record_offset from compile_finishes
  )
  qualify row_number() over (partition by kernel_id order by record_offset desc) = 1
), asked as (
  from compile_requests qualify row_number() over (partition by kernel_id order by record_offset desc) = 1
), damaged as (
  select artifact_ref, part || ': ' || reason as damage, append_time as damaged_at
  from kernel_integrity_failures where artifact_ref <> '' and part <> 'compiled part'
  qualify row_number() over (partition by artifact_ref order by record_offset desc) = 1
)
select kernel_id, coalesce(u.blueprint_id, e.blueprint_id, a.blueprint_id) as blueprint_id, u.artifact_ref,
  case when u.kernel_id is null then 'failed' when d.damaged_at >= u.append_time then 'damaged' else 'ready' end
    as status,
  coalesce(if(d.damaged_at >= u.append_time, d.damage, null), e.failure, e.hindrance) as reason,
  coalesce(u.layout, a.layout) as layout, u.in_shape, u.out_shape, coalesce(u.dtype, a.dtype) as dtype,
  u.kernel_parameters, u.parameters, u.multiply_adds_per_sample, u.spec_bytes + u.weights_bytes as size_bytes,
  u.compile_ms, u.strategy, w.prewarm.samples as prewarm_samples, w.prewarm.p50_ms as prewarm_p50_ms,
  w.prewarm.p95_ms as prewarm_p95_ms, coalesce(p.compiled_parts, 0) as compiled_parts, u.spec_digest,
  u.weights_digest, u.guard_digest, u.append_time as catalogued_at
from stored u full join ended e using (kernel_id)
left join asked a using (kernel_id)
left join prewarmed w using (kernel_id, artifact_ref)
left join parts p using (kernel_id, artifact_ref)
left join damaged d using (artifact_ref)
where u.kernel_id is not null or e.failure is not null;

-- The forge's work on each kernel: what stands last in its topic, and how long it took.
create view compile_jobs as
with words as (
  select kernel_id, 'started' as status, causation_id, append_time, record_offset, attempt, null::double as compile_ms,
    null as reason, null as blueprint_id, null as strategy, null as fallback_reason
  from compile_starts
  union all
  select kernel_id, 'finished', causation_id, append_time, record_offset, null, compile_ms, null, null,
    strategy, fallback_reason
  from compile_finishes
  union all
  select kernel_id, 'failed', causation_id, append_time, record_offset, attempt, null, reason,
    nullif(blueprint_id, ''), null, null
  from compile_failures
), latest as (
  select kernel_id, arg_max(status, record_offset) as status, max(attempt) as attempts,
    arg_max(compile_ms, record_offset) as compile_ms,
    arg_max(reason, record_offset) filter (status = 'failed') as failure,
    count(*) filter (status = 'failed') as failures, any_value(blueprint_id) as blueprint_id,
    arg_max(strategy, record_offset) filter (status = 'finished') as strategy,
    arg_max(nullif(fallback_reason, ''), record_offset) filter (status = 'finished') as fallback_reason,
    min(append_time) as started_at, max(append_time) as status_since
  from words group by kernel_id
), asked as (
  select kernel_id, arg_min(blueprint_id, record_offset) as blueprint_id, count(*) as requests,
    min(append_time) as requested_at
  from compile_requests group by kernel_id
)
select kernel_id, coalesce(a.blueprint_id, k.blueprint_id, l.blueprint_id) as blueprint_id,
  coalesce(l.status, 'requested') as status,
  coalesce(a.requests, 0) as requests, l.attempts, coalesce(l.failures, 0) as failures, l.failure, l.compile_ms,
  l.strategy, l.fallback_reason, a.requested_at, l.started_at, coalesce(l.status_since, a.requested_at) as status_since
from asked a full join latest l using (kernel_id)
left join urza_catalog k using (kernel_id);

-- Each request for a kernel with its reply: the first that follows from it. A request id that comes again is no
-- other request.
create view kernel_requests as
with replies as (
  from (
    select causation_id, request_id, 'ready' as status, artifact_ref, null as reason, append_time, record_offset
    from kernel_answers
    union all
    select causation_id, request_id, 'failed', null, reason, append_time, record_offset from kernel_refusals
  )
  qualify row_number() over (partition by causation_id, request_id order by record_offset) = 1
)
select q.request_id, q.run_id, q.source, q.blueprint_id, q.kernel_id, coalesce(r.status, 'waiting') as status, r.reason,
  r.artifact_ref, q.append_time as requested_at, r.append_time as answered_at,
  date_diff('microsecond', q.append_time, r.append_time) / 1000.0 as wait_ms
from (from kernel_asks qualify row_number() over (partition by request_id order by record_offset) = 1) q
left join replies r on r.causation_id = q.event_id and r.request_id = q.request_id;

-- Requests for kernels that nobody has answered.
create view waiting_kernel_requests as
select request_id, run_id, blueprint_id, kernel_id, requested_at as since from kernel_requests where status = 'waiting';

-- Each way in which the forge compiled a kernel, as last measured: what was gained, and what is used.
create view compiled_parts as
select kernel_id, blueprint_id, artifact_ref, lower(replace(kind, 'COMPILED_KIND_', '')) as kind, chosen,
  nullif(reason, '') as reason, nullif(speedup, 0) as speedup, nullif(compile_ms, 0) as compile_ms,
  nullif(warm_compile_ms, 0) as warm_compile_ms, parity.passed as parity_passed,
  parity.forward_abs_max as forward_difference, parity.backward_abs_max as backward_difference, parity.tolerance,
  part_bytes, part_digest, forge, platform.device, platform.isa, platform.torch_version, platform.threads,
  append_time as compiled_at
from kernel_parts
qualify row_number() over (
  partition by kernel_id, artifact_ref, kind, forge, platform order by record_offset desc
) = 1;

-- How long kernels take, each way to run one as last measured on each platform.
create view kernel_latencies as
select kernel_id, blueprint_id, layout, profile, latency.batch, latency.samples, latency.p50_ms, latency.p95_ms,
  throughput_samples_per_s, platform.device, platform.isa, platform.torch_version, platform.threads,
  append_time as measured_at
from kernel_benchmarks where latency.samples > 0
qualify row_number() over (
  partition by kernel_id, profile, latency.batch, platform order by record_offset desc
) = 1;

-- What failed around kernels, and why: making one, handing one out, or bytes that were wrong.
create view kernel_failures as
with failures as (
  select 'compile' as what, kernel_id, nullif(blueprint_id, '') as blueprint_id, reason, append_time from compile_failures
  union all
  select 'request', kernel_id, nullif(blueprint_id, ''), reason, append_time from kernel_refusals
  union all
  select 'integrity of ' || part, kernel_id, null, reason, append_time from kernel_integrity_failures
  union all
  select 'compiled part', kernel_id, blueprint_id, reason, append_time from kernel_parts
  where not coalesce(parity.passed, false) and not regexp_matches(reason, '^(stateful|stochastic): ')
), made_of as (
  select kernel_id, any_value(blueprint_id) as blueprint_id
  from (
    select kernel_id, blueprint_id from kernel_updates
    union all select kernel_id, blueprint_id from compile_requests
    union all select kernel_id, blueprint_id from kernel_asks
  )
  where blueprint_id <> '' group by kernel_id
)
select f.what, nullif(f.kernel_id, '') as kernel_id, coalesce(f.blueprint_id, m.blueprint_id) as blueprint_id, f.reason,
  f.append_time as happened_at
from failures f left join made_of m using (kernel_id);

-- What happened to stored bytes: found wrong before they were opened, or removed.
create view kernel_store_events as
select 'wrong' as event, nullif(kernel_id, '') as kernel_id, artifact_ref, part, reason, source, null as freed_bytes,
  append_time as happened_at, record_offset
from kernel_integrity_failures
union all
select 'removed', nullif(kernel_id, ''), artifact_ref, null, reason, source, freed_bytes, append_time, record_offset
from kernel_evictions;
