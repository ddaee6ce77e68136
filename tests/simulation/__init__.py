"""A deterministic simulation of the service's protocol: any interleaving, in one thread, replayed from its seed.

The service's own `decide`, `apply`, `react`, `evolve`, `JobService`, `Orchestrator` and `Subscription` run unchanged,
and pause at every effect. The effects change a model in memory.

- `effects`     an effect, and an actor: a coroutine that is run one effect at a time, or dropped, as by a crash
- `storage`     the model of the log, the outbox, the checkpoints, the read model and the objects
- `invariants`  what must hold after every event and at the end
- `world`       time, random numbers and faults
- `connection`  counterparts of `Log` and `Committer`, in which every call is an effect
- `process`     a process that can crash, freeze and lose its connections
- `clients`     create, cancel and retry jobs
- `runner`      a counterpart of `runners.consumer` and `runners.steps`, which need threads and a clock
- `subscriber`  a process that runs a subscription, and a handler that maintains the read model
- `reconciler`  a counterpart of `orchestrator.reconciler`: purges and rebuilds the queues
- `episode`     schedules the processes, causes faults, and checks the end
- `planted_bugs`  bugs that the simulation must find

`make simulate` runs a million steps; `python -m tests.simulation --seed N` replays one episode.
"""
