"""The runners: what claims commands, renders items, keeps the objects and records what happened.

A tour, in reading order:

- `consumer`    claims commands, keeps their leases, and runs as many at once as it has slots
- `steps`       one claimed step, from its first missing item to the commit that finishes it
- `rendering`   one item, from the request to the bytes
- `engines`     requests to pictures: `fake` paints landscapes with Pillow alone
- `upscalers`   pictures to larger pictures
- `encoding`    pictures to bytes and back
- `objects`     the object store: written once, never overwritten
- `errors`      what can go wrong within a step, and whether another attempt may help
- `faults`      failures on request, for tests

Nothing here decides what comes next; that is the orchestrator's part.
"""
