-- `place` is the record that the event is about, as its key should be: <topic>-<partition>-<offset>.
create table letters (
  topic_partition integer, record_offset bigint, append_time timestamptz, event_id varchar, event_time timestamptz,
  source varchar, subject varchar, place varchar, of_topic varchar, of_partition uinteger, of_offset bigint,
  of_key varchar, reason varchar, detail varchar, value_digest varchar, value_bytes ubigint, attempts uinteger,
  consumer_group varchar, record_type varchar
);

create table redrives (
  topic_partition integer, record_offset bigint, append_time timestamptz, event_id varchar, event_time timestamptz,
  source varchar, subject varchar, place varchar, causation_id varchar, of_topic varchar, of_partition uinteger,
  of_offset bigint, letter_id varchar, consumer_group varchar, note varchar
);

create table discards (
  topic_partition integer, record_offset bigint, append_time timestamptz, event_id varchar, event_time timestamptz,
  source varchar, subject varchar, place varchar, of_topic varchar, of_partition uinteger, of_offset bigint,
  letter_id varchar, consumer_group varchar, note varchar
);
