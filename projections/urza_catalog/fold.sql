insert into blueprint_registrations by name
select topic_partition, record_offset, append_time, meta.event_id, meta.time as event_time,
  descriptor.blueprint_id, descriptor.name, descriptor.tier, descriptor.risk, descriptor.stage,
  descriptor.quarantine_only, descriptor.approval_required, descriptor.description, descriptor.layouts,
  descriptor.allowed_parameters as parameters, descriptor_digest
from BlueprintRegistered;

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
  meta.causation_id, kernel_id, artifact_ref, compile_ms, strategy
from CompileFinished;

insert into compile_failures by name
select topic_partition, record_offset, append_time, meta.event_id, meta.time as event_time,
  meta.causation_id, kernel_id, blueprint_id, reason, attempt
from CompileFailed;

insert into kernel_asks by name
select topic_partition, record_offset, append_time, meta.event_id, meta.time as event_time, meta.source,
  if(request_id = '', meta.event_id, request_id) as request_id, blueprint_id, training_run_id as run_id, kernel_id,
  issued_at
from KernelPrefetchRequest;

insert into kernel_answers by name
select topic_partition, record_offset, append_time, meta.event_id, meta.time as event_time, meta.causation_id,
  request_id, blueprint_id, training_run_id as run_id, kernel_id, artifact_ref
from KernelArtifactReady;

insert into kernel_refusals by name
select topic_partition, record_offset, append_time, meta.event_id, meta.time as event_time, meta.causation_id,
  request_id, blueprint_id, training_run_id as run_id, kernel_id, reason
from KernelArtifactError;
