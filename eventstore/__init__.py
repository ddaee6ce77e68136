"""The ground floor: the log of everything that happened, and the outbox. It holds no rule about jobs.

A tour, in reading order:

- `events`        the vocabulary: every event that can stand in the log, as a type
- `codec`         events to and from their stored text, older schema versions included
- `chain`         the formulas of the hash chains, as any verifier would compute them
- `log`           commit (the one way in) and the reads
- `committer`     merges a process's transitions into few commits
- `subscription`  at every fact exactly once: read, react, move the checkpoint
- `tailer`        feeds the live subscribers of a process from one bounded ring
- `outbox`        claim, extend and settle commands
- `notifier`      wakes whoever waits for the log or the outbox
- `database`      connections that come back by themselves
- `schema`        installs and migrates the database
"""
