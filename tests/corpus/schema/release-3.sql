-- Dream Forge: the whole database of this release.
--
-- Four schemas, in the order in which facts flow through them:
--
--   eventstore   the log, the only truth; subscriptions' checkpoints; our own statements on the outbox
--   pgmq         the outbox's queues, created by pgmq (installed before this file is run)
--   projector    how the read model is kept, and built anew aside
--   readmodel    the read model: tables that can be thrown away and rebuilt from the log. A rebuild makes
--                readmodel_shadow beside it and swaps the two by name; the former stays as readmodel_before
--
-- `dreamforge schema install` runs this file in an empty database, in one transaction, under an advisory lock; one of an
-- earlier release it lifts by the numbered files in eventstore/migrations, each of which changes tables and views, and
-- then by this file's functions and rights, which replace those that are there.
-- The number of partitions is taken from the setting dreamforge.partitions (8 where it is not set).

create schema eventstore;
create schema projector;
create schema readmodel;

---------------------------------------------------------------------------------------------------
-- The log
---------------------------------------------------------------------------------------------------

-- One row: the identity of this log. A cursor or an export names it, so that it is never read
-- against another log; the number of partitions is fixed for the log's life.
create table eventstore.log (
    singleton   boolean     primary key default true check (singleton),
    log_id      uuid        not null default gen_random_uuid(),
    -- A power of two, so that the partition is the low bits of the stream id's last byte.
    partitions  smallint    not null check (partitions between 1 and 256 and partitions & (partitions - 1) = 0),
    created_at  timestamptz not null default clock_timestamp()
);

insert into eventstore.log (partitions)
values (coalesce(nullif(current_setting('dreamforge.partitions', true), ''), '8')::smallint);

-- The release of this schema; migrations add rows. `serves`: the earliest release of the code that may still run on it,
-- so that a fleet can be upgraded one process at a time, the schema first.
create table eventstore.releases (
    release      integer     primary key,
    installed_at timestamptz not null default clock_timestamp(),
    serves       integer     not null default 1
);

insert into eventstore.releases (release, serves) values (3, 2);

-- What all servers must know and nobody else may: the key of the stream tokens.
create table eventstore.secrets (
    name   text  primary key,
    secret bytea not null default uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())
);

insert into eventstore.secrets (name) values ('stream_token');

create table eventstore.events (
    partition      smallint    not null,
    position       bigint      not null,  -- 1, 2, 3 … within the partition, without gaps
    stream_id      uuid        not null,
    version        integer     not null,  -- 1, 2, 3 … within the stream, without gaps
    category       text        not null,
    tenant         text        not null,
    event_id       uuid        not null,
    code           text        not null,
    schema_version smallint    not null,
    ts             timestamptz not null,  -- the appender's clock
    recorded_at    timestamptz not null,  -- the database's clock, never running backwards in a partition
    data           json        not null,  -- json, not jsonb: the text is hashed, and json keeps it as it came
    meta           json        not null,
    private        text,                  -- personal text, outside the hash, so that it can be erased
    private_salt   bytea,
    private_digest bytea,                 -- sha256(private_salt ‖ private), inside the hash; stays when the text goes
    hash           bytea       not null,
    chain          bytea       not null,
    primary key (partition, position),    -- subscribers read one partition by position
    unique (stream_id, version)           -- histories read one stream by version; also the last line of defence
);

-- Statistics hold samples of what they are of: no copy of what is to be erased.
alter table eventstore.events alter column private set statistics 0;

-- The few streams that are no job's (models), read whole: without it every read of them would scan all jobs' events.
-- Partial, so that an append to a job pays nothing for it.
create index events_beside_jobs on eventstore.events (category, stream_id, version) where category <> 'job';

-- Which jobs are set aside: few among all events, and looked for by /readyz, metrics and operators.
create index job_quarantines on eventstore.events (stream_id, version) where code in ('job.quarantined', 'job.released');

create or replace function eventstore.refuse_change() returns trigger
language plpgsql as $$
begin
    -- Erasure alone may change an event, and only by taking the private text and its salt away.
    -- *= compares the stored image, since json has no equality.
    if tg_op = 'UPDATE' and new.private is null and new.private_salt is null then
        old.private := null;
        old.private_salt := null;
        if old *= new then
            return new;
        end if;
    end if;
    raise exception 'events are append-only: % refused', tg_op using errcode = 'DF001';
end $$;

create trigger append_only_rows before update or delete on eventstore.events
    for each row execute function eventstore.refuse_change();
create trigger append_only_table before truncate on eventstore.events
    for each statement execute function eventstore.refuse_change();
-- "always": session_replication_role = replica does not slip past.
alter table eventstore.events enable always trigger append_only_rows;
alter table eventstore.events enable always trigger append_only_table;

-- Takes the private text and salts of a stream away; its hashes still verify. Returns how many events changed.
create or replace function eventstore.erase(stream uuid) returns integer
language sql as $$
    with erased as (
        update eventstore.events set private = null, private_salt = null
        where stream_id = stream and (private is not null or private_salt is not null)
        returning 1
    )
    select count(*)::integer from erased
$$;

create or replace function eventstore.partition_of(stream uuid, partitions smallint) returns smallint
language sql immutable strict parallel safe as $$
    select (get_byte(uuid_send(stream), 15) & (partitions - 1))::smallint
$$;

-- Microseconds since 1970, eight bytes, most significant first: a timestamp as it is hashed.
create or replace function eventstore.micros(moment timestamptz) returns bytea
language sql immutable parallel safe as $$
    select int8send((extract(epoch from moment) * 1000000)::bigint)
