"""What clients speak to: HTTP and server-sent events. No rule about jobs lives here, and no pixel.

- `requests`    a POST's body, checked and normalised: pure
- `responses`   the JSON that clients read: pure
- `frames`      the server-sent events of a job: pure
- `errors`      the one table of errors, and the shape of each
- `services`    what the handlers work with, given by the composition root
- `jobs`        the handlers of /v1/jobs
- `stream`      the live stream of a job
- `health`      /healthz and /readyz
- `middleware`  request ids, access log, the body's limit
- `app`         the routes
"""
