-- Release 3 to 4: the event store knows no application. The functions of release 4 follow.

create table eventstore.queues (
    queue text primary key
);

insert into eventstore.queues (queue) values ('generate'), ('upscale');

create table eventstore.owner_categories (
    category text primary key
);

insert into eventstore.owner_categories (category) values ('key');