$$;

-- The link of an event in its stream's chain: sha256(hash of the event before ‖ envelope). The envelope names every
-- field of the event: name and value, each behind its length in four bytes (-1: no value), so that no two envelopes can
-- read alike. The names and fixed lengths are spelt out as literals: ten times faster than a helper function.
create or replace function eventstore.event_hash(previous bytea, e eventstore.events) returns bytea
language plpgsql immutable parallel safe as $$
declare
    category bytea := convert_to(e.category, 'UTF8');
    tenant   bytea := convert_to(e.tenant, 'UTF8');
    code     bytea := convert_to(e.code, 'UTF8');
    data     bytea := convert_to(e.data::text, 'UTF8');
    meta     bytea := convert_to(e.meta::text, 'UTF8');
begin
    return sha256(previous
        || '\000\000\000\011stream_id\000\000\000\020'::bytea || uuid_send(e.stream_id)
        || '\000\000\000\007version\000\000\000\004'::bytea || int4send(e.version)
        || '\000\000\000\010category'::bytea || int4send(octet_length(category)) || category
        || '\000\000\000\006tenant'::bytea || int4send(octet_length(tenant)) || tenant
        || '\000\000\000\010event_id\000\000\000\020'::bytea || uuid_send(e.event_id)
        || '\000\000\000\004code'::bytea || int4send(octet_length(code)) || code
        || '\000\000\000\016schema_version\000\000\000\002'::bytea || int2send(e.schema_version)
        || '\000\000\000\002ts\000\000\000\010'::bytea || eventstore.micros(e.ts)
        || '\000\000\000\004data'::bytea || int4send(octet_length(data)) || data
        || '\000\000\000\004meta'::bytea || int4send(octet_length(meta)) || meta
        || '\000\000\000\016private_digest'::bytea
        || coalesce(int4send(octet_length(e.private_digest)) || e.private_digest, int4send(-1)));
end $$;

-- The link of an event in its partition's chain: sha256(chain of the event before ‖ position ‖ recorded_at ‖ hash).
create or replace function eventstore.event_chain(previous bytea, "position" bigint, recorded_at timestamptz, hash bytea)
returns bytea
language sql immutable parallel safe as $$
    select sha256(previous || int8send("position") || eventstore.micros(recorded_at) || hash)
$$;

-- What the first event of a partition is chained to: binds the chain to this log and partition.
create or replace function eventstore.chain_genesis(log_id uuid, partition smallint) returns bytea
language sql immutable parallel safe as $$
    select sha256(convert_to('dreamforge', 'UTF8') || uuid_send(log_id) || int2send(partition))
$$;

---------------------------------------------------------------------------------------------------
-- Subscriptions
---------------------------------------------------------------------------------------------------

create table eventstore.subscriptions (
    subscription text        primary key,
    created_at   timestamptz not null default clock_timestamp(),
    paused_at    timestamptz  -- a paused projection handles nothing until it is resumed
);

