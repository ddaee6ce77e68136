-- Dream Forge's own part of the database, on top of the event store (eventstore/store.sql, which is run before it):
--
--   eventstore   indexes, queues and categories that jobs need
--   projector    what writes the read model, and rebuilds it
--   readmodel    the read model: tables that can be rebuilt from the log. A rebuild fills readmodel_shadow and swaps the
--                two by name; the former read model stays as readmodel_before

create schema projector;
create schema readmodel;

---------------------------------------------------------------------------------------------------
-- What jobs need of the event store
---------------------------------------------------------------------------------------------------

-- One queue per kind of step, so that pools for GPU and CPU scale apart.
select eventstore.create_queue('generate');
select eventstore.create_queue('upscale');

-- The key of the stream tokens.
insert into eventstore.secrets (name) values ('stream_token');

-- An intruder in a process of the service must not be able to create API keys.
insert into eventstore.owner_categories (category) values ('key');

-- The few streams of other categories (models, keys), read whole: without it every read would scan all jobs' events.
-- Partial, so that appends to jobs don't maintain it.
create index events_beside_jobs on eventstore.envelopes (category, stream_id, version) where category <> 'job';

-- The marks of quarantined jobs: few among all events, and read by /readyz, metrics and operators.
create index job_quarantines on eventstore.envelopes (stream_id, version) where code in ('job.quarantined', 'job.released');

---------------------------------------------------------------------------------------------------
-- Read models
---------------------------------------------------------------------------------------------------

create table readmodel.jobs (
    job_id        uuid        primary key,
    tenant        text        not null,
    type          text        not null,
    status        text        not null,
    created_at    timestamptz not null,
    updated_at    timestamptz not null,
    version       integer     not null,  -- of the stream: later events are folded over the row on every read
    count         integer     not null,
    params        json        not null,
    metadata      json        not null,
    error_code    text,
    error_message text
);

-- The list of jobs, read backwards. None of these columns ever changes, so that updates of a row are HOT.
create index jobs_listed on readmodel.jobs (tenant, created_at, job_id);
-- The list by a status that few jobs have for long. Succeeded jobs, the most, are found by the index above.
create index jobs_by_status on readmodel.jobs (tenant, status, created_at, job_id) where status <> 'succeeded';

create table readmodel.steps (
    step_id       uuid        primary key,
    job_id        uuid        not null,
    ordinal       smallint    not null,
    name          text        not null,
    status        text        not null,
    attempt       integer     not null,
    started_at    timestamptz,
    finished_at   timestamptz,
    completed     integer     not null,  -- items that have their artifact
    metadata_json json        not null,
    unique (job_id, ordinal)             -- also finds the steps of a job
);

create table readmodel.artifacts (
    artifact_id   uuid        not null,
    job_id        uuid        not null,
    step_id       uuid        not null,
    item_index    integer     not null,
    created_at    timestamptz not null,
    format        text        not null,
    width         integer     not null,
    height        integer     not null,
    seed          bigint      not null,
    s3_key        text        not null,
    bytes         bigint      not null,
    sha256        text        not null,
    primary key (job_id, step_id, item_index)
);

-- Which build of the read model this is.
create table readmodel.generation (
    singleton boolean  primary key default true check (singleton),
    number    integer  not null,  -- 1, 2, 3 …: each rebuild makes the next
    version   integer  not null,  -- of the views that are kept here (projections.job_view.VERSION)
    build     uuid     not null default gen_random_uuid(),  -- a number is used again after an abort
    stood     bigint[]            -- the projector's position in each partition when another generation replaced this one
);

insert into readmodel.generation (number, version) values (1, 1);

---------------------------------------------------------------------------------------------------
-- The projector, and rebuilds
---------------------------------------------------------------------------------------------------

-- Defines what writes into each read model. Static statements, whose plans are kept: planning them takes longer than
-- running them. A swap, which renames the schemas, has the plans made anew.
create or replace function projector.define_writers() returns void
language plpgsql as $$
declare
    target text;
