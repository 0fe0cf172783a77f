insert into letters by name
select topic_partition, record_offset, append_time, meta.event_id, meta.time as event_time, meta.source, meta.subject,
  topic || '-' || partition::varchar || '-' || "offset"::varchar as place,
  topic as of_topic, partition as of_partition, "offset" as of_offset, coalesce(key::varchar, '') as of_key, reason,
  detail, value_digest, value_bytes, attempts, consumer_group, record_type
from DeadLetter;

insert into redrives by name
select topic_partition, record_offset, append_time, meta.event_id, meta.time as event_time, meta.source, meta.subject,
  topic || '-' || partition::varchar || '-' || "offset"::varchar as place, meta.causation_id,
  topic as of_topic, partition as of_partition, "offset" as of_offset, letter_id, consumer_group, note
from Redriven;

insert into discards by name
select topic_partition, record_offset, append_time, meta.event_id, meta.time as event_time, meta.source, meta.subject,
  topic || '-' || partition::varchar || '-' || "offset"::varchar as place,
  topic as of_topic, partition as of_partition, "offset" as of_offset, letter_id, consumer_group, note
from Discarded;
