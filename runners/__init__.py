"""The runners: what claims commands, renders items, keeps the objects and records what happened.

A tour, in reading order:

- `consumer`    claims commands, keeps their leases, and runs as many at once as it has slots
- `steps`       one claimed step, from its first missing item to the commit that finishes it
- `attempt`     buffers the results of an attempt until they are committed
- `selection`   which engine and which model a step is rendered by
- `item_renderer`  renders one item, by `rendering` or by the engine process
- `rendering`   what needs no model
- `engines`     requests to pictures: `fake` paints landscapes with Pillow alone; `process` and `child` are the two ends
                of the engine process, `messages` what they say, `batches` what joins several jobs' items
- `upscalers`   pictures to larger pictures
- `encoding`    pictures to bytes and back
- `objects`     the object store: written once, never overwritten
- `errors`      what can go wrong within a step, and whether another attempt may help
- `faults`      failures on request, for tests

Nothing here decides what comes next; that is the orchestrator's part.
"""
