-- Release 4 to 5: who may listen for commands. The functions of release 5 follow: `commit` parses its input once, inserts
-- all its events in one statement, and does nothing for the parts that a call leaves empty.

create unlogged table eventstore.processes (
    process uuid        primary key,
    queues  text[]      not null,
    slots   integer     not null,
    free    integer     not null,
    seat    smallint,
    seen_at timestamptz not null
);
