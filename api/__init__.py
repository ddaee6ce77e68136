"""The HTTP API and its live streams. Rules about jobs are in `orchestrator`.

In reading order:

- `app`           all routes, and the application with its middleware
- `routing`       a route with its scopes and its OpenAPI operation; handlers get the request and the services
- `services`      the dependencies of the handlers
- `access`        authentication, scopes
- `admission`     limits on requests and open jobs

Routes and handlers, by noun:

- `job_commands`  submit, cancel, retry
- `jobs`          reads of jobs
- `job_stream`    the live stream of a job
- `log_feed`      the whole log, page by page and live
- `anchors`, `projections`, `models`, `health`, `docs`

What they use:

- `requests`      the body of POST /v1/jobs, validated and normalised: pure
- `inputs`        parameters and bodies of requests
- `waiting`       `Prefer: wait`
- `cursors`       the opaque cursors of lists and of the log: pure
- `stream_tokens` the tokens of browser pages for one stream
- `schemas`       the types of answers: pure
- `responses`     answers made from views and events: pure
- `event_lines`     an event as a line of a log: pure
- `frames`        the frames of server-sent events
- `event_stream`  the response and the route of a live stream, heartbeats
- `errors`        the table of error codes, and the response of each
- `middleware`    request ids, access log and headers; `metrics` counts requests, `hosts` checks Host
- `openapi`       the OpenAPI document and the operations, with `examples`
"""
