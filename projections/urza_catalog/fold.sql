insert into blueprint_registrations by name
select topic_partition, record_offset, append_time, meta.event_id, meta.time as event_time,
  descriptor.blueprint_id, descriptor.name, descriptor.tier, descriptor.risk, descriptor.stage,
  descriptor.quarantine_only, descriptor.approval_required, descriptor.description, descriptor.layouts,
  descriptor.allowed_parameters as parameters, descriptor_digest
from BlueprintRegistered;

insert into blueprint_approvals by name
select topic_partition, record_offset, append_time, meta.event_id, meta.time as event_time, meta.source,
  blueprint_id, descriptor_digest, approved_by, reason
from BlueprintApproved;

insert into blueprint_withdrawals by name
select topic_partition, record_offset, append_time, meta.event_id, meta.time as event_time, meta.source,
  blueprint_id, descriptor_digest, withdrawn_by, reason
from BlueprintWithdrawn;

insert into kernel_updates by name
select topic_partition, record_offset, append_time, meta.event_id, meta.time as event_time,
  kernel_id, blueprint_id, artifact_ref, checksum, guard_digest, compile_ms, manifest.request.layout,
  manifest.request.in_shape, manifest.request.out_shape, manifest.request.dtype,
  manifest.request.parameters as kernel_parameters, manifest.spec_digest, manifest.spec_bytes, manifest.weights_digest,
  manifest.weights_bytes, manifest.parameters, manifest.multiply_adds_per_sample, manifest.strategy,
  manifest.format_version
from KernelCatalogUpdate;

insert into compile_requests by name
select topic_partition, record_offset, append_time, meta.event_id, meta.time as event_time,
  kernel_id, request.blueprint_id, request.layout, request.dtype
from CompileRequested;

insert into compile_starts by name
select topic_partition, record_offset, append_time, meta.event_id, meta.time as event_time,
  meta.causation_id, kernel_id, attempt
from CompileStarted;

insert into compile_finishes by name
select topic_partition, record_offset, append_time, meta.event_id, meta.time as event_time,
  meta.causation_id, kernel_id, artifact_ref, compile_ms, strategy, fallback_reason, prewarm
from CompileFinished;

insert into compile_failures by name
select topic_partition, record_offset, append_time, meta.event_id, meta.time as event_time,
  meta.causation_id, kernel_id, blueprint_id, reason, attempt, retried, retry_after_ms
from CompileFailed;

insert into kernel_asks by name
select topic_partition, record_offset, append_time, meta.event_id, meta.time as event_time, meta.source,
  if(request_id = '', meta.event_id, request_id) as request_id, blueprint_id, training_run_id as run_id, kernel_id,
  issued_at
from KernelPrefetchRequest;

insert into kernel_answers by name
select topic_partition, record_offset, append_time, meta.event_id, meta.time as event_time, meta.causation_id,
  request_id, blueprint_id, training_run_id as run_id, kernel_id, artifact_ref, prewarm
from KernelArtifactReady;

insert into kernel_refusals by name
select topic_partition, record_offset, append_time, meta.event_id, meta.time as event_time, meta.causation_id,
  request_id, blueprint_id, training_run_id as run_id, kernel_id, reason
from KernelArtifactError;

insert into kernel_parts by name
select topic_partition, record_offset, append_time, meta.event_id, meta.time as event_time, meta.causation_id,
  kernel_id, artifact_ref, blueprint_id, kind, part_digest, part_bytes, forge, platform, guard_digest, parity,
  compile_ms, warm_compile_ms, speedup, chosen, reason
from KernelPartCompiled;

insert into kernel_benchmarks by name
select topic_partition, record_offset, append_time, meta.event_id, meta.time as event_time, meta.causation_id,
  benchmark.blueprint_id, benchmark.kernel_id, benchmark.layout, benchmark.version, benchmark.platform,
  profile.name as profile, profile.latency, profile.throughput_samples_per_s
from BenchmarkReport, unnest(benchmark.profiles) as entries(profile);

insert into kernel_integrity_failures by name
select topic_partition, record_offset, append_time, meta.event_id, meta.time as event_time, meta.source,
  kernel_id, artifact_ref, part, reason
from KernelIntegrityFailed;

insert into kernel_evictions by name
select topic_partition, record_offset, append_time, meta.event_id, meta.time as event_time, meta.source,
  kernel_id, artifact_ref, reason, freed_bytes
from KernelEvicted;
