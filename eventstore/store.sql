-- The event store: a log of events, subscriptions that read it, and an outbox of commands. It knows no application.
--
--   eventstore   the log; subscriptions' checkpoints; the store's own statements on the outbox's queues
--   pgmq         the queues, created by pgmq (installed before this file is run)
--
-- `eventstore.schema.install` runs this file in an empty database, and the application's own SQL after it, in one
-- transaction. Some names (spoilt, floors, standings, put_aside, the outcomes mine and refused) are those of release 3: its
-- processes use them.
-- A database of an earlier release is migrated: migrations change tables and views, and then the functions
-- and rights of this file replace the earlier ones.
-- The number of partitions is the setting dreamforge.partitions, or 8.

create schema eventstore;

---------------------------------------------------------------------------------------------------
-- The log
---------------------------------------------------------------------------------------------------

-- One row: the identity of this log. Cursors and exports name it, so that they are never read against another log. The
-- number of partitions never changes.
create table eventstore.log (
    singleton      boolean     primary key default true check (singleton),
    log_id         uuid        not null default gen_random_uuid(),
    -- A power of two, so that the partition is the low bits of the stream id's last byte.
    partitions     smallint    not null check (partitions between 1 and 256 and partitions & (partitions - 1) = 0),
    created_at     timestamptz not null default clock_timestamp(),
    leaf_positions bigint      not null default 4194304 check (leaf_positions > 0),  -- of the leaves yet to be added
    leaf_end       bigint      not null default 0  -- the leaves of eventstore.envelopes have room for positions below it
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

insert into eventstore.releases (release, serves) values (6, 2);

-- Keys that all of an application's processes share, and that no client may learn.
create table eventstore.secrets (
    name   text  primary key,
    secret bytea not null default uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())
);

-- The events without their personal text, in leaves by position: each leaf holds a range of every partition of the log.
-- `eventstore.add_leaves` creates them. Their columns are those of the view eventstore.events, below.
create table eventstore.envelopes (
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
    private_digest bytea,                 -- sha256(private_salt ‖ private), inside the hash; stays when the text goes
    hash           bytea       not null,
    chain          bytea       not null,
    primary key (partition, position)     -- subscribers read one partition by position
) partition by range (position);

-- Personal text, outside the hash, so that it can be erased.
create table eventstore.private (
    stream_id uuid    not null,
    version   integer not null,
    text      text,
    salt      bytea,
    primary key (stream_id, version)
);

-- Statistics hold samples of values: none of this column, which erasure must be able to clear.
alter table eventstore.private alter column text set statistics 0;

-- The events, whole. Only events with a digest have text: the others, and queries that do not ask for it, don't look it up.
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
-- "always": session_replication_role = replica does not slip past. Leaves inherit triggers of rows, not that of the table.
alter table eventstore.envelopes enable always trigger append_only_rows;
alter table eventstore.envelopes enable always trigger append_only_table;
alter table eventstore.private enable always trigger append_only_rows;
alter table eventstore.private enable always trigger erased_rows;
alter table eventstore.private enable always trigger append_only_table;

-- Makes sure that the leaves reach half a leaf beyond a position. Room for the position itself is worth waiting for, more
-- is not. A leaf is created by itself and then attached, under a lock that lets others read and append. It conflicts with
-- another call's, and with ANALYZE of the parent.
create or replace function eventstore.add_leaves(head bigint) returns void
language plpgsql as $$
declare
    the_log eventstore.log;
    start   bigint;
    leaf    text;
begin
    begin
        lock table only eventstore.envelopes in share update exclusive mode nowait;
    exception
        when lock_not_available then
            select * into strict the_log from eventstore.log;
            if head < the_log.leaf_end then
                -- The call that added this leaf is committed, but others may not yet have been told: then it still holds
                -- the leaf's lock.
                execute format('lock table eventstore.%I in row exclusive mode', 'envelopes_to_' || the_log.leaf_end);
                return;
            end if;
            lock table only eventstore.envelopes in share update exclusive mode;
    end;
    select * into strict the_log from eventstore.log;
    while head >= the_log.leaf_end - the_log.leaf_positions / 2 loop
        start := the_log.leaf_end;
        the_log.leaf_end := start + the_log.leaf_positions;
        leaf := 'envelopes_to_' || the_log.leaf_end;
        execute format('create table eventstore.%I (like eventstore.envelopes)', leaf);
        -- Histories read one stream by version. Across leaves a range-partitioned table can't be unique in other columns
        -- than its position: `commit` compares versions under its lock, and this is a leaf's last line of defence.
        execute format('alter table eventstore.%I add unique (stream_id, version)', leaf);
        execute format('create trigger append_only_table before truncate on eventstore.%I '
            'for each statement execute function eventstore.refuse_change()', leaf);
        execute format('alter table eventstore.%I enable always trigger append_only_table', leaf);
        execute format('alter table eventstore.envelopes attach partition eventstore.%I for values from (%s) to (%s)',
            leaf, start, the_log.leaf_end);
    end loop;
    update eventstore.log set leaf_end = the_log.leaf_end where leaf_end <> the_log.leaf_end;
