"""What clients speak to: HTTP and server-sent events. No rule about jobs lives here, and no pixel.

A tour, in reading order:

- `app`           the routes, and what is around them
- `commands`      the handlers that write: submit, cancel, retry
- `jobs`          the handlers that read jobs
- `stream`        the live stream of a job
- `feed`          the whole log, page by page and live
- `anchors`       the handler of /v1/anchors
- `projections`   the handler of /v1/projections
- `models`        the handlers of /v1/models
- `health`        /healthz, /readyz, /metrics
- `requests`      a POST's body, checked and normalised: pure
- `inputs`        parameters and bodies, as they are read off a request
- `preferences`   `Prefer: wait`
- `cursors`       the opaque cursors of lists and of the log: pure
- `schemas`       the type of every answer: pure
- `responses`     answers made from views and events: pure
- `lines`         an event as a line of a log: pure
- `frames`        the server-sent events: pure
- `event_stream`  a response that goes on; heartbeats; how clients are sent away
- `errors`        the one table of errors, and the shape of each
- `services`      what the handlers work with, given by the composition root
- `middleware`    request ids and the access log; `metrics` counts
- `operations`    what OpenAPI says of each route, with `examples`; `openapi` makes the document of it and of the types,
                  `docs` serves it
"""
