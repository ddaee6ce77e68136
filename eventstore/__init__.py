"""An event store on PostgreSQL: the log, subscriptions and the outbox of commands. It knows no application.

The application gives texts and gets texts. Its codec, its categories and its queues are its own; a subscription is told
by `is_known(code, schema_version)` which events it can handle.

In reading order:

- `events`        an event as it is appended and as it is read
- `log`           commit (the only function that writes) and the reads
- `committer`     merges a process's transitions into few commits
- `subscription`  reads the log, and commits a handler's writes together with its checkpoint
- `tailer`        feeds the live subscribers of a process from one bounded ring
- `outbox`        claim, extend and settle commands
- `notifier`      notifies waiting tasks, in all processes, that the log or the outbox has changed
- `database`      connections that come back by themselves
- `schema`        installs and migrates the database
- `integrity`     hash chains, verification, exported bundles and signed anchors
"""