begin
    foreach target in array array['readmodel', 'readmodel_shadow'] loop
        execute format($writer$
create or replace function projector.write_%1$I(
    jobs json, steps json, artifacts json, parts smallint, held smallint[]
) returns void
language plpgsql as $body$
#variable_conflict use_column
begin
    with applied as (
        insert into %1$I.jobs as t
        select r.* from json_populate_recordset(null::%1$I.jobs, jobs) r
        where eventstore.partition_of(r.job_id, parts) = any (held)
        on conflict (job_id) do update set
            -- For a quarantined job, what the first event says may become readable only after its release.
            type = excluded.type, created_at = excluded.created_at, count = excluded.count,
            status = excluded.status, updated_at = excluded.updated_at, version = excluded.version,
            params = excluded.params, metadata = excluded.metadata,
            error_code = excluded.error_code, error_message = excluded.error_message
        where excluded.version > t.version
        returning t.job_id
    ), stepped as (
        insert into %1$I.steps as s
        select r.* from json_populate_recordset(null::%1$I.steps, steps) r join applied using (job_id)
        on conflict (step_id) do update set
            status = excluded.status, attempt = excluded.attempt, started_at = excluded.started_at,
            finished_at = excluded.finished_at, completed = excluded.completed,
            metadata_json = excluded.metadata_json
        -- The batch holds all steps of a job: an unchanged one must not leave a dead row.
        where (s.status, s.attempt, s.started_at, s.finished_at, s.completed, s.metadata_json::text)
            is distinct from
            (excluded.status, excluded.attempt, excluded.started_at, excluded.finished_at, excluded.completed,
                excluded.metadata_json::text)
    )
    insert into %1$I.artifacts as a
    select r.* from json_populate_recordset(null::%1$I.artifacts, artifacts) r join applied using (job_id)
    -- An image is written once, but erasure and a retry of a lost image change its file.
    on conflict (job_id, step_id, item_index) do update set bytes = excluded.bytes, sha256 = excluded.sha256
        where a.sha256 <> excluded.sha256;
end $body$;
$writer$, target);
    end loop;
end $$;

-- Writes the projector's batch in one commit: views of jobs, steps and artifacts, and the checkpoint moves.
--   target         the schema: readmodel or readmodel_shadow, also the name of its subscription
--   views_version  of the views; nothing is written to a generation of later views, nor to a shadow of any other
--   loaded_of      the build whose rows the views were folded on, null if there were none; nothing is written if another
--                  build has replaced it
-- Skips partitions whose checkpoint another process has moved. Answers the partitions that were written.
create or replace function projector.project(
    target text, views_version integer, loaded_of uuid, jobs json, steps json, artifacts json, moves json
) returns setof smallint
language plpgsql as $$
declare
    parts smallint;
    held  smallint[];
    built record;
begin
    -- It runs with its owner's rights: only in these schemas.
    if target not in ('readmodel', 'readmodel_shadow') then
        raise exception 'there is no read model %', target using errcode = 'DF002';
    end if;
    if exists (select from eventstore.subscriptions where subscription = target and paused_at is not null) then
        return;
    end if;
    select partitions into strict parts from eventstore.log;
    -- While a checkpoint is locked its generation can't be swapped: a swap locks all checkpoints.
    held := array(select eventstore.hold_checkpoints(moves));
    if cardinality(held) = 0 then
        return;
    end if;
    if target = 'readmodel' then
        select version, build into built from readmodel.generation;
    else
        select version, build into built from readmodel_shadow.generation;
    end if;
    if built.version > views_version or built.version < views_version and target = 'readmodel_shadow'
        or built.build <> loaded_of
    then
        return;
    end if;
    if target = 'readmodel' then
        perform projector.write_readmodel(jobs, steps, artifacts, parts, held);
    else
        perform projector.write_readmodel_shadow(jobs, steps, artifacts, parts, held);
    end if;
    perform eventstore.move_checkpoints((
        select json_agg(m)
        from json_to_recordset(moves) as m (subscription text, partition smallint, "from" bigint, "to" bigint)
        where m.partition = any (held)));
    return query select unnest(held);
end $$;

-- A rebuild under way, or a rollback:
--
--   fill     jobs, chunk by chunk, each in its own transaction, from the events up to the heads at the beginning
--   index    create the indexes that the live tables have
--   follow   a subscription projects the events after those heads into the shadow
--   swap     when it no longer lags: rename the schemas in one short transaction
--
-- The state of each phase is stored here: after a crash any process continues, and several processes can fill chunks.
create table projector.rebuild (
    singleton  boolean     primary key default true check (singleton),
    generation integer     not null,  -- the one being built
    version    integer     not null,  -- of the views
    started_at timestamptz not null default clock_timestamp(),
    heads      bigint[]    not null,  -- per partition: filled up to here, followed from here
    follows    boolean     not null default false,
    rollback   boolean     not null default false
);

create table projector.chunks (
    chunk  integer primary key,
    after  uuid    not null,  -- the jobs after this id …
    upto   uuid    not null,  -- … up to this one
    events bigint             -- of the chunk; null until it is filled
);