-- How far a subscription has come in each partition: one row for each, which a move replaces by another with a higher
-- position. Not by an update: while anyone holds an old snapshot no version of a row can be removed, and a lookup wades
-- through all of them (after 50,000 moves, a few minutes' worth, it took fifteen milliseconds). By this key the newest
-- row lies at the end, and every dead one before it.
create table eventstore.checkpoints (
    subscription text        not null,
    partition    smallint    not null,
    position     bigint      not null default 0,
    moved_at     timestamptz not null default clock_timestamp(),
    primary key (subscription, partition, position)
);

-- Where each subscription stands, read from that end.
create view eventstore.standings as
    select s.subscription, p::smallint as partition, c.position, c.moved_at
    from eventstore.subscriptions s
    cross join eventstore.log
    cross join generate_series(0, partitions - 1) as p
    cross join lateral (
        select c.position, c.moved_at from eventstore.checkpoints c
        where c.subscription = s.subscription and c.partition = p order by c.position desc limit 1
    ) c;

create or replace function eventstore.subscribe(subscription text) returns void
language sql as $$
    -- Whoever adds the subscription adds its checkpoints, and nobody ever again: one that came back would be a second.
    with fresh as (
        insert into eventstore.subscriptions (subscription) values (subscribe.subscription)
        on conflict do nothing returning *
    )
    insert into eventstore.checkpoints (subscription, partition)
    select fresh.subscription, p from fresh, eventstore.log, generate_series(0, partitions - 1) as p
$$;

-- By the key, always, here and in the outbox: with an old snapshot held open the tables are large and nearly empty, and
-- the planner takes them to be small. It must neither read them whole, nor begin a join with them and walk through an
-- index full of dead rows: hence one row after the other, by its whole key, or `= any`, and no joins.
--
-- Compare-and-swap of checkpoints; locks in primary-key order. Answers the partitions whose checkpoint stands
-- where its mover believes, locked until commit: a mover that finds itself missing has lost the race.
create or replace function eventstore.hold_checkpoints(moves json) returns setof smallint
language plpgsql set enable_seqscan = off set enable_bitmapscan = off as $$
declare
    m record;
begin
    for m in
        select * from json_to_recordset(moves) as x (subscription text, partition smallint, "from" bigint)
        order by subscription, partition
    loop
        perform from eventstore.checkpoints c
        where c.subscription = m.subscription and c.partition = m.partition and c.position = m."from"
        for update;
        if found then
            return next m.partition;
        end if;
    end loop;
end $$;

-- Moves checkpoints that are held.
create or replace function eventstore.move_checkpoints(moves json) returns void
language plpgsql set enable_seqscan = off set enable_bitmapscan = off as $$
declare
    m record;
begin
    for m in
        select * from json_to_recordset(moves) as x (subscription text, partition smallint, "from" bigint, "to" bigint)
        where "to" > "from"
    loop
        delete from eventstore.checkpoints c
        where c.subscription = m.subscription and c.partition = m.partition and c.position = m."from";
        if found then
            insert into eventstore.checkpoints (subscription, partition, position)
            values (m.subscription, m.partition, m."to");
        end if;
    end loop;
end $$;

-- Jobs whose history some process could not read or fold, until the orchestrator has set them aside: it alone does.
create table eventstore.rejections (
    stream_id   uuid        primary key,
    reader      text        not null,  -- whose code failed
    version     integer     not null,  -- the event that it failed at
    reason      text        not null,  -- without personal text
    reported_at timestamptz not null default clock_timestamp()
);

-- Not by a process of an earlier release than the schema's: what it can't read, a later one may.
create or replace function eventstore.report_rejection(
    stream uuid, reader text, version integer, reason text, by_release integer
) returns void
language sql as $$
    insert into eventstore.rejections (stream_id, reader, version, reason)
    select stream, reader, version, reason
    where by_release = (select max(release) from eventstore.releases)
    on conflict (stream_id) do nothing
$$;

create or replace function eventstore.forget_rejection(stream uuid) returns void
language sql as $$
    delete from eventstore.rejections where stream_id = stream
$$;

---------------------------------------------------------------------------------------------------
-- The one way in
---------------------------------------------------------------------------------------------------

-- Makes the transaction wait at its commit until all that was committed before is on the synchronous standby, where the
-- server must have one. By a record of its own in the write-ahead log: a transaction that writes none waits for nothing.
create or replace function eventstore.confirm_replicated() returns void
language plpgsql as $$
begin
    if current_setting('synchronous_standby_names') <> '' then
        perform pg_logical_emit_message(true, 'dreamforge', '');
    end if;
end $$;

-- Raises unless a commit would succeed now: on a server that takes writes, with room on its disk (what goes beyond 64 kB of
-- memory is written to a file), and with its synchronous standby there, for which the transaction waits at its end.
create or replace function eventstore.probe_writes() returns void
language plpgsql set work_mem = '64kB' set temp_tablespaces = '' as $$
begin
    if current_setting('transaction_read_only')::boolean then
        raise read_only_sql_transaction using message = 'its transactions are read-only';
    end if;
    perform from generate_series(1, 5000);
    perform pg_logical_emit_message(true, 'dreamforge', '');
end $$;

-- How a stream takes an append that expects it at a version: the verdict (see `commit`), and its newest version and hash.
create or replace function eventstore.judge(
    stream uuid, expected integer, events json, out verdict text, out version integer, out hash bytea
)
language plpgsql as $$
begin
    select ev.version, ev.hash into version, hash
    from eventstore.events ev where ev.stream_id = stream order by ev.version desc limit 1;
    version := coalesce(version, 0);
    hash := coalesce(hash, '\x'::bytea);
    verdict := case
        when version = expected then 'accepted'
        when array(
            select ev.event_id from eventstore.events ev
            where ev.stream_id = stream and ev.version > expected
            order by ev.version limit json_array_length(events)
        ) = array(
            select (x.value ->> 'event_id')::uuid from json_array_elements(events) with ordinality as x
            order by x.ordinality
        ) then 'mine'
        else 'conflict'
    end;
end $$;

-- The commands' part of `commit`: sends, acknowledgements and deferrals, but for those of skipped streams and
-- spoilt partitions.
create or replace function eventstore.dispatch(
    sends json, acks json, defers json, skipped uuid[], spoilt smallint[], partitions smallint
) returns void
language plpgsql set enable_seqscan = off set enable_bitmapscan = off
as $$
declare
    a   record;
    own bigint[];
begin
    for a in
        select x.queue, x.delay, array_agg(x.message order by x.n) as messages
        from rows from (
            json_to_recordset(sends) as (stream uuid, queue text, message jsonb, delay double precision)
        ) with ordinality as x (stream, queue, message, delay, n)
        where x.stream <> all (skipped)
            and eventstore.partition_of(x.stream, partitions) <> all (spoilt)
        group by x.queue, x.delay
    loop
        perform pgmq.send_batch(a.queue, a.messages, clock_timestamp() + make_interval(secs => coalesce(a.delay, 0)));
    end loop;

    -- All rows of a queue are locked first, in msg_id order as everywhere, so that a heartbeat and a commit cannot
    -- deadlock: the groups below come in the order of their delays.
    for a in
        select x.queue, array_agg(x.msg_id) as ids, array_agg(x.read_ct) as tokens
        from (
            select queue, msg_id, read_ct
            from json_to_recordset(acks) as k (queue text, msg_id bigint, read_ct integer)
            union all
            select queue, msg_id, read_ct
            from json_to_recordset(defers) as d (queue text, msg_id bigint, read_ct integer)
        ) as x
        group by x.queue order by x.queue
    loop
        perform eventstore.owned(a.queue, a.ids, a.tokens);
    end loop;

    for a in
        select x.queue, x.delay, x.ack, array_agg(x.msg_id) as ids, array_agg(x.read_ct) as tokens
        from (
            select stream, queue, msg_id, read_ct, null::double precision as delay, true as ack
            from json_to_recordset(acks) as k (stream uuid, queue text, msg_id bigint, read_ct integer)
            union all
            select stream, queue, msg_id, read_ct, delay, false
            from json_to_recordset(defers) as d (
                stream uuid, queue text, msg_id bigint, read_ct integer, delay double precision)
        ) as x
        where x.stream <> all (skipped)
            and eventstore.partition_of(x.stream, partitions) <> all (spoilt)
        group by x.queue, x.delay, x.ack
        order by x.queue, x.ack, x.delay
    loop
        own := array(select eventstore.owned(a.queue, a.ids, a.tokens));
        if a.ack then
            execute format('delete from pgmq.%I where msg_id = any ($1)', pgmq.format_table_name(a.queue, 'q'))
                using own;
        else
            execute format(
                -- A new token: a heartbeat of the old owner that is still under way must not hide it again.
                'update pgmq.%I set vt = clock_timestamp() + make_interval(secs => $2), read_ct = read_ct + 1 '
                'where msg_id = any ($1)',
                pgmq.format_table_name(a.queue, 'q')) using own, a.delay;
        end if;
    end loop;
end $$;

-- Appends events, sends, acknowledges and defers commands, and moves checkpoints: one transition (or a batch of
-- them), one statement, one commit.
--
--   appends  [{stream, category, tenant, expected, events: [{event_id, code, schema_version, ts, data, meta, private}]}]
--            data, meta: JSON texts, kept to the letter; expected: the version that the stream must be at
--   sends    [{stream, queue, message, delay}]      delay in seconds
--   acks     [{stream, queue, msg_id, read_ct}]     read_ct: the token of the message's owner
--   defers   [{stream, queue, msg_id, read_ct, delay}]
--   moves    [{subscription, partition, from, to}]
--
-- Answers a row for each append (kind 'append') and each move (kind 'move'), with an outcome:
--
--   accepted  written; version or position is the new head or checkpoint
--   mine      these very events stand there already: an earlier call whose answer was lost
--   conflict  the stream is at another version (given), the checkpoint at another position
--   refused   nothing wrong with it, but something else of its partition was refused (calls with moves only)
--
-- and one row of kind 'contended' where a partition's lock was held by another.
--
-- Without moves each stream is judged alone, and a refused stream's sends, acks and defers are skipped. With moves the
-- partition is the unit: any refusal in it drops its appends, its commands and its move, since a reaction
-- whose checkpoint moved without its writes would be lost.
--
-- A move to the very head of a partition that this call appends to covers the appended events too: a subscriber
-- has no need to hear of its own.
--
-- A call that writes no event waits for the standby like one that does: what it answers about may have been written by
-- an earlier call, whose wait was cut short.
create or replace function eventstore.commit(
    appends json default '[]',
    sends   json default '[]',
    acks    json default '[]',
    defers  json default '[]',
    moves   json default '[]'
) returns table (kind text, stream_id uuid, partition smallint, outcome text, version integer, "position" bigint)
language plpgsql as $$
#variable_conflict use_column
declare
    -- 'drfr': keeps our advisory locks apart from other users' of this database.
    lock_class constant integer := 1685218930;
    the_log    eventstore.log;
    contended  boolean := false;
    subscribed boolean := json_array_length(moves) > 0;
    twice      uuid;
    p          smallint;
    a          record;
    e          record;
    head       record;
    fresh      eventstore.events;
    old_head   bigint[] := '{}';     -- per partition (subscript + 1): the head before this call …
    positions  bigint[] := '{}';     -- … and now, with what the next event is chained to
    chains     bytea[] := '{}';
    clocks     timestamptz[] := '{}';
    spoilt     smallint[] := '{}';   -- partitions of which nothing is written
    held       smallint[] := '{}';   -- partitions whose checkpoint move is sound
    skipped    uuid[] := '{}';       -- streams whose commands are not touched
    moved      json;                 -- the moves that stand, each with its end
    verdicts   text[] := '{}';       -- per append, in the order given; then its stream's version and hash
    versions   integer[] := '{}';
    hashes     bytea[] := '{}';
begin
    -- A later snapshot than the lock is what makes "last + 1" true; other levels keep the transaction's first.
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception 'eventstore.commit needs READ COMMITTED, not %', current_setting('transaction_isolation')
            using errcode = 'DF002';
    end if;
    -- A second call would take partition locks out of order, and hold the first call's all the while.
    if current_setting('eventstore.committed', true) = 'yes' then
        raise exception 'eventstore.commit was called twice in one transaction' using errcode = 'DF002';
    end if;
    perform set_config('eventstore.committed', 'yes', true);

    select stream into twice from json_to_recordset(appends) as x (stream uuid) group by 1 having count(*) > 1 limit 1;
    if found then
        raise exception 'stream % is named twice in one call', twice using errcode = 'DF002';
    end if;

    -- The database's owner makes keys: a process of the service that fell to an intruder must not let others in.
    if not pg_has_role(session_user, current_user, 'member')
        and exists (select from json_to_recordset(appends) as x (category text) where category = 'key')
    then
        raise exception 'keys are made with the login of the database''s owner' using errcode = 'insufficient_privilege';
    end if;

    select * into strict the_log from eventstore.log;

    -- Locks in ascending order, so that no two calls wait for each other; they live to the commit, so that
    -- commit order, visibility order and position order are one.
    for p in
        select distinct eventstore.partition_of(stream, the_log.partitions)
        from json_to_recordset(appends) as x (stream uuid) order by 1
    loop
        if not pg_try_advisory_xact_lock(lock_class, p) then
            contended := true;
            perform pg_advisory_xact_lock(lock_class, p);
        end if;
        -- A statement of its own: its snapshot is taken after the lock was.
        select ev.position, ev.chain, ev.recorded_at into head
        from eventstore.events ev where ev.partition = p order by ev.position desc limit 1;
        positions[p + 1] := coalesce(head.position, 0);
        old_head[p + 1] := positions[p + 1];
        chains[p + 1] := coalesce(head.chain, eventstore.chain_genesis(the_log.log_id, p));
        clocks[p + 1] := coalesce(head.recorded_at, '-infinity');
    end loop;

    if subscribed then
        held := array(select eventstore.hold_checkpoints(moves));
        spoilt := array(
            select m.partition from json_to_recordset(moves) as m (partition smallint)
            where m.partition <> all (held));
    end if;

    -- Judge every append before any is written: with moves, one refusal spoils the partition's others.
    for a in
        select x.stream, eventstore.partition_of(x.stream, the_log.partitions) as partition, j.*
        from json_to_recordset(appends) as x (stream uuid, expected integer, events json),
            eventstore.judge(x.stream, x.expected, x.events) as j
    loop
        verdicts := verdicts || a.verdict;
        versions := versions || a.version;
        hashes := hashes || a.hash;
        if a.verdict <> 'accepted' then
            skipped := skipped || a.stream;
            if subscribed then
                spoilt := spoilt || a.partition;
            end if;
        end if;
    end loop;

    for a in
        select x.stream, x.category, x.tenant, x.events, x.n::integer,
            eventstore.partition_of(x.stream, the_log.partitions) as partition
        from rows from (
            json_to_recordset(appends) as (stream uuid, category text, tenant text, events json)
        ) with ordinality as x (stream, category, tenant, events, n)
    loop
        stream_id := a.stream;
        partition := a.partition;
        outcome := verdicts[a.n];
        version := versions[a.n];
        kind := 'append';
        "position" := null;
        if outcome = 'accepted' and a.partition = any (spoilt) then
            outcome := 'refused';
            skipped := skipped || a.stream;
        elsif outcome = 'accepted' then
            fresh.partition := a.partition;
            fresh.stream_id := a.stream;
            fresh.category := a.category;
            fresh.tenant := a.tenant;
            fresh.version := versions[a.n];
            fresh.hash := hashes[a.n];
            fresh.position := positions[a.partition + 1];
            fresh.chain := chains[a.partition + 1];
            fresh.recorded_at := clocks[a.partition + 1];
            for e in
                select * from json_to_recordset(a.events) as x (
                    event_id uuid, code text, schema_version smallint, ts timestamptz,
                    data text, meta text, private text)
            loop
                fresh.version := fresh.version + 1;
                fresh.position := fresh.position + 1;
                fresh.event_id := e.event_id;
                fresh.code := e.code;
                fresh.schema_version := e.schema_version;
                fresh.ts := e.ts;
                fresh.data := e.data;
                fresh.meta := e.meta;
                fresh.private := e.private;
                fresh.private_salt := null;
                fresh.private_digest := null;
                if e.private is not null then
                    -- The salt keeps a short prompt from being guessed from its digest after erasure.
                    fresh.private_salt := uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid());
                    fresh.private_digest := sha256(fresh.private_salt || convert_to(e.private, 'UTF8'));
                end if;
                fresh.recorded_at := greatest(fresh.recorded_at, clock_timestamp());
                fresh.hash := eventstore.event_hash(fresh.hash, fresh);
                fresh.chain := eventstore.event_chain(fresh.chain, fresh.position, fresh.recorded_at, fresh.hash);
                insert into eventstore.events select fresh.*;
            end loop;
            version := fresh.version;
            "position" := fresh.position;
            positions[a.partition + 1] := fresh.position;
            chains[a.partition + 1] := fresh.chain;
            clocks[a.partition + 1] := fresh.recorded_at;
        end if;
        return next;
    end loop;

    perform eventstore.dispatch(sends, acks, defers, skipped, spoilt, the_log.partitions);

    kind := 'move';
    stream_id := null;
    outcome := 'accepted';
    version := null;
    moved := (
        select json_agg(json_build_object('subscription', subscription, 'partition', m.partition, 'from', m."from",
            'to', case when m."to" = old_head[m.partition + 1] then positions[m.partition + 1] else m."to" end))
        from json_to_recordset(moves) as m (subscription text, partition smallint, "from" bigint, "to" bigint)
        where m.partition = any (held) and m.partition <> all (spoilt));
    perform eventstore.move_checkpoints(moved);
    for a in
        select * from json_to_recordset(moved) as m (partition smallint, "to" bigint)
    loop
        partition := a.partition;
        "position" := a."to";
        return next;
    end loop;
    for a in
        select c.partition, c.position,
            case when m.partition = any (held) then 'refused' else 'conflict' end as outcome
        from json_to_recordset(moves) as m (subscription text, partition smallint)
        join eventstore.standings c using (subscription, partition)
        where m.partition = any (spoilt)
    loop
        partition := a.partition;
        "position" := a.position;
        outcome := a.outcome;
        return next;
    end loop;

    if positions = old_head and moved is null then
        perform eventstore.confirm_replicated();
    end if;

    if contended then
        kind := 'contended';
        partition := null;
        "position" := null;
        outcome := null;
        return next;
    end if;
