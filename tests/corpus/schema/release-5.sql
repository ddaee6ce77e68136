-- The event store: a log of events, subscriptions that read it, and an outbox of commands. It knows no application.
--
--   eventstore   the log; subscriptions' checkpoints; the store's own statements on the outbox's queues
--   pgmq         the queues, created by pgmq (installed before this file is run)
--
-- `eventstore.schema.install` runs this file in an empty database, and the application's own SQL after it, in one
-- transaction. Some names (judge, spoilt, floors, standings, put_aside, the outcomes mine and refused) are those of release 3:
-- its calls that are in progress during a migration, and its processes, use them.
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

insert into eventstore.releases (release, serves) values (5, 2);

-- Keys that all of an application's processes share, and that no client may learn.
create table eventstore.secrets (
    name   text  primary key,
    secret bytea not null default uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())
);

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

-- Statistics hold samples of values: none of this column, which erasure must be able to clear.
alter table eventstore.events alter column private set statistics 0;

-- Categories to which only the database's owner appends: a process that runs with the service's rights can't.
create table eventstore.owner_categories (
    category text primary key
);

create or replace function eventstore.refuse_change() returns trigger
language plpgsql as $$
begin
    -- Only erasure may change an event, and only by removing the private text and its salt.
    -- *= compares the stored bytes, since json has no equality.
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

-- Removes the private text and salts of a stream; its hashes still verify. Returns how many events changed.
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

-- Compares a stream with the version that an append expects: the verdict (see `commit`), its newest version and hash.
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

-- The outbox's part of `commit`: sends, acknowledgements and deferrals, except those of skipped streams and of
-- rejected partitions.
create or replace function eventstore.dispatch(
    sends json, acks json, defers json, skipped uuid[], spoilt smallint[], partitions smallint
) returns void
language plpgsql set enable_seqscan = off set enable_bitmapscan = off
as $$
declare
    a          record;
    own        bigint[];
    table_name text;
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
            perform pgmq.send_batch(
                a.queue, a.messages, clock_timestamp() + make_interval(secs => coalesce(a.delay, 0)));
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
        table_name := pgmq.format_table_name(a.queue, 'q');
        -- All rows of a queue at once, in msg_id order as everywhere: two groups would deadlock with a heartbeat.
        own := array(select eventstore.owned(a.queue, a.ids, a.tokens));
        if a.acked is not null then
            execute format('delete from pgmq.%I where msg_id = any ($1) and msg_id = any ($2)', table_name)
                using own, a.acked;
        end if;
        if a.deferred is not null then
            execute format(
                -- A new token: a heartbeat of the previous owner that is still in flight must not hide the message again.
                'update pgmq.%I q set read_ct = read_ct + 1, vt = clock_timestamp() + make_interval(secs => ('
                '    select d.delay from unnest($2, $3) as d (msg_id, delay) where d.msg_id = q.msg_id))'
                ' where q.msg_id = any ($1) and q.msg_id = any ($2)', table_name) using own, a.deferred, a.delays;
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
language plpgsql as $$
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
    fresh      eventstore.events;
    added      eventstore.events[] := '{}';
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
        -- A statement of its own: its snapshot is taken after the lock was.
        select ev.position, ev.chain, ev.recorded_at into head
        from eventstore.events ev where ev.partition = p order by ev.position desc limit 1;
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
        select array_agg(j.verdict order by x.n), array_agg(j.version order by x.n), array_agg(j.hash order by x.n)
        into outcomes, versions, hashes
        from unnest(streams, expected, lists) with ordinality as x (stream, expected, events, n),
            eventstore.judge(x.stream, x.expected, x.events) as j;
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
            fresh.private := e.private;
            fresh.private_salt := null;
            fresh.private_digest := null;
            if e.private is not null then
                -- The salt keeps a short text from being guessed from its digest after erasure.
                fresh.private_salt := uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid());
                fresh.private_digest := sha256(fresh.private_salt || convert_to(e.private, 'UTF8'));
            end if;
            fresh.hash := eventstore.event_hash(hashes[e.append], fresh);
            fresh.chain := eventstore.event_chain(chains[p + 1], fresh.position, fresh.recorded_at, fresh.hash);
            added := added || fresh;
            versions[e.append] := fresh.version;
            hashes[e.append] := fresh.hash;
            positions[p + 1] := fresh.position;
            chains[p + 1] := fresh.chain;
            ends[e.append] := fresh.position;
        end loop;
        insert into eventstore.events select * from unnest(added);

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

-- Adds a queue.
create or replace function eventstore.create_queue(queue text) returns void
language sql as $$
    insert into eventstore.queues (queue) values (create_queue.queue);
    select pgmq.create(create_queue.queue);
$$;

-- Those of the messages whose read_ct is still the caller's token, locked in msg_id order. pgmq's own set_vt and delete
-- check no owner: a process that lost its lease would hide or release another's message.
create or replace function eventstore.owned(queue text, ids bigint[], tokens integer[]) returns table (msg_id bigint)
language plpgsql set enable_seqscan = off set enable_bitmapscan = off as $$
begin
    return query execute format(
        'select q.msg_id from pgmq.%I q join unnest($1, $2) as mine (msg_id, read_ct) using (msg_id, read_ct) '
        'where q.msg_id = any ($1) order by q.msg_id for update of q',
        pgmq.format_table_name(queue, 'q')) using ids, tokens;
end $$;

-- Claims at most `slots` visible messages, the queues in the order given, the oldest first, and hides them for
-- `visibility` seconds. `floors` (one per queue): where the scan begins, past the dead rows.
create or replace function eventstore.claim(queues text[], floors bigint[], slots integer, visibility double precision)
returns table (queue text, msg_id bigint, read_ct integer, enqueued_at timestamptz, message jsonb)
language plpgsql set enable_seqscan = off set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
    claimed integer;
begin
    -- A claim waits for the disk: if a crash lost it, the next claim would get the same token, and either of the two
    -- owners could delete the other's command.
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

-- Extends the claims of messages by `visibility` seconds; answers those that are still the caller's.
create or replace function eventstore.extend(queues text[], ids bigint[], tokens integer[], visibility double precision)
returns table (queue text, msg_id bigint, read_ct integer)
language plpgsql set enable_seqscan = off set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
    k record;
begin
    -- If a crash loses this, the message is visible sooner, under another token: no need to wait for the disk.
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
language sql as $$
    select pgmq.archive(queue, o.msg_id) from eventstore.owned(queue, array[msg_id], array[read_ct]) as o
$$;

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
create index events_beside_jobs on eventstore.events (category, stream_id, version) where category <> 'job';

-- The marks of quarantined jobs: few among all events, and read by /readyz, metrics and operators.
create index job_quarantines on eventstore.events (stream_id, version) where code in ('job.quarantined', 'job.released');

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
                -- For a quarantined job, what the first event says may become readable only after its release.
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
            -- The batch holds all steps of a job: an unchanged one must not leave a dead row.
            where (s.status, s.attempt, s.started_at, s.finished_at, s.completed, s.metadata_json::text)
                is distinct from
                (excluded.status, excluded.attempt, excluded.started_at, excluded.finished_at, excluded.completed,
                    excluded.metadata_json::text)
        )
        insert into %1$I.artifacts as a
        select r.* from json_populate_recordset(null::%1$I.artifacts, $3) r join applied using (job_id)
        -- An image is written once, but erasure and a retry of a lost image change its file.
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
