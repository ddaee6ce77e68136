"""The runners: what claims commands, renders items, keeps the objects and records what happened.

A tour, in reading order:

- `consumer`    claims commands, keeps their leases, and runs as many at once as it has slots
- `steps`       one claimed step, from its first missing item to the commit that finishes it
- `storing`     reads and writes an attempt's images, and waits while the store is away
- `attempt`     buffers the results of an attempt until they are committed
- `worker`      the runner's part of a kind of step: `generation`, and `upscalers.worker`
- `selection`   which engine and which model a step is rendered by
- `item_renderer`  renders one item, by `fake_renderer` or by the engine process
- `engines`     requests to pictures: `landscape` paints with Pillow alone; `process` and `engine_host` are the two ends
                of the engine process, `protocol` what they say, `batching` what joins several jobs' items
- `upscalers`   pictures to larger pictures
- `faults`      failures on request, for tests

Nothing here decides what comes next; that is the orchestrator's part.
"""