end $$;

---------------------------------------------------------------------------------------------------
-- The outbox: pgmq's queues, our own claims
---------------------------------------------------------------------------------------------------

-- One queue per kind of step, so that pools for GPU and CPU scale apart.
select pgmq.create('generate');
select pgmq.create('upscale');

-- Those of the named messages that still bear their owner's token, locked in msg_id order. pgmq's own set_vt and
-- delete know no owner: one who lost a lease would hide or free another's message.
create or replace function eventstore.owned(queue text, ids bigint[], tokens integer[]) returns table (msg_id bigint)
language plpgsql set enable_seqscan = off set enable_bitmapscan = off as $$
begin
    return query execute format(
        'select q.msg_id from pgmq.%I q join unnest($1, $2) as mine (msg_id, read_ct) using (msg_id, read_ct) '
        'where q.msg_id = any ($1) order by q.msg_id for update of q',
        pgmq.format_table_name(queue, 'q')) using ids, tokens;
end $$;

-- Claims at most `slots` visible messages, the queues in the order given, the oldest first, and hides them for
-- `visibility` seconds. `floors` (one per queue) lets the scan begin past rows long dead.
create or replace function eventstore.claim(queues text[], floors bigint[], slots integer, visibility double precision)
returns table (queue text, msg_id bigint, read_ct integer, enqueued_at timestamptz, message jsonb)
language plpgsql set enable_seqscan = off set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
    claimed integer;
