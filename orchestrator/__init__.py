"""The rules about jobs: a pure core, and the one small loop that runs it.

A tour, in reading order:

- `plan`       seeds, sizes and keys of a job's items, as pure functions of its request
- `state`      `JobState`, and `apply`, the fold of a job's history
- `decisions`  `decide`: which events a command leads to, or why it is refused
- `reactions`  `react`: what follows from an event, the table of DESIGN on one screen
- `quarantine` whether a job is set aside, by its marks alone
- `transact`   fold, decide, append; again when another came first
- `loop`       the subscription that runs `react` over the log
"""