-- Serialises the phases of rebuilds until the end of the transaction. The key is 'drfb' as an integer.
create or replace function projector.lock_rebuild() returns void
language sql as $$
    select pg_advisory_xact_lock(1685218914)
$$;

-- Begins a rebuild for views of a version, or continues one of the same version. outdated: only if the live generation has
-- earlier views. Answers the number of the new generation, or the reason why there is none.
create or replace function projector.begin_rebuild(
    views_version integer, jobs_per_chunk integer, outdated boolean, out fresh integer, out reason text
)
language plpgsql as $$
declare
    kept    text;
    serving integer;
begin
    perform projector.lock_rebuild();
    select number + 1, version into fresh, serving from readmodel.generation;
    if serving > views_version or exists (select from projector.rebuild where version > views_version) then
        reason := 'the read model is of a later release''s views: run that release';
    elsif outdated and serving = views_version then
        reason := 'the read model is of this release''s views';
    end if;
    if reason is not null then
        return;
    end if;
    if to_regclass('readmodel_before.generation') is not null then
        execute 'select greatest($1, number + 1) from readmodel_before.generation' into fresh using fresh;
    end if;
    if exists (select from projector.rebuild where version = views_version and not rollback) then
        select generation into fresh from projector.rebuild;
        return;
    end if;
    perform projector.abort_rebuild();

    create schema readmodel_shadow;
    for kept in
        select relname from pg_class where relnamespace = 'readmodel'::regnamespace and relkind = 'r' order by relname
    loop
        execute format(
            'create table readmodel_shadow.%1$I (like readmodel.%1$I including all excluding indexes)', kept);
    end loop;
    insert into readmodel_shadow.generation (number, version) values (fresh, views_version);
    if exists (select from pg_roles where rolname = 'dreamforge_service') then
        grant usage on schema readmodel_shadow to dreamforge_service;
        -- Until the swap, since chunks are filled by COPY.
        grant select on all tables in schema readmodel_shadow to dreamforge_service;
        grant insert on readmodel_shadow.jobs, readmodel_shadow.steps, readmodel_shadow.artifacts
            to dreamforge_service;
    end if;

    -- The heads before the chunks: events after the heads are not filled, whichever chunk their job is in.
    insert into projector.rebuild (generation, version, heads) select fresh, views_version, array(
        select coalesce((
            select position from eventstore.events e where e.partition = p order by position desc limit 1), 0)
        from generate_series(0, partitions - 1) as p order by p)
    from eventstore.log;
    insert into projector.chunks (chunk, after, upto)
    select n, lag(upto, 1, '00000000-0000-0000-0000-000000000000') over (order by n), upto
    from (
        select row_number() over (order by upto) as n, upto from (
            select stream_id as upto from (
                select stream_id, row_number() over (order by stream_id) as n
                from eventstore.events where version = 1 and category = 'job'
            ) as jobs
            where n % jobs_per_chunk = 0
            union all
            select 'ffffffff-ffff-ffff-ffff-ffffffffffff'
        ) as bounds
    ) as numbered;
end $$;

-- A chunk that no process fills, locked until the end of the transaction that fills it; none if none is left, or if the
-- rebuild is for views of another version.
create or replace function projector.take_chunk(views_version integer) returns setof projector.chunks
language sql as $$
    select * from projector.chunks
    where events is null and exists (select from projector.rebuild where version = views_version)
    order by chunk limit 1 for update skip locked
$$;

-- Records that a chunk is filled, in the transaction that filled it.
create or replace function projector.finish_chunk(filled integer, of_events bigint) returns void
language sql as $$
    update projector.chunks set events = of_events where chunk = filled
$$;

-- Creates one missing index of the shadow, as the live tables have it. Answers its name, or null if none is missing.
create or replace function projector.build_index() returns text
language plpgsql as $$
declare
    missing record;
begin
    perform projector.lock_rebuild();
    if not exists (select from projector.rebuild) or exists (select from projector.chunks where events is null) then
        return null;
    end if;
    select * into missing from (
        select c.conname as name, format('alter table readmodel_shadow.%I add constraint %I %s',
            r.relname, c.conname, pg_get_constraintdef(c.oid)) as statement
        from pg_constraint c join pg_class r on r.oid = c.conrelid
        where c.connamespace = 'readmodel'::regnamespace and c.contype in ('p', 'u')
        union all
        select i.relname, replace(pg_get_indexdef(i.oid), ' ON readmodel.', ' ON readmodel_shadow.')
        from pg_class i
        where i.relnamespace = 'readmodel'::regnamespace and i.relkind = 'i'
            and not exists (select from pg_constraint c where c.conindid = i.oid)
    ) as live
    where to_regclass(format('readmodel_shadow.%I', live.name)) is null
    order by name limit 1;
    if found then
        execute missing.statement;
    end if;
    return missing.name;
