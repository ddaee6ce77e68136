-- Release 3 to 4: the event store knows no application. The functions of release 4 follow.

create table eventstore.queues (
    queue text primary key
);

insert into eventstore.queues (queue) values ('generate'), ('upscale');

create table eventstore.owner_categories (
    category text primary key
);

insert into eventstore.owner_categories (category) values ('key');

-- Functions that have another name, or arguments of other names, from now on. Those that release 2 did not have are absent.
drop function if exists eventstore.judge(uuid, integer, json);
drop function if exists eventstore.dispatch(json, json, json, uuid[], smallint[], smallint);
drop function if exists eventstore.hold_checkpoints(json);
drop function if exists eventstore.claim(text[], bigint[], integer, double precision);
drop function if exists projector.stand(text, bigint[]);
drop function if exists projector.forget_behind(text);
drop function if exists projector.forget_rebuild();
