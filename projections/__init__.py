"""What users read: pure views of jobs and models, the tables that keep them, and reads that are never stale.

- `views`          `JobView`, and `evolve`: the only place that knows what an event does to a view
- `progress`       how far a job has come, with weights
- `projector`      keeps the tables: a subscription of its own
- `rebuild`        builds the tables anew beside those that serve, and swaps the two
- `queries`        a job's row of the tables ⊕ the tail of its stream, in one statement
- `models`         `ModelView`, likewise, and the order of models
- `model_queries`  models, folded from the log on each read: they are few
"""