begin
    -- A claim waits for the disk: after a crash that forgot it the next claim would get the same token, and whoever of
    -- the two is fenced off would throw away the command of the other.
    for i in 1 .. cardinality(queues) loop
        exit when slots <= 0;
        return query execute format(
            'with free as ('
            '    select q.msg_id from pgmq.%1$I q'
            '    where q.msg_id >= $1 and q.vt <= clock_timestamp()'
            '    order by q.msg_id limit $2 for update skip locked'
            ') update pgmq.%1$I q set read_ct = q.read_ct + 1, last_read_at = clock_timestamp(),'
            '    vt = clock_timestamp() + make_interval(secs => $3)'
            ' where q.msg_id = any (array(select free.msg_id from free))'
            ' returning %2$L::text, q.msg_id, q.read_ct, q.enqueued_at, q.message',
            pgmq.format_table_name(queues[i], 'q'), queues[i]) using floors[i], slots, visibility;
        get diagnostics claimed = row_count;
        slots := slots - claimed;
    end loop;
end $$;

-- Hides held messages for `visibility` seconds more; answers those that are still the caller's.
create or replace function eventstore.extend(queues text[], ids bigint[], tokens integer[], visibility double precision)
returns table (queue text, msg_id bigint, read_ct integer)
language plpgsql set enable_seqscan = off set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
    k record;
