-- The newest sample of each metric and set of labels.
create view metrics as
select subsystem, name, value, unit, labels, packet_time as measured_at
from metric_samples
qualify row_number() over (partition by subsystem, name, labels order by topic_partition desc, record_offset desc) = 1;

-- How the samples of each metric are spread. Samples that are quantiles already are left out: none can be made of them.
create view metric_quantiles as
select subsystem, name, unit, count(*) as samples, avg(value) as mean, min(value) as least,
  quantile_cont(value, 0.5) as p50, quantile_cont(value, 0.95) as p95, quantile_cont(value, 0.99) as p99,
  max(value) as most, arg_max(value, (packet_time, record_offset)) as latest, max(packet_time) as measured_at
from metric_samples
where isfinite(value) and not map_contains(labels, 'quantile')
group by subsystem, name, unit;

-- Where the time goes by each subsystem's own clock: everything that is measured in milliseconds.
create view latencies as
select subsystem, name, samples, mean as mean_ms, p50 as p50_ms, p95 as p95_ms, p99 as p99_ms, most as max_ms,
  samples * mean / 1000 as total_seconds
from metric_quantiles where unit = 'ms';

-- Where the time goes by spans, where a subsystem emits them; a span that has not ended counts as open.
create view span_times as
select subsystem, name, count(duration_ms) as spans, count(*) - count(duration_ms) as open,
  sum(duration_ms) / 1000 as total_seconds, quantile_cont(duration_ms, 0.5) as p50_ms,
  quantile_cont(duration_ms, 0.95) as p95_ms, max(duration_ms) as max_ms
from (select *, date_diff('microsecond', start_time, end_time) / 1000.0 as duration_ms from trace_spans)
group by subsystem, name;

-- How each member says that it is; members of a subsystem name themselves in the indicators.
create view health as
select subsystem, coalesce(indicators['member'], '') as member, replace(health, 'HEALTH_STATUS_', '') as status,
  summary, indicators, packet_time as reported_at
from telemetry_packets where health is not null
qualify row_number() over (
  partition by subsystem, coalesce(indicators['member'], '') order by topic_partition desc, record_offset desc
) = 1;

-- What subsystems warned of.
create view warnings as
select subsystem, replace(level, 'TELEMETRY_LEVEL_', '') as level, description, labels, event_id,
  packet_time as happened_at
from telemetry_events
where level in ('TELEMETRY_LEVEL_WARNING', 'TELEMETRY_LEVEL_ERROR', 'TELEMETRY_LEVEL_CRITICAL')
qualify row_number() over (partition by event_id order by topic_partition, record_offset) = 1 or event_id = '';
