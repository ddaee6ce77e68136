-- Release 5 to 6: events are stored in leaves by position, and their personal text in a table of its own; eventstore.events is
-- a view of both. The functions of release 6 follow.

create table eventstore.private (
    stream_id uuid    not null,
    version   integer not null,
    text      text,
    salt      bytea,
    primary key (stream_id, version)
);

alter table eventstore.private alter column text set statistics 0;

-- The text moves while others read and append, and then, behind the locks, what they appended meanwhile. It is set to null
-- and not only dropped with its column: a dropped column keeps its bytes in every row.
do $$
declare
    heads bigint[];
    -- What an erasure has meanwhile set to null is not moved.
    move  constant text :=
        'with cleared as ('
        '    update eventstore.events e set private = null, private_salt = null'
        '    from eventstore.events old'
        '    where e.partition = old.partition and e.position = old.position'
        '        and (e.private is not null or e.private_salt is not null)'
        '        and (old.private is not null or old.private_salt is not null) and %s'
        '    returning e.stream_id, e.version, old.private, old.private_salt'
        ') insert into eventstore.private select * from cleared';
begin
    heads := array(
        select coalesce((select max(e.position) from eventstore.events e where e.partition = p), 0)
        from eventstore.log, generate_series(0, partitions - 1) as p order by p);
    execute format(move, 'true');
    -- A commit reads eventstore.log first: those in progress end, the others wait here and hold no lock.
    lock table eventstore.log in access exclusive mode;
    lock table eventstore.events in access exclusive mode;
    for p in 0 .. cardinality(heads) - 1 loop
        execute format(move, format('old.partition = %s and old.position > %s', p, heads[p + 1]));
    end loop;
end $$;

-- Its argument's type changes.
drop function eventstore.event_hash(bytea, eventstore.events);

alter table eventstore.log
    add column leaf_positions bigint not null default 4194304 check (leaf_positions > 0),
    add column leaf_end       bigint not null default 0;

-- The table becomes the first leaf, with at least half a leaf of room.
update eventstore.log
set leaf_end = (heads.highest + leaf_positions / 2) / leaf_positions * leaf_positions + leaf_positions
from (
    select coalesce(max(h.position), 0) as highest from eventstore.log, generate_series(0, partitions - 1) as p, lateral (
        select e.position from eventstore.events e where e.partition = p order by e.position desc limit 1
    ) as h
) as heads;

drop trigger append_only_rows on eventstore.events;
alter table eventstore.events drop column private, drop column private_salt;
create table eventstore.envelopes (
    like eventstore.events, primary key (partition, position)
) partition by range (position);
create index events_beside_jobs_of_leaves on eventstore.envelopes (category, stream_id, version) where category <> 'job';
create index job_quarantines_of_leaves on eventstore.envelopes (stream_id, version)
    where code in ('job.quarantined', 'job.released');

-- The names that it would have in a new database. PostgreSQL 18 has names for "not null", too. PostgreSQL reads the
-- whole table once, to validate that it keeps within the bounds.
do $$
declare
    upto bigint := (select leaf_end from eventstore.log);
    leaf text := 'envelopes_to_' || upto;
    old  text;
begin
    execute format('alter table eventstore.events rename to %I', leaf);
    execute format('alter index eventstore.events_pkey rename to %I', leaf || '_pkey');
    execute format('alter index eventstore.events_stream_id_version_key rename to %I', leaf || '_stream_id_version_key');
    execute format('alter index eventstore.events_beside_jobs rename to %I', leaf || '_category_stream_id_version_idx');
    execute format('alter index eventstore.job_quarantines rename to %I', leaf || '_stream_id_version_idx');
    alter index eventstore.events_beside_jobs_of_leaves rename to events_beside_jobs;
    alter index eventstore.job_quarantines_of_leaves rename to job_quarantines;
    for old in
        select format('%s rename constraint %I to %I', conrelid::regclass, conname,
            regexp_replace(conname, '^events_', 'envelopes_'))
        from pg_constraint
        where conrelid in (format('eventstore.%I', leaf)::regclass, 'eventstore.envelopes'::regclass)
            and contype = 'n'
        order by conrelid
    loop
        execute 'alter table ' || old;
    end loop;
    execute format('alter table eventstore.envelopes attach partition eventstore.%I for values from (0) to (%s)',
        leaf, upto);
end $$;

create view eventstore.events as
    select e.partition, e.position, e.stream_id, e.version, e.category, e.tenant, e.event_id, e.code, e.schema_version,
        e.ts, e.recorded_at, e.data, e.meta,
        case when e.private_digest is not null then (
            select p.text from eventstore.private p where p.stream_id = e.stream_id and p.version = e.version)
        end as private,
        case when e.private_digest is not null then (
            select p.salt from eventstore.private p where p.stream_id = e.stream_id and p.version = e.version)
        end as private_salt,
        e.private_digest, e.hash, e.chain
    from eventstore.envelopes e;

create or replace function eventstore.refuse_change() returns trigger
language plpgsql as $$
begin
    raise exception 'events are append-only: % refused', tg_op using errcode = 'DF001';
end $$;

create trigger append_only_rows before update or delete on eventstore.envelopes
    for each row execute function eventstore.refuse_change();
create trigger append_only_table before truncate on eventstore.envelopes
    for each statement execute function eventstore.refuse_change();
create trigger append_only_rows before update on eventstore.private
    for each row execute function eventstore.refuse_change();
create trigger erased_rows before delete on eventstore.private
    for each row when (current_setting('eventstore.erasing', true) is distinct from 'yes')
    execute function eventstore.refuse_change();
create trigger append_only_table before truncate on eventstore.private
    for each statement execute function eventstore.refuse_change();
alter table eventstore.envelopes enable always trigger append_only_rows;
alter table eventstore.envelopes enable always trigger append_only_table;
alter table eventstore.private enable always trigger append_only_rows;
alter table eventstore.private enable always trigger erased_rows;
alter table eventstore.private enable always trigger append_only_table;