begin
    -- Losing this in a crash only shows the message sooner, under another token: it need not wait for the disk.
    perform set_config('synchronous_commit', 'off', true);
    for k in
        select x.queue, array_agg(x.id) as ids, array_agg(x.token) as tokens
        from unnest(queues, ids, tokens) as x (queue, id, token) group by x.queue order by x.queue
    loop
        return query execute format(
            'update pgmq.%1$I q set vt = clock_timestamp() + make_interval(secs => $2) where q.msg_id = any ($1) '
            'returning %2$L::text, q.msg_id, q.read_ct',
            pgmq.format_table_name(k.queue, 'q'), k.queue)
            using array(select eventstore.owned(k.queue, k.ids, k.tokens)), visibility;
    end loop;
end $$;

-- The lowest message of each queue: where the next claims may begin. `bases` (one per queue): below it none can be,
-- so that the search need not read the deleted entries.
create or replace function eventstore.floors(queues text[], bases bigint[] default null) returns bigint[]
language plpgsql set enable_seqscan = off set enable_bitmapscan = off as $$
declare
    found_floor bigint;
    floors bigint[] := '{}';
begin
    for i in 1 .. cardinality(queues) loop
        execute format('select min(msg_id) from pgmq.%I where msg_id >= $1', pgmq.format_table_name(queues[i], 'q'))
            into found_floor using coalesce(bases[i], 0);
        floors := floors || coalesce(found_floor, bases[i], 0);
    end loop;
    return floors;
end $$;

-- Puts a held message away that nobody can read, into pgmq's archive: out of the way, and not lost.
create or replace function eventstore.put_aside(queue text, msg_id bigint, read_ct integer) returns void
language sql as $$
    select pgmq.archive(queue, o.msg_id) from eventstore.owned(queue, array[msg_id], array[read_ct]) as o
$$;

-- How many commands each queue holds.
create or replace function eventstore.queue_lengths() returns table (queue text, commands bigint)
language sql as $$
    select 'generate', count(*) from pgmq.q_generate union all select 'upscale', count(*) from pgmq.q_upscale
$$;

-- Throws all commands away. Rows are deleted one by one, since pgmq's own purge truncates, which waits for every reader.
create or replace function eventstore.purge() returns table (queue text, commands bigint)
language sql as $$
    with generate as (delete from pgmq.q_generate returning 1), upscale as (delete from pgmq.q_upscale returning 1)
    select 'generate', count(*) from generate union all select 'upscale', count(*) from upscale
$$;

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
    version       integer     not null,  -- of the stream: what comes after is folded over the row on every read
    count         integer     not null,
    params        json        not null,
    metadata      json        not null,
    error_code    text,
    error_message text
);

