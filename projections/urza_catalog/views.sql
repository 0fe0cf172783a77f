-- The blueprints as last registered.
create view blueprints as
select blueprint_id, name, replace(tier, 'BLUEPRINT_TIER_', '') as tier, risk, layouts, parameters, stage,
  quarantine_only, approval_required, description, descriptor_digest, append_time as registered_at
from blueprint_registrations
qualify row_number() over (partition by blueprint_id order by record_offset desc) = 1;

-- The kernels that can be fetched, each as last catalogued.
create view urza_catalog as
select kernel_id, blueprint_id, artifact_ref, layout, in_shape, out_shape, dtype, kernel_parameters, parameters,
  multiply_adds_per_sample, spec_bytes + weights_bytes as size_bytes, compile_ms, strategy, spec_digest, weights_digest,
  guard_digest, append_time as catalogued_at
from kernel_updates
qualify row_number() over (partition by kernel_id order by record_offset desc) = 1;

-- The forge's work on each kernel: what stands last in its topic, and how long it took.
create view compile_jobs as
with words as (
  select kernel_id, 'started' as status, causation_id, append_time, record_offset, attempt, null::double as compile_ms,
    null as reason, null as blueprint_id
  from compile_starts
  union all
  select kernel_id, 'finished', causation_id, append_time, record_offset, null, compile_ms, null, null
  from compile_finishes
  union all
  select kernel_id, 'failed', causation_id, append_time, record_offset, attempt, null, reason,
    nullif(blueprint_id, '')
  from compile_failures
), latest as (
  select kernel_id, arg_max(status, record_offset) as status, max(attempt) as attempts,
    arg_max(compile_ms, record_offset) as compile_ms,
    arg_max(reason, record_offset) filter (status = 'failed') as failure,
    count(*) filter (status = 'failed') as failures, any_value(blueprint_id) as blueprint_id,
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
  a.requested_at, l.started_at, coalesce(l.status_since, a.requested_at) as status_since
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
