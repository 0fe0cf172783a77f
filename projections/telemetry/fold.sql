insert into telemetry_packets by name
select topic_partition, record_offset, append_time, meta.event_id, meta.time as event_time, meta.source,
  if(source_subsystem = '', meta.source, source_subsystem) as subsystem, packet_id,
  coalesce(timestamp, meta.time) as packet_time, level, system_health.status as health, system_health.summary,
  system_health.indicators
from TelemetryPacket;

insert into metric_samples by name
select topic_partition, record_offset, append_time,
  if(source_subsystem = '', meta.source, source_subsystem) as subsystem, coalesce(timestamp, meta.time) as packet_time,
  point.name, point.value, point.unit, point.attributes as labels
from TelemetryPacket, unnest(metrics) as points(point);

insert into telemetry_events by name
select topic_partition, record_offset, append_time,
  if(source_subsystem = '', meta.source, source_subsystem) as subsystem, coalesce(timestamp, meta.time) as packet_time,
  event.event_id, event.description, event.level, event.attributes as labels
from TelemetryPacket, unnest(events) as listed(event);

insert into trace_spans by name
select topic_partition, record_offset, append_time,
  if(source_subsystem = '', meta.source, source_subsystem) as subsystem, span.span_id, span.parent_span_id, span.name,
  span.start_time, span.end_time, span.attributes as labels
from TelemetryPacket, unnest(spans) as listed(span);
