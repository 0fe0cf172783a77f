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
