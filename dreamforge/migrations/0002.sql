-- Release 1 to 2. The functions of release 2 follow from schema.sql.

alter table eventstore.releases add column serves integer not null default 1;

alter table eventstore.events alter column private set statistics 0;

create table eventstore.secrets (
    name   text  primary key,
    secret bytea not null default uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())
);

insert into eventstore.secrets (name) values ('stream_token');

create table eventstore.subscriptions (
    subscription text        primary key,
    created_at   timestamptz not null default clock_timestamp(),
    paused_at    timestamptz
);

insert into eventstore.subscriptions (subscription) select distinct subscription from eventstore.checkpoints;

-- Replaced rather than updated from now on: the newest row of each lies at the end of its part of the key.
alter table eventstore.checkpoints drop constraint checkpoints_pkey;
alter table eventstore.checkpoints add primary key (subscription, partition, position);
alter table eventstore.checkpoints reset (fillfactor);

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

-- It has one more argument now.
drop function eventstore.floors(text[]);

-- The projector's functions have a schema of their own: the read model's is swapped by name.
create schema projector;
drop function readmodel.project(json, json, json, json);

create table readmodel.generation (
    singleton boolean  primary key default true check (singleton),
    number    integer  not null,
    version   integer  not null,
    build     uuid     not null default gen_random_uuid(),
    stood     bigint[]
);

insert into readmodel.generation (number, version) values (1, 1);

create table projector.rebuild (
    singleton  boolean     primary key default true check (singleton),
    generation integer     not null,
    version    integer     not null,
    started_at timestamptz not null default clock_timestamp(),
    heads      bigint[]    not null,
    follows    boolean     not null default false,
    rollback   boolean     not null default false
);

create table projector.chunks (
    chunk  integer primary key,
    after  uuid    not null,
    upto   uuid    not null,
    events bigint
);
