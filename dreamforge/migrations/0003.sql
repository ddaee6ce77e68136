-- Release 2 to 3. The functions of release 3 follow from schema.sql.

create index job_quarantines on eventstore.events (stream_id, version) where code in ('job.quarantined', 'job.released');

create table eventstore.rejections (
    stream_id   uuid        primary key,
    reader      text        not null,
    version     integer     not null,
    reason      text        not null,
    reported_at timestamptz not null default clock_timestamp()
);