end $$;

select eventstore.add_leaves(0);

-- Categories to which only the database's owner appends: a process that runs with the service's rights can't.
create table eventstore.owner_categories (
    category text primary key
);

-- Removes the private text and salts of a stream; its hashes still verify. Returns how many events had text.
create or replace function eventstore.erase(stream uuid) returns integer
language sql set eventstore.erasing = 'yes' as $$
    with erased as (
        delete from eventstore.private where stream_id = stream returning 1
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
create or replace function eventstore.event_hash(previous bytea, e eventstore.envelopes) returns bytea
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

-- The checkpoint of a subscription in each partition. A move deletes the row and inserts one with a higher position. It
-- does not update it: while a transaction holds an old snapshot, dead row versions can't be removed, and a lookup reads
-- all of them (15 ms after 50,000 moves, which take a few minutes). In this key the newest row is last, behind the dead
-- ones.
create table eventstore.checkpoints (
    subscription text        not null,
    partition    smallint    not null,
    position     bigint      not null default 0,
    moved_at     timestamptz not null default clock_timestamp(),
    primary key (subscription, partition, position)
);

-- The newest checkpoint of each subscription in each partition, read from the end of the key.
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
    -- The call that adds the subscription adds its checkpoints. Later calls must not: a partition would get a second one.
    with fresh as (
        insert into eventstore.subscriptions (subscription) values (subscribe.subscription)
        on conflict do nothing returning *
    )
    insert into eventstore.checkpoints (subscription, partition)
    select fresh.subscription, p from fresh, eventstore.log, generate_series(0, partitions - 1) as p
$$;

-- Here and in the outbox, rows are looked up one by one by their whole key, or by `= any`, without joins. While a
-- transaction holds an old snapshot, the tables are full of dead rows, but the planner takes them to be small: it must
-- not scan them, nor walk through an index of dead rows.
--
-- Compare-and-swap of checkpoints; locks in primary-key order. Answers the partitions whose checkpoint is at `from`,
-- locked until commit. A partition that is missing was moved by another process.
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

-- Moves checkpoints that are locked.
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

-- Streams whose history a process could not read or fold, until the application has dealt with them.
create table eventstore.rejections (
    stream_id   uuid        primary key,
    reader      text        not null,  -- the part of the application whose code failed
    version     integer     not null,  -- the event that it failed at
    reason      text        not null,  -- without personal text
    reported_at timestamptz not null default clock_timestamp()
);

-- Does nothing for a process of an earlier release than the schema's: a later one may be able to read the event.
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
-- Commit
---------------------------------------------------------------------------------------------------

-- Makes the transaction wait, at its commit, until all earlier commits are on the synchronous standby, if one is
-- configured. It writes a record to the write-ahead log, since a transaction that writes nothing does not wait.
create or replace function eventstore.confirm_replicated() returns void
language plpgsql as $$
begin
    if current_setting('synchronous_standby_names') <> '' then
        perform pg_logical_emit_message(true, 'dreamforge', '');
    end if;
end $$;

-- Raises unless a commit would succeed now: the server takes writes, its disk has room (data beyond 64 kB of memory goes
-- to a file), and its synchronous standby answers, for which the transaction waits at its commit.
create or replace function eventstore.probe_writes() returns void
language plpgsql set work_mem = '64kB' set temp_tablespaces = '' as $$
begin
    if current_setting('transaction_read_only')::boolean then
        raise read_only_sql_transaction using message = 'its transactions are read-only';
    end if;
    perform from generate_series(1, 5000);
    perform pg_logical_emit_message(true, 'dreamforge', '');
end $$;

-- Whether these very events follow a stream's expected version: an earlier call appended them.
create or replace function eventstore.has_appended(stream uuid, expected integer, events json) returns boolean
language plpgsql as $$
begin
    return array(
        select ev.event_id from eventstore.envelopes ev
        where ev.stream_id = stream and ev.version > expected
        order by ev.version limit json_array_length(events)
    ) = array(
        select (x.value ->> 'event_id')::uuid from json_array_elements(events) with ordinality as x
        order by x.ordinality
    );
end $$;

-- Called only by a `commit` of releases 3 to 5 that waited for the migration to release 6. It can't write the new tables:
-- its caller repeats it.
create or replace function eventstore.judge(
    stream uuid, expected integer, events json, out verdict text, out version integer, out hash bytea
)
language plpgsql as $$
begin
    raise serialization_failure using message = 'the schema was migrated meanwhile: repeat the call';
end $$;

-- The outbox's part of `commit`: sends, acknowledgements and deferrals, except those of skipped streams and of
-- rejected partitions.
create or replace function eventstore.dispatch(
    sends json, acks json, defers json, skipped uuid[], spoilt smallint[], partitions smallint
) returns void
language plpgsql as $$
declare
    a record;
begin
    if json_array_length(sends) > 0 then
        for a in
            select x.queue, x.delay, array_agg(x.message order by x.n) as messages
            from rows from (
                json_to_recordset(sends) as (stream uuid, queue text, message jsonb, delay double precision)
            ) with ordinality as x (stream, queue, message, delay, n)
            where x.stream <> all (skipped)
                and eventstore.partition_of(x.stream, partitions) <> all (spoilt)
            group by x.queue, x.delay
        loop
            perform eventstore.send(a.queue, a.messages, coalesce(a.delay, 0));
        end loop;
    end if;

    if json_array_length(acks) + json_array_length(defers) = 0 then
        return;
    end if;
    for a in
        select x.queue, array_agg(x.msg_id) as ids, array_agg(x.read_ct) as tokens,
            array_agg(x.msg_id) filter (where x.delay is null) as acked,
            array_agg(x.msg_id) filter (where x.delay is not null) as deferred,
            array_agg(x.delay) filter (where x.delay is not null) as delays
        from (
            select stream, queue, msg_id, read_ct, null::double precision as delay
            from json_to_recordset(acks) as k (stream uuid, queue text, msg_id bigint, read_ct integer)
            union all
            select stream, queue, msg_id, read_ct, delay
            from json_to_recordset(defers) as d (
                stream uuid, queue text, msg_id bigint, read_ct integer, delay double precision)
        ) as x
        where x.stream <> all (skipped)
            and eventstore.partition_of(x.stream, partitions) <> all (spoilt)
        group by x.queue order by x.queue
    loop
        perform eventstore.settle(a.queue, a.ids, a.tokens, a.acked, a.deferred, a.delays);
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
--   mine      an earlier call, whose answer was lost, appended these very events
--   conflict  the stream is at another version (given), the checkpoint at another position
--   refused   acceptable by itself, but another part of its partition's batch was not (calls with moves only)
--
-- and one row of kind 'contended' if another transaction held the lock of a partition.
--
-- Without moves, each stream is accepted or rejected by itself; the sends, acks and defers of a rejected stream are
-- skipped. With moves, the unit is the partition: one rejection drops its appends, its commands and its move. Otherwise a
-- checkpoint could move without its reaction, which would be lost.
--
-- A move to the head of a partition to which this call appends covers the appended events, too: a subscription does not
-- read its own events.
--
-- A call that writes no event waits for the standby, too: it may answer for an earlier call whose wait was cut short.
create or replace function eventstore.commit(
    appends json default '[]',
    sends   json default '[]',
    acks    json default '[]',
    defers  json default '[]',
    moves   json default '[]'
) returns table (kind text, stream_id uuid, partition smallint, outcome text, version integer, "position" bigint)
-- A plan that was made when a leaf was empty must not scan it when it is full. And no plan is made twice: to plan a
-- statement for the length of its arrays takes longer than to execute it.
language plpgsql set enable_seqscan = off set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
declare
    -- 'drfr': keeps the store's advisory locks apart from other locks in this database.
    lock_class constant integer := 1685218930;
    the_log    eventstore.log;
    contended  boolean := false;
    subscribed boolean := json_array_length(moves) > 0;
    twice      uuid;
    reserved   text;
    p          smallint;
    e          record;
    head       record;
    fresh      eventstore.envelopes;
    added      eventstore.envelopes[] := '{}';
    secret     eventstore.private;
    secrets    eventstore.private[] := '{}';
    newest     bigint := 0;          -- position among those added
    written    smallint[] := '{}';   -- the partitions of the appends
    positions  bigint[] := '{}';     -- per partition (subscript + 1): its head, and what the next event is chained to
    old_head   bigint[];             -- the heads before this call
    chains     bytea[] := '{}';
    clocks     timestamptz[] := '{}';
    spoilt     smallint[] := '{}';   -- partitions of which nothing is written
    held       smallint[] := '{}';   -- partitions whose checkpoint move is sound
    skipped    uuid[] := '{}';       -- streams whose commands are not touched
    moved      json;                 -- the moves that stand, each with its end
    streams    uuid[];               -- per append, in the order given
    categories text[];
    tenants    text[];
    expected   integer[];
    lists      json[];               -- of events
    parts      smallint[];           -- partitions
    outcomes   text[];
    versions   integer[];            -- its stream's newest version and hash, before this call and then after it
    hashes     bytea[];
    ends       bigint[];             -- its newest position
begin
    -- "last + 1" needs a snapshot that is later than the lock; other levels keep the transaction's first snapshot.
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception 'eventstore.commit needs READ COMMITTED, not %', current_setting('transaction_isolation')
            using errcode = 'DF002';
    end if;
    -- A second call would take partition locks out of order while the first call's are held.
    if current_setting('eventstore.committed', true) = 'yes' then
        raise exception 'eventstore.commit was called twice in one transaction' using errcode = 'DF002';
    end if;
    perform set_config('eventstore.committed', 'yes', true);

    select * into strict the_log from eventstore.log;
    select array_agg(x.stream order by x.n), array_agg(x.category order by x.n), array_agg(x.tenant order by x.n),
        array_agg(x.expected order by x.n), array_agg(x.events order by x.n),
        array_agg(eventstore.partition_of(x.stream, the_log.partitions) order by x.n)
    into streams, categories, tenants, expected, lists, parts
    from rows from (
        json_to_recordset(appends) as (stream uuid, category text, tenant text, expected integer, events json)
    ) with ordinality as x (stream, category, tenant, expected, events, n);

    if cardinality(streams) > 1 then
        select stream into twice from unnest(streams) as stream group by 1 having count(*) > 1 limit 1;
        if found then
            raise exception 'stream % is named twice in one call', twice using errcode = 'DF002';
        end if;
    end if;
    if streams is not null and not pg_has_role(session_user, current_user, 'member') then
        select o.category into reserved from eventstore.owner_categories o where o.category = any (categories) limit 1;
        if found then
            raise exception 'events of category % are appended with the login of the database''s owner', reserved
                using errcode = 'insufficient_privilege';
        end if;
    end if;

    -- Locks in ascending order, so that calls can't deadlock. They are held to the commit, so that commit order,
    -- visibility order and position order are the same.
    written := array(select distinct part from unnest(parts) as part order by part);
    foreach p in array written loop
        if not pg_try_advisory_xact_lock(lock_class, p) then
            contended := true;
            perform pg_advisory_xact_lock(lock_class, p);
        end if;
    end loop;
    if streams is not null then
        -- A session learns of leaves that others attached only when it takes a lock that it does not yet have. The heads
        -- below may be in such a leaf.
        lock table only eventstore.envelopes in row exclusive mode;
    end if;
    foreach p in array written loop
        -- A statement of its own: its snapshot is taken after the lock was.
        select ev.position, ev.chain, ev.recorded_at into head
        from eventstore.envelopes ev where ev.partition = p order by ev.position desc limit 1;
        positions[p + 1] := coalesce(head.position, 0);
        chains[p + 1] := coalesce(head.chain, eventstore.chain_genesis(the_log.log_id, p));
        clocks[p + 1] := greatest(head.recorded_at, clock_timestamp());
    end loop;
    old_head := positions;

    if subscribed then
        held := array(select eventstore.hold_checkpoints(moves));
        spoilt := array(
            select m.partition from json_to_recordset(moves) as m (partition smallint)
            where m.partition <> all (held));
    end if;

    -- Check every append before any is written: with moves, one rejection drops the partition's others.
    if streams is not null then
        select array_agg(coalesce(h.version, 0) order by x.n), array_agg(coalesce(h.hash, '\x') order by x.n),
            array_agg(case
                when coalesce(h.version, 0) = x.expected then 'accepted'
                when eventstore.has_appended(x.stream, x.expected, x.events) then 'mine'
                else 'conflict'
            end order by x.n)
        into versions, hashes, outcomes
        from unnest(streams, expected, lists) with ordinality as x (stream, expected, events, n)
        left join lateral (
            select ev.version, ev.hash from eventstore.envelopes ev
            where ev.stream_id = x.stream order by ev.version desc limit 1
        ) as h on true;
        if subscribed then
            spoilt := spoilt || array(
                select x.part from unnest(parts, outcomes) as x (part, outcome) where x.outcome <> 'accepted');
            outcomes := array(
                select case when x.outcome = 'accepted' and x.part = any (spoilt) then 'refused' else x.outcome end
                from unnest(parts, outcomes) with ordinality as x (part, outcome, n) order by x.n);
        end if;
        skipped := array(
            select x.stream from unnest(streams, outcomes) as x (stream, outcome) where x.outcome <> 'accepted');

        for e in
            select x.append, ev.* from unnest(lists, outcomes) with ordinality as x (events, outcome, append),
                rows from (
                    json_to_recordset(x.events) as (
                        event_id uuid, code text, schema_version smallint, ts timestamptz, data text, meta text,
                        private text)
                ) with ordinality as ev (event_id, code, schema_version, ts, data, meta, private, n)
            where x.outcome = 'accepted' order by x.append, ev.n
        loop
            p := parts[e.append];
            fresh.partition := p;
            fresh.stream_id := streams[e.append];
            fresh.category := categories[e.append];
            fresh.tenant := tenants[e.append];
            fresh.version := versions[e.append] + 1;
            fresh.position := positions[p + 1] + 1;
            fresh.event_id := e.event_id;
            fresh.code := e.code;
            fresh.schema_version := e.schema_version;
            fresh.ts := e.ts;
            fresh.recorded_at := clocks[p + 1];
            fresh.data := e.data;
            fresh.meta := e.meta;
            fresh.private_digest := null;
            if e.private is not null then
                secret.stream_id := fresh.stream_id;
                secret.version := fresh.version;
                secret.text := e.private;
                -- The salt keeps a short text from being guessed from its digest after erasure.
                secret.salt := uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid());
                fresh.private_digest := sha256(secret.salt || convert_to(secret.text, 'UTF8'));
                secrets := secrets || secret;
            end if;
            fresh.hash := eventstore.event_hash(hashes[e.append], fresh);
            fresh.chain := eventstore.event_chain(chains[p + 1], fresh.position, fresh.recorded_at, fresh.hash);
            added := added || fresh;
            versions[e.append] := fresh.version;
            hashes[e.append] := fresh.hash;
            positions[p + 1] := fresh.position;
            chains[p + 1] := fresh.chain;
            ends[e.append] := fresh.position;
            newest := greatest(newest, fresh.position);
        end loop;
        if newest >= the_log.leaf_end - the_log.leaf_positions / 2 then
            perform eventstore.add_leaves(newest);
        end if;
        insert into eventstore.envelopes select * from unnest(added);
        if cardinality(secrets) > 0 then
            insert into eventstore.private select * from unnest(secrets);
        end if;

        return query
            select 'append', x.stream, x.part, x.outcome, x.version, x."end"
            from unnest(streams, parts, outcomes, versions, ends) with ordinality as x (
                stream, part, outcome, version, "end", n)
            order by x.n;
    end if;

    if json_array_length(sends) + json_array_length(acks) + json_array_length(defers) > 0 then
        perform eventstore.dispatch(sends, acks, defers, skipped, spoilt, the_log.partitions);
    end if;

    if subscribed then
        moved := (
            select json_agg(json_build_object('subscription', subscription, 'partition', m.partition, 'from', m."from",
                'to', case when m."to" = old_head[m.partition + 1] then positions[m.partition + 1] else m."to" end))
            from json_to_recordset(moves) as m (subscription text, partition smallint, "from" bigint, "to" bigint)
            where m.partition = any (held) and m.partition <> all (spoilt));
        perform eventstore.move_checkpoints(moved);
        return query
            select 'move', null::uuid, m.partition, 'accepted', null::integer, m."to"
            from json_to_recordset(moved) as m (partition smallint, "to" bigint);
        if cardinality(spoilt) > 0 then
            return query
                select 'move', null::uuid, c.partition,
                    case when m.partition = any (held) then 'refused' else 'conflict' end, null::integer, c.position
                from json_to_recordset(moves) as m (subscription text, partition smallint)
                join eventstore.standings c using (subscription, partition)
                where m.partition = any (spoilt);
        end if;
    end if;

    if cardinality(added) = 0 and moved is null then
        perform eventstore.confirm_replicated();
    end if;

    if contended then
        return query
            select 'contended', null::uuid, null::smallint, null::text, null::integer, null::bigint;
    end if;
