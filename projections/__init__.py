"""Read models: pure views of jobs and API keys, the tables that store them, and the queries that read them.

- `job_view`      `JobView` and `evolve_view`, which applies one event to a view
- `progress`      a job's weighted progress
- `projector`     writes the tables, as a subscription
- `rebuild`       builds a new generation of the tables and swaps it in
- `queries`       a job's row and the tail of its stream, read in one statement
- `verifier`      compares the tables with the log
- `keys`, `key_queries`, `anchor_queries`  API keys and anchors, folded from the log on each read
"""
