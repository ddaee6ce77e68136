"""A deterministic simulation of the service's protocol: any interleaving, in one thread, replayed from its seed.

The decisions are the service's own: `decide`, `apply`, `react`, `evolve`, `JobService`, `Orchestrator` and
`Subscription` run as they are, and wait wherever they have an effect. Behind the effects is a model in memory.

- `effects`     an effect, and an actor: a coroutine that is run one effect at a time, or dropped, as by a crash
- `storage`     the model of the log, the outbox, the checkpoints, the read model and the objects
- `invariants`  what must hold after every event and at the end
- `world`       the time, the dice, and what goes wrong
- `connection`  the faces of `Log` and `Committer`, where every call is an effect
- `process`     what can be killed, frozen and cut off
- `clients`     create, cancel and retry, again and again
- `runner`      `runners.consumer` and `runners.steps` retold, since those need threads and a clock
- `subscriber`  a process that runs a subscription, and the handler that keeps the read model
- `recovery`    an operator who loses the queues, and has them rebuilt
- `episode`     picks who goes on, breaks things, and sees the end of it all
- `planted_bugs`  bugs that are planted, for the simulation to find

`make simulate` runs a million steps; `python -m tests.simulation --seed N` replays one episode.
"""