end $$;

---------------------------------------------------------------------------------------------------
-- The outbox: pgmq's queues with the store's own claims
---------------------------------------------------------------------------------------------------

-- The queues of the store, among others that pgmq may hold.
create table eventstore.queues (
    queue text primary key
);

-- A text once for each queue, with its name, its table, and the array of those of the messages `ids` whose read_ct is
-- still the caller's token, locked. pgmq's own set_vt and delete check no owner: a process that lost its lease would hide or
-- release another's message.
create or replace function eventstore.for_each_queue(template text) returns text
language sql stable as $$
    select coalesce(string_agg(
        replace(replace(replace(template, '{owned}', $owned$array(
                select q.msg_id
                from {table} q join unnest(ids, tokens) as mine (msg_id, read_ct) using (msg_id, read_ct)
                where q.msg_id = any (ids) order by q.msg_id for update of q)$owned$),
            '{queue}', quote_literal(q.queue)),
            '{table}', format('pgmq.%I', pgmq.format_table_name(q.queue, 'q'))),
        '' order by q.queue), '')
    from eventstore.queues q
$$;

-- Defines the functions that touch the queues' tables most often, with a statement for each table: the plans of static
-- statements are kept, and to plan a dynamic one costs several times what it takes to run it.
--
-- All change the rows of a queue in msg_id order, in one statement: else they would deadlock with each other.
create or replace function eventstore.define_queue_functions() returns void
language plpgsql as $$
begin
    -- Adds messages, which are visible after `delay` seconds.
    execute $send$