-- The list of jobs, read backwards. None of these columns ever changes, so that a job's row is updated in place.
create index jobs_listed on readmodel.jobs (tenant, created_at, job_id);
-- The list by a status that few jobs have for long; most have succeeded, and are found through the index above.
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
    unique (job_id, ordinal)             -- also the way from a job to its steps
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
    version   integer  not null,  -- of the views that are kept here (projections.views.VERSION)
    build     uuid     not null default gen_random_uuid(),  -- numbers come again after an abort
    stood     bigint[]            -- where the projector stood in each partition when another took this one's place
);

insert into readmodel.generation (number, version) values (1, 1);

---------------------------------------------------------------------------------------------------
-- The projector, and rebuilds
---------------------------------------------------------------------------------------------------

-- Writes the projector's batch: views of jobs, steps and artifacts, and the checkpoint moves they stand for, in one
-- commit. target: the schema written to, readmodel or readmodel_shadow, whose name its subscription bears.
-- views_version: of the views; a generation of later views is left alone, and a shadow of any other. loaded_of: the build
-- whose rows the views were folded on, null where there were none; nothing is written if another has taken its place. Of
-- a partition whose checkpoint another has moved nothing is written. Answers the partitions that were.
create or replace function projector.project(
    target text, views_version integer, loaded_of uuid, jobs json, steps json, artifacts json, moves json
) returns setof smallint
language plpgsql as $$
declare
    parts smallint;
    held  smallint[];
    built record;
begin
    -- It runs with its owner's rights, in the schema that it is told.
    if target not in ('readmodel', 'readmodel_shadow') then
        raise exception 'there is no read model %', target using errcode = 'DF002';
    end if;
    if exists (select from eventstore.subscriptions where subscription = target and paused_at is not null) then
        return;
    end if;
    select partitions into strict parts from eventstore.log;
    -- Whoever holds a checkpoint keeps its generation in its place: a swap locks them all.
    held := array(select eventstore.hold_checkpoints(moves));
    if cardinality(held) = 0 then
        return;
    end if;
    execute format('select version, build from %I.generation', target) into built;
    if built.version > views_version or built.version < views_version and target = 'readmodel_shadow'
        or built.build <> loaded_of
    then
        return;
    end if;

    execute format($statement$
        with applied as (
            insert into %1$I.jobs as t
            select r.* from json_populate_recordset(null::%1$I.jobs, $1) r
            where eventstore.partition_of(r.job_id, $4) = any ($5)
            on conflict (job_id) do update set
                -- What the first event tells may become known only when a job that was set aside is released.
                type = excluded.type, created_at = excluded.created_at, count = excluded.count,
                status = excluded.status, updated_at = excluded.updated_at, version = excluded.version,
                params = excluded.params, metadata = excluded.metadata,
                error_code = excluded.error_code, error_message = excluded.error_message
            where excluded.version > t.version
            returning t.job_id
        ), stepped as (
            insert into %1$I.steps as s
            select r.* from json_populate_recordset(null::%1$I.steps, $2) r join applied using (job_id)
            on conflict (step_id) do update set
                status = excluded.status, attempt = excluded.attempt, started_at = excluded.started_at,
                finished_at = excluded.finished_at, completed = excluded.completed,
                metadata_json = excluded.metadata_json
            -- A job's other steps come along with the one that changed: each would leave a dead row for nothing.
            where (s.status, s.attempt, s.started_at, s.finished_at, s.completed, s.metadata_json::text)
                is distinct from
                (excluded.status, excluded.attempt, excluded.started_at, excluded.finished_at, excluded.completed,
                    excluded.metadata_json::text)
        )
        insert into %1$I.artifacts as a
        select r.* from json_populate_recordset(null::%1$I.artifacts, $3) r join applied using (job_id)
        -- An image is written once; erasure may give its file other bytes.
        on conflict (job_id, step_id, item_index) do update set bytes = excluded.bytes, sha256 = excluded.sha256
            where a.sha256 <> excluded.sha256
    $statement$, target) using jobs, steps, artifacts, parts, held;

    perform eventstore.move_checkpoints((
        select json_agg(m)
        from json_to_recordset(moves) as m (subscription text, partition smallint, "from" bigint, "to" bigint)
        where m.partition = any (held)));
    return query select unnest(held);
end $$;

-- A rebuild under way, or a rollback:
--
--   fill     jobs, chunk by chunk, each in a transaction of its own, with the events up to the heads of the beginning
--   index    the filled tables, as the live ones are
--   follow   a subscription of its own takes the shadow on from those heads
--   swap     once it lags no more: the names change in one short transaction
--
-- Every step is kept here, so that whoever comes after a crash goes on where it ended, and any number can fill at once.
create table projector.rebuild (
    singleton  boolean     primary key default true check (singleton),
    generation integer     not null,  -- that is to serve
    version    integer     not null,  -- of the views
    started_at timestamptz not null default clock_timestamp(),
    heads      bigint[]    not null,  -- per partition: up to here it is filled, from here it follows
    follows    boolean     not null default false,
    rollback   boolean     not null default false
);

create table projector.chunks (
    chunk  integer primary key,
    after  uuid    not null,  -- the jobs after this id …
    upto   uuid    not null,  -- … up to this one
    events bigint             -- of the chunk; null until it is filled
);

-- Keeps the steps of rebuilds apart; 'drfb' as an integer. Held to the end of the transaction.
create or replace function projector.lock_rebuild() returns void
language sql as $$
    select pg_advisory_xact_lock(1685218914)
$$;

