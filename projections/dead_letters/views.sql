-- One row for each record that was set aside, and for each group that parked one, as `esper dlq list` tells it.
-- state: set_aside (for all groups), or parked, waits (behind a parked one), ordered (to be handled again); or how it
-- ended: redriven, discarded. What stands under another key than its place's is nobody's.
create view dead_letters as
with told as (
  select *, reason in ('DEAD_LETTER_REASON_HANDLER_FAILED', 'DEAD_LETTER_REASON_WAITS_FOR_KEY') as parks
  from letters where subject = place
), lanes as (
  select *, if(parks, consumer_group, '') as lane from told
), firsts as (
  from lanes qualify row_number() over (partition by lane, place order by record_offset) = 1
), shown as (
  -- Of letters that park, the last one tells why; of those that set aside for all, the first.
  from lanes
  qualify row_number() over (partition by lane, place order by if(parks, -record_offset, record_offset)) = 1
), holding as (
  -- A parked record is held by the letter of its last failure; one that never failed by the first that made it wait.
  from lanes where parks
  qualify row_number() over (
    partition by lane, place order by reason = 'DEAD_LETTER_REASON_HANDLER_FAILED' desc,
    if(reason = 'DEAD_LETTER_REASON_HANDLER_FAILED', -record_offset, record_offset)
  ) = 1
), ends as (
  select place, consumer_group as lane, record_offset, append_time, 'discarded' as state, note
  from discards where subject = place
  union all
  select place, consumer_group, record_offset, append_time, 'redriven', note
  from redrives where subject = place and causation_id <> '' and consumer_group <> ''
), ended as (
  -- A parked record ends by what comes after it; one that is set aside for all may be given up at any time.
  select e.lane, e.place, arg_min(e.state, e.record_offset) as state, min(e.append_time) as ended_at,
    arg_min(e.note, e.record_offset) as note
  from ends e join firsts f using (lane, place)
  where e.lane = '' or e.record_offset > f.record_offset
  group by e.lane, e.place
), ordered as (
  select distinct place, consumer_group as lane, letter_id
  from redrives where subject = place and causation_id = ''
)
select f.of_topic as topic, f.of_partition as topic_partition, f.of_offset as record_offset, f.of_key as key,
  replace(s.reason, 'DEAD_LETTER_REASON_', '') as reason, s.attempts,
  case
    when e.state is not null then e.state
    when f.lane = '' then 'set_aside'
    when h.reason = 'DEAD_LETTER_REASON_WAITS_FOR_KEY' then 'waits'
    when o.letter_id is not null then 'ordered'
    else 'parked'
  end as state,
  f.lane as consumer_group, s.detail, s.record_type, s.value_bytes, s.value_digest,
  coalesce(h.event_id, s.event_id) as letter_id,
  f.append_time as since, e.ended_at, nullif(e.note, '') as note
from firsts f
join shown s using (lane, place)
left join holding h using (lane, place)
left join ended e using (lane, place)
left join ordered o on o.lane = f.lane and o.place = f.place and o.letter_id = h.event_id;

-- What nobody has dealt with yet, the oldest first where it is listed so.
create view waiting_letters as
select * exclude (ended_at, note) from dead_letters where state not in ('redriven', 'discarded');

-- Keys that wait, by group: the record that blocks each, and how many records stand behind it.
create view parked_keys as
select consumer_group, topic, topic_partition, key, min(record_offset) as blocked_at,
  arg_min(state, record_offset) as state, arg_min(reason, record_offset) as reason,
  arg_min(detail, record_offset) as detail, count(*) - 1 as waiting_behind, min(since) as since
from waiting_letters where consumer_group <> ''
group by consumer_group, topic, topic_partition, key;

-- How much was set aside, by why and what became of it.
create view dead_letter_counts as
select topic, consumer_group, reason, state, count(*) as records, count(distinct key) as keys, min(since) as first_at,
  max(since) as last_at
from dead_letters group by topic, consumer_group, reason, state;