create or replace function eventstore.send(queue text, messages jsonb[], delay double precision) returns void
language plpgsql as $body$
begin
$send$ || eventstore.for_each_queue($queue$
    if queue = {queue} then
        insert into {table} (vt, message)
        select clock_timestamp() + make_interval(secs => delay), m.message
        from unnest(messages) with ordinality as m (message, n) order by m.n;
        return;
    end if;$queue$) || $send$
    raise exception 'there is no queue %', queue using errcode = 'DF002';
end $body$;
$send$;

    execute $owned$
create or replace function eventstore.owned(queue text, ids bigint[], tokens integer[]) returns table (msg_id bigint)
language plpgsql set enable_seqscan = off set enable_bitmapscan = off as $body$
#variable_conflict use_column
begin
$owned$ || eventstore.for_each_queue($queue$
    if queue = {queue} then
        return query select unnest({owned});
    end if;$queue$) || $owned$
end $body$;
$owned$;

    -- Deletes some of the caller's messages, and gives others back, each to be shown again after its delay in seconds.
    execute $settle$
create or replace function eventstore.settle(
    queue text, ids bigint[], tokens integer[], acked bigint[], deferred bigint[], delays double precision[]
) returns void
language plpgsql set enable_seqscan = off set enable_bitmapscan = off as $body$
declare
    own bigint[];
