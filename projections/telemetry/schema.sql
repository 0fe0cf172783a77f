create table telemetry_packets (
  topic_partition integer, record_offset bigint, append_time timestamptz, event_id varchar, event_time timestamptz,
  source varchar, subsystem varchar, packet_id varchar, packet_time timestamptz, level varchar, health varchar,
  summary varchar, indicators map(varchar, varchar)
);

create table metric_samples (
  topic_partition integer, record_offset bigint, append_time timestamptz, subsystem varchar, packet_time timestamptz,
  name varchar, value double, unit varchar, labels map(varchar, varchar)
);

create table telemetry_events (
  topic_partition integer, record_offset bigint, append_time timestamptz, subsystem varchar, packet_time timestamptz,
  event_id varchar, description varchar, level varchar, labels map(varchar, varchar)
);

create table trace_spans (
  topic_partition integer, record_offset bigint, append_time timestamptz, subsystem varchar, span_id varchar,
  parent_span_id varchar, name varchar, start_time timestamptz, end_time timestamptz, labels map(varchar, varchar)
);