end $$;

-- Starts the subscription readmodel_shadow, once the shadow is filled and indexed.
create or replace function projector.follow() returns void
language plpgsql as $$
declare
    kept  text;
    stood bigint[];
begin
    perform projector.lock_rebuild();
    while projector.build_index() is not null loop
    end loop;
    update projector.rebuild set follows = true
    where not follows and not exists (select from projector.chunks where events is null)
    returning heads into stood;
    if not found then
        return;
    end if;
    for kept in
        select relname from pg_class where relnamespace = 'readmodel_shadow'::regnamespace and relkind = 'r'
    loop
        execute format('analyze readmodel_shadow.%I', kept);
    end loop;
    perform projector.stand('readmodel_shadow', stood);
end $$;

-- Sets the checkpoints of a subscription, which is created if it does not exist.
create or replace function projector.stand(name text, positions bigint[]) returns void
language sql as $$
    insert into eventstore.subscriptions (subscription) values (name) on conflict do nothing;
    delete from eventstore.checkpoints where subscription = name;
    insert into eventstore.checkpoints (subscription, partition, position)
    select name, p, coalesce(positions[p + 1], 0) from eventstore.log, generate_series(0, partitions - 1) as p
$$;

-- The checkpoints of a subscription, by partition.
create or replace function projector.positions(name text) returns bigint[]
language sql as $$
    select array(select position from eventstore.standings where subscription = name order by partition)
$$;

-- Swaps the shadow with the live read model.
--   max_lag  seconds that the oldest event the shadow lacks may have waited
--   level    only if the shadow has every event that the live read model has
-- Answers the lag in seconds, or null if the caller must try again: the shadow lags, or a lock was not free.
create or replace function projector.swap(max_lag double precision, level boolean) returns double precision
language plpgsql as $$
declare
    held integer;
    lag  double precision;
begin
    perform projector.lock_rebuild();
    if not exists (select from projector.rebuild where follows) then
        return null;
    end if;
    -- Other transactions queue behind a lock request.
    perform set_config('lock_timeout', '200ms', true);

    -- Checkpoints first, in the order of hold_checkpoints: then no batch is in progress on either side. A checkpoint that
    -- moved while this waited is not among the locked rows.
    select count(*) into held from (
        select from eventstore.checkpoints where subscription in ('readmodel', 'readmodel_shadow')
        order by subscription, partition, position for update
    ) as locked;
    if held <> (
        select count(*) from eventstore.standings where subscription in ('readmodel', 'readmodel_shadow')
    ) then
        return null;
    end if;
    select coalesce(max(extract(epoch from clock_timestamp() - e.recorded_at)), 0) into lag
    from eventstore.standings s
    join eventstore.events e on e.partition = s.partition and e.position = s.position + 1
    where s.subscription = 'readmodel_shadow';
    if lag > max_lag or level and exists (
        select from unnest(projector.positions('readmodel'), projector.positions('readmodel_shadow')) as p (old, fresh)
        where old > fresh)
    then
        return null;
    end if;

    -- No reader while the names change: a statement would read tables of both generations.
    lock table readmodel.artifacts, readmodel.generation, readmodel.jobs, readmodel.steps in access exclusive mode;
    perform projector.forget_behind('readmodel');
    update readmodel.generation set stood = projector.positions('readmodel');
    update readmodel_shadow.generation set stood = null;
    if exists (select from pg_roles where rolname = 'dreamforge_service') then
        revoke insert on readmodel_shadow.jobs, readmodel_shadow.steps, readmodel_shadow.artifacts
            from dreamforge_service;
    end if;
    perform projector.stand('readmodel', projector.positions('readmodel_shadow'));
    perform projector.forget_rebuild();
    drop schema if exists readmodel_before cascade;
    alter schema readmodel rename to readmodel_before;
    alter schema readmodel_shadow rename to readmodel;
    return lag;
exception
    when lock_not_available or deadlock_detected then
        return null;
end $$;

-- Begins or continues a rollback to the previous generation: the projector catches it up from its last position, and it
-- is swapped in like a rebuilt one. Answers its number, or the reason why it can't.
create or replace function projector.begin_rollback(views_version integer, out generation integer, out reason text)
language plpgsql as $$
declare
    before record;