begin
$settle$ || eventstore.for_each_queue($queue$
    if queue = {queue} then
        own := {owned};
        delete from {table} q where q.msg_id = any (own) and q.msg_id = any (acked);
        if deferred is not null then
            -- A new token: a heartbeat of the previous owner that is still in flight must not hide the message again.
            update {table} q set read_ct = q.read_ct + 1, vt = clock_timestamp() + make_interval(secs => (
                select d.delay from unnest(deferred, delays) as d (msg_id, delay) where d.msg_id = q.msg_id))
            where q.msg_id = any (own) and q.msg_id = any (deferred);
        end if;
    end if;$queue$) || $settle$
end $body$;
$settle$;

    -- Claims at most `slots` visible messages, the queues in the order given, the oldest first, and hides them for
    -- `visibility` seconds. `floors` (one per queue): where the scan begins, past the dead rows.
    --
    -- A claim waits for the disk: if a crash lost it, the next claim would get the same token, and either of the two
    -- owners could delete the other's command.
    execute $claim$
create or replace function eventstore.claim(
    queues text[], floors bigint[], slots integer, visibility double precision
) returns table (queue text, msg_id bigint, read_ct integer, enqueued_at timestamptz, message jsonb)
language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off as $body$
#variable_conflict use_column
declare
    claimed integer;