-- Begins a rebuild for views of a version; goes on with one that is under way, if it is for the same. outdated: only if
-- what serves is of earlier views. Answers the number of the generation that is to serve, or why there is to be none.
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
        -- Until the swap: chunks are filled by COPY.
        grant select on all tables in schema readmodel_shadow to dreamforge_service;
        grant insert on readmodel_shadow.jobs, readmodel_shadow.steps, readmodel_shadow.artifacts
            to dreamforge_service;
    end if;

    -- In this order: whatever came after the heads is not filled, whichever chunk it falls into.
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

-- A chunk that nobody fills, locked until the end of the transaction that fills it; none if none is left, or if the
-- rebuild is for views of another version.
create or replace function projector.take_chunk(views_version integer) returns setof projector.chunks
language sql as $$
    select * from projector.chunks
    where events is null and exists (select from projector.rebuild where version = views_version)
    order by chunk limit 1 for update skip locked
$$;

-- Notes that a chunk is filled, in the transaction that filled it.
create or replace function projector.finish_chunk(filled integer, of_events bigint) returns void
language sql as $$
    update projector.chunks set events = of_events where chunk = filled
$$;

-- Builds one index of the shadow as the live tables have it. Answers its name, or null if none is missing.
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

-- Lets the subscription readmodel_shadow take a filled and indexed shadow on.
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

-- Puts a subscription's checkpoints where they are told; one that has none yet is added.
create or replace function projector.stand(name text, positions bigint[]) returns void
language sql as $$
    insert into eventstore.subscriptions (subscription) values (name) on conflict do nothing;
    delete from eventstore.checkpoints where subscription = name;
    insert into eventstore.checkpoints (subscription, partition, position)
    select name, p, coalesce(positions[p + 1], 0) from eventstore.log, generate_series(0, partitions - 1) as p
$$;

-- Where a subscription stands, by partition.
create or replace function projector.positions(name text) returns bigint[]
language sql as $$
    select array(select position from eventstore.standings where subscription = name order by partition)
$$;

-- Puts the shadow in the place of the read model, if no event has waited for it for more than max_lag seconds; level: and
-- if nothing has gone into the latter yet that is not in the former. Answers for how long the oldest has waited; null if
-- it is to be tried again: it lags, or somebody reads or writes for long.
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
    -- Others wait behind us while we wait for a lock.
    perform set_config('lock_timeout', '200ms', true);

    -- Checkpoints first, in the order of hold_checkpoints: no batch is under way then, on either side. One that was
    -- replaced while we waited is not among those we hold.
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

    -- Nobody may read under a name while it changes: a statement would find one table here and the next one there.
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

-- Begins to bring the generation before back, or goes on with that: the projector takes it on from where it stood, and it
-- is swapped in as a rebuilt one is. Answers its number, or why it can't.
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

-- Ends a rebuild and drops the shadow; one that was to be rolled back to is put aside again. Answers whether there was
-- any.
create or replace function projector.abort_rebuild() returns boolean
language plpgsql as $$
begin
    perform projector.lock_rebuild();
    if not exists (select from projector.rebuild) then
        return false;
    end if;
    -- Whoever fills a chunk, or writes a batch, ends that first.
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

-- Takes the text of jobs that were erased since out of a generation that will not hear of it, being put aside.
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

-- Takes a job's personal text out of every generation of the read model, the one put aside included. Projectors that
-- write what they read before do so again when they come to job.erased.
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

-- The service writes through these functions alone, which run with their owner's rights. A login that is granted
-- dreamforge_service can append and read, but neither change nor remove an event, nor erase its private text; nor switch
-- off what guards them, since it owns nothing. Owner and service should therefore be two logins: the owner's is for
-- `dreamforge schema install`.
create or replace function eventstore.grant_rights() returns void
language plpgsql as $$
declare
    called text[] := array[
        'eventstore.commit(json, json, json, json, json)',
        'eventstore.confirm_replicated()',
        'eventstore.probe_writes()',
        'eventstore.subscribe(text)',
        'eventstore.report_rejection(uuid, text, integer, text, integer)',
        'eventstore.forget_rejection(uuid)',
        'eventstore.claim(text[], bigint[], integer, double precision)',
        'eventstore.extend(text[], bigint[], integer[], double precision)',
        'eventstore.floors(text[], bigint[])',
        'eventstore.put_aside(text, bigint, integer)',
        'eventstore.queue_lengths()',
        'eventstore.purge()',
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
    ];
    one text;
begin
    -- Functions that run with their owner's rights must not find other schemas' objects under the names they use.
    foreach one in array called loop
        execute format('alter function %s security definer', one);
        execute format('alter function %s set search_path = pg_catalog, pg_temp', one);
    end loop;
    revoke execute on all functions in schema eventstore, projector from public;
    begin
        create role dreamforge_service nologin;
    exception
        when duplicate_object or unique_violation then
            null;  -- roles are the whole cluster's: another database may have brought it
        when insufficient_privilege then
            if not exists (select from pg_roles where rolname = 'dreamforge_service') then
                raise warning 'no right to create the role dreamforge_service: only the owner can run the service';
                return;
            end if;
    end;
    grant usage on schema eventstore, projector, readmodel, pgmq to dreamforge_service;
    grant select on all tables in schema eventstore, projector, readmodel, pgmq to dreamforge_service;
    grant select on all sequences in schema pgmq to dreamforge_service;
    foreach one in array called loop
        execute format('grant execute on function %s to dreamforge_service', one);
    end loop;
    grant execute on function eventstore.partition_of(uuid, smallint) to dreamforge_service;
end $$;

select eventstore.grant_rights();
