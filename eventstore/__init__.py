"""The event log and the outbox of commands. It holds no rule about jobs.

A tour, in reading order:

- `events`        every type of event
- `codec`         events to and from their stored text, older schema versions included
- `log`           commit (the one way in) and the reads
- `committer`     merges a process's transitions into few commits
- `subscription`  reads the log, and commits a handler's writes together with its checkpoint
- `tailer`        feeds the live subscribers of a process from one bounded ring
- `outbox`        claim, extend and settle commands
- `notifier`      notifies waiting tasks, in all processes, that the log or the outbox has changed
- `database`      connections that come back by themselves
- `schema`        installs and migrates the database
- `integrity`     hash chains, verification, exported bundles and signed anchors
"""