begin
    for i in 1 .. cardinality(queues) loop
        exit when slots <= 0;
$claim$ || eventstore.for_each_queue($queue$
        if queues[i] = {queue} then
            return query
                with free as (
                    select q.msg_id from {table} q
                    where q.msg_id >= floors[i] and q.vt <= clock_timestamp()
                    order by q.msg_id limit slots for update skip locked
                )
                update {table} q set read_ct = q.read_ct + 1, last_read_at = clock_timestamp(),
                    vt = clock_timestamp() + make_interval(secs => visibility)
                where q.msg_id = any (array(select free.msg_id from free))
                returning {queue}::text, q.msg_id, q.read_ct, q.enqueued_at, q.message;
            get diagnostics claimed = row_count;
            slots := slots - claimed;
        end if;$queue$) || $claim$
    end loop;
end $body$;
$claim$;

    -- Extends the claims of messages by `visibility` seconds; answers those that are still the caller's.
    execute $extend$
create or replace function eventstore.extend(
    queues text[], ids bigint[], tokens integer[], visibility double precision
) returns table (queue text, msg_id bigint, read_ct integer)
language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off as $body$
#variable_conflict use_column
begin
    -- If a crash loses this, the message is visible sooner, under another token: no need to wait for the disk.
    perform set_config('synchronous_commit', 'off', true);
    declare
        k      record;
        ids    bigint[];
        tokens integer[];
    begin
        for k in
            select x.queue, array_agg(x.id) as ids, array_agg(x.token) as tokens
            from unnest(queues, extend.ids, extend.tokens) as x (queue, id, token) group by x.queue order by x.queue
        loop
            ids := k.ids;
            tokens := k.tokens;
