"""The rules about jobs: a pure core, and the process manager that runs it.

A tour, in reading order:

- `step_kinds`       the table of the kinds of steps, and of what each needs
- `plan`             seeds, sizes and keys of a job's items, as pure functions of its request
- `state`            `JobState`, and `apply`, the fold of a job's history
- `decisions`        `decide`: which events a command leads to, or why it is refused
- `reactions`        `react`: what follows from an event, the table of reactions
- `quarantine`       whether a job is set aside, by its history
- `service`          loads a job, decides, appends; repeats after a conflict
- `process_manager`  the subscription that runs `react` over the log
- `pending`          the command that a job is waiting for, by its history
- `reconciler`       compares the queues with the log, and sends missing commands
"""
