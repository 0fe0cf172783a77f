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