begin
    perform projector.lock_rebuild();
    select r.generation into generation from projector.rebuild r where r.rollback and r.version = views_version;
    if found then
        return;
    end if;
    if exists (select from projector.rebuild) then
        reason := 'a rebuild is under way; let it end, or abort it';
        return;
    end if;
    if to_regclass('readmodel_before.generation') is null then
        reason := 'there is no read model of before: none has been rebuilt yet';
        return;
    end if;
    execute 'select * from readmodel_before.generation' into before;
    if before.version <> views_version then
        reason := format('generation %s was built from views of version %s, this release has version %s: run the '
            'release that built it', before.number, before.version, views_version);
        return;
    end if;
    alter schema readmodel_before rename to readmodel_shadow;
    insert into projector.rebuild (generation, version, heads, follows, rollback)
    values (before.number, views_version, before.stood, true, true);
    perform projector.stand('readmodel_shadow', before.stood);
    generation := before.number;
end $$;

-- Aborts a rebuild and drops the shadow; a generation that was being rolled back to becomes readmodel_before again.
-- Answers whether there was one.
create or replace function projector.abort_rebuild() returns boolean
language plpgsql as $$
begin
    perform projector.lock_rebuild();
    if not exists (select from projector.rebuild) then
        return false;
    end if;
    -- Waits for processes that fill a chunk or write a batch.
    perform from projector.chunks order by chunk for update;
    perform from eventstore.checkpoints where subscription = 'readmodel_shadow'
    order by subscription, partition, position for update;
    if (select rollback from projector.rebuild) then
        perform projector.forget_behind('readmodel_shadow');
        update readmodel_shadow.generation set stood = projector.positions('readmodel_shadow');
        alter schema readmodel_shadow rename to readmodel_before;
    else
        drop schema readmodel_shadow cascade;
    end if;
    perform projector.forget_rebuild();
    return true;
end $$;

-- Removes the text of jobs that were erased after the checkpoint of a generation that is about to stop following.
create or replace function projector.forget_behind(generation text) returns void
language plpgsql as $$
begin
    execute format('update %I.jobs set metadata = ''{}'', '
        'params = (params::jsonb || ''{"prompt": null, "negative_prompt": null}'')::json where job_id in ('
        'select e.stream_id from eventstore.standings s '
        'join eventstore.events e on e.partition = s.partition and e.position > s.position '
        'where s.subscription = $1 and e.code = ''job.erased'')', generation) using generation;
end $$;

create or replace function projector.forget_rebuild() returns void
language sql as $$
    delete from projector.chunks;
    delete from projector.rebuild;
    delete from eventstore.checkpoints where subscription = 'readmodel_shadow';
    delete from eventstore.subscriptions where subscription = 'readmodel_shadow'
$$;

-- Removes a job's personal text from every generation of the read model, readmodel_before too. A projector that writes
-- text which it read earlier removes it again when it handles job.erased.
create or replace function projector.forget(job uuid) returns void
language plpgsql as $$
declare
    kept text;
begin
    perform projector.lock_rebuild();
    for kept in
        select nspname from pg_namespace where nspname in ('readmodel', 'readmodel_before', 'readmodel_shadow')
    loop
        execute format('update %I.jobs set metadata = ''{}'', '
            'params = (params::jsonb || ''{"prompt": null, "negative_prompt": null}'')::json where job_id = $1', kept)
            using job;
    end loop;
end $$;

-- Pauses a projection, or resumes it. Returns whether there is one of this name.
create or replace function projector.pause(projection text, pausing boolean) returns boolean
language sql as $$
    with changed as (
        update eventstore.subscriptions
        set paused_at = case when pausing then coalesce(paused_at, clock_timestamp()) end
        where subscription = projection returning 1
    )
    select exists (select from changed)
$$;

---------------------------------------------------------------------------------------------------
-- Rights
---------------------------------------------------------------------------------------------------

create or replace function projector.grant_rights() returns void
language plpgsql as $$
begin
    perform projector.define_writers();
    revoke execute on all functions in schema projector from public;
    perform eventstore.grant_functions(array[
        'projector.project(text, integer, uuid, json, json, json, json)',
        'projector.begin_rebuild(integer, integer, boolean)',
        'projector.take_chunk(integer)',
        'projector.finish_chunk(integer, bigint)',
        'projector.build_index()',
        'projector.follow()',
        'projector.swap(double precision, boolean)',
        'projector.begin_rollback(integer)',
        'projector.abort_rebuild()',
        'projector.pause(text, boolean)'
    ]);
    if not exists (select from pg_roles where rolname = 'dreamforge_service') then
        return;
    end if;
    grant usage on schema projector, readmodel to dreamforge_service;
    grant select on all tables in schema projector, readmodel to dreamforge_service;
end $$;

select eventstore.grant_rights();  -- on the queues above
select projector.grant_rights();