$extend$ || eventstore.for_each_queue($queue$
            if k.queue = {queue} then
                return query
                    update {table} q set vt = clock_timestamp() + make_interval(secs => visibility)
                    where q.msg_id = any ({owned}) returning {queue}::text, q.msg_id, q.read_ct;
            end if;$queue$) || $extend$
        end loop;
    end;
end $body$;
$extend$;
end $$;

-- Adds a queue.
create or replace function eventstore.create_queue(queue text) returns void
language sql as $$
    insert into eventstore.queues (queue) values (create_queue.queue);
    select pgmq.create(create_queue.queue);
    select eventstore.define_queue_functions();
$$;

-- The lowest message id of each queue: where the next claims may begin. `bases` (one per queue): no lower id can appear,
-- so that the search skips the entries deleted below it.
create or replace function eventstore.floors(queues text[], bases bigint[] default null) returns bigint[]
language plpgsql set enable_seqscan = off set enable_bitmapscan = off as $$
declare
    lowest      bigint;
    min_msg_ids bigint[] := '{}';
begin
    for i in 1 .. cardinality(queues) loop
        execute format('select min(msg_id) from pgmq.%I where msg_id >= $1', pgmq.format_table_name(queues[i], 'q'))
            into lowest using coalesce(bases[i], 0);
        min_msg_ids := min_msg_ids || coalesce(lowest, bases[i], 0);
    end loop;
    return min_msg_ids;
end $$;

-- Moves a claimed message that no process can read into pgmq's archive.
create or replace function eventstore.put_aside(queue text, msg_id bigint, read_ct integer) returns void
language plpgsql as $$
begin
    perform pgmq.archive(queue, o.msg_id) from eventstore.owned(queue, array[msg_id], array[read_ct]) as o;
end $$;

-- How many commands each queue holds.
create or replace function eventstore.queue_lengths() returns table (queue text, commands bigint)
language plpgsql as $$
begin
    for queue in select q.queue from eventstore.queues q order by q.queue loop
        execute format('select count(*) from pgmq.%I', pgmq.format_table_name(queue, 'q')) into commands;
        return next;
    end loop;
end $$;

-- Deletes all commands; answers how many each queue held. Row by row: pgmq's own purge truncates, which waits for every
-- reader.
create or replace function eventstore.purge() returns table (queue text, commands bigint)
language plpgsql as $$
begin
    for queue in select q.queue from eventstore.queues q order by q.queue loop
        execute format('delete from pgmq.%I', pgmq.format_table_name(queue, 'q'));
        get diagnostics commands = row_count;
        return next;
    end loop;
end $$;

---------------------------------------------------------------------------------------------------
-- Processes that claim commands
---------------------------------------------------------------------------------------------------

