"""Compares Dream Forge with its peers on one machine: see README.md.

- `stack`        the servers, databases and processes of a run
- `cpu`          CPU time by group of processes
- `work`         the jobs, and what peers do for one
- `contestants`  who takes part, and how a turn of each begins and ends
- `peers/`       one module for each peer, with one protocol
- `jobs`         parts 1 and 2: many jobs, and one alone
- `http_part`    part 3, with `http_app` (the bare application), `http_load` and `http_client`
- `sse_part`     part 4, with `sse_app` (the bare fan-out), `sse_publisher` and `sse_client`
- `growth_part` part 9, with `filling`, which appends histories
- `pooled_part` part 10
- `memory_part` part 11
- `rates_part` part 12, with `log_sides` (the logs) and `log_load`, which appends and reads
- `results`      what the parts measure; `figures` has medians, spreads and ratios: pure
- `report`       tables: pure
"""