-- Each process that claims commands, as it reported itself. Unlogged: after a crash of the server they report again.
create unlogged table eventstore.processes (
    process uuid        primary key,
    queues  text[]      not null,
    slots   integer     not null,
    free    integer     not null,  -- slots without a command
    seat    smallint,              -- with a seat it listens for commands, without one it polls
    seen_at timestamptz not null
);

-- Reports a process. Answers how many processes with free slots serve one of its queues, and its seat: null if it wants
-- none, or all are taken. A queue has few seats, since a notification wakes every session of the database that listens,
-- whatever its channel (PostgreSQL 15 to 18). A seat whose process has not been seen for `lapse_s` seconds is free.
create or replace function eventstore.report_process(
    process uuid, queues text[], slots integer, free integer, wants_seat boolean, seats integer,
    lapse_s double precision, out idle integer, out seat smallint
)
language plpgsql as $$
#variable_conflict use_column
declare
    -- One report at a time chooses a seat. 'drfr', and no partition.
    lock_class constant integer := 1685218930;
    choosing   constant integer := -1;
begin
    -- If a crash loses this, the process reports again: no need to wait for the disk.
    perform set_config('synchronous_commit', 'off', true);
    delete from eventstore.processes p where p.seen_at < clock_timestamp() - make_interval(secs => lapse_s);
    if wants_seat then
        select p.seat into seat from eventstore.processes p where p.process = report_process.process;
        if seat is null then
            perform pg_advisory_xact_lock(lock_class, choosing);
            select min(s) into seat from generate_series(0, seats - 1) as s
            where not exists (
                select from eventstore.processes p
                where p.seat = s and p.queues && report_process.queues and p.process <> report_process.process);
        end if;
    end if;
    insert into eventstore.processes (process, queues, slots, free, seat, seen_at)
    values (
        report_process.process, report_process.queues, report_process.slots, report_process.free, seat,
        clock_timestamp())
    on conflict (process) do update
    set queues = excluded.queues, slots = excluded.slots, free = excluded.free, seat = excluded.seat,
        seen_at = excluded.seen_at;
    select count(*) into idle from eventstore.processes p where p.free > 0 and p.queues && report_process.queues;
end $$;

-- Forgets a process that stops, so that its seat is free.
create or replace function eventstore.forget_process(process uuid) returns void
language sql as $$
    delete from eventstore.processes p where p.process = forget_process.process
$$;

---------------------------------------------------------------------------------------------------
-- Rights
---------------------------------------------------------------------------------------------------

-- Gives functions the rights of their owner, and lets dreamforge_service alone call them, if that role exists.
create or replace function eventstore.grant_functions(called text[]) returns void
language plpgsql as $$
declare
    one text;
begin
    foreach one in array called loop
        execute format('alter function %s security definer', one);
        -- A function with its owner's rights must not resolve names to objects of other schemas.
        execute format('alter function %s set search_path = pg_catalog, pg_temp', one);
        if exists (select from pg_roles where rolname = 'dreamforge_service') then
            execute format('grant execute on function %s to dreamforge_service', one);
        end if;
    end loop;
end $$;

-- The service writes through these functions only; they run with their owner's rights. A login that is granted
-- dreamforge_service can append and read. It can't change or remove an event, erase private text, or disable the
-- triggers, since it owns nothing. Use two logins: the owner's is for `dreamforge schema install`.
create or replace function eventstore.grant_rights() returns void
language plpgsql as $$
begin
    begin
        create role dreamforge_service nologin;
    exception
        when duplicate_object or unique_violation then
            null;  -- roles belong to the whole cluster: another database may have created it
        when insufficient_privilege then
            if not exists (select from pg_roles where rolname = 'dreamforge_service') then
                raise warning 'no right to create the role dreamforge_service: only the owner can run the service';
            end if;
    end;
    perform eventstore.define_queue_functions();
    revoke execute on all functions in schema eventstore from public;
    perform eventstore.grant_functions(array[
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
        'eventstore.report_process(uuid, text[], integer, integer, boolean, integer, double precision)',
        'eventstore.forget_process(uuid)',
        'eventstore.queue_lengths()',
        'eventstore.purge()'
    ]);
    if not exists (select from pg_roles where rolname = 'dreamforge_service') then
        return;
    end if;
    grant usage on schema eventstore, pgmq to dreamforge_service;
    grant select on all tables in schema eventstore, pgmq to dreamforge_service;
    grant select on all sequences in schema pgmq to dreamforge_service;
    grant execute on function eventstore.partition_of(uuid, smallint) to dreamforge_service;
end $$;

select eventstore.grant_rights();
