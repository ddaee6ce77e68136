"""Validates a service from outside: batches with a seed for each item, in the legacy form.

`python scripts/validate_m4.py [--base URL]` submits small jobs and prints a line for each check; exits 0 if all are ok.
"""

import sys

import msgspec
import validation
from validation import Report, Run, Wrong, expect

from dreamforge.client.api_client import Client
from dreamforge.client.responses import JsonObject

BATCH = {"type": "generate", "prompt": "a castle", "width": 64, "height": 64, "steps": 2, "count": 3, "seed": 1234}
SINGLE = BATCH | {"count": 1, "seed": 0}
STAGES = {"queued_to_start": 0.1, "sampling": 0.8, "finalize": 0.1}


def validate(client: Client, report: Report) -> None:
    """Every check, in an order that tells most by the first that fails."""
    run = report.attempt("A batch is accepted, streamed and ends", lambda: Run.of(client, BATCH))
    if run is not None:
        report.check(
            validation.succeeded,
            one_step_alone,
            seeds_are_distinct,
            artifacts_are_listed_by_item,
            validation.keys_tell_all,
            validation.downloads_are_whole,
            progress_is_complete,
            artifacts_are_streamed,
            validation.history_agrees,
            validation.stream_ends,
            logs_tell_the_history,
            logs_have_a_tail,
            run=run,
        )
        again = report.attempt("The same batch runs again", lambda: Run.of(client, BATCH))
        if again is not None:
            report.attempt("The same base seed gives the same seeds", lambda: _expect_same_seeds(run, again))
    single = report.attempt("A single image with seed 0 is made", lambda: Run.of(client, SINGLE))
    if single is not None:
        report.check(validation.succeeded, seed_is_taken_as_it_is, run=single)


def one_step_alone(run: Run) -> None:
    """There is one step, generate, and the summary counts its images."""
    steps = [(step["name"], step["status"]) for step in run.job["steps"]]
    expect("the steps", steps, [("generate", "succeeded")])
    expect("the summary", run.job["summary"], {"count": 3, "completed": 3})


def seeds_are_distinct(run: Run) -> None:
    """Each item has a seed of its own, from 1 to 2^31-1."""
    seeds = _seeds(run)
    expect("the number of distinct seeds", len(set(seeds)), 3)
    if not all(1 <= seed < 2**31 for seed in seeds):
        raise Wrong(f"the seeds are {seeds}")


def seed_is_taken_as_it_is(run: Run) -> None:
    """The only image of a job has the job's seed, 0 too."""
    expect("the seeds", _seeds(run), [0])


def artifacts_are_listed_by_item(run: Run) -> None:
    """There is an artifact of the wanted size for each item, in order."""
    found = [(one["step"], one["item_index"], one["width"], one["height"], one["format"]) for one in run.artifacts]
    expect("the artifacts", found, [("generate", item, 64, 64, "png") for item in range(3)])


def progress_is_complete(run: Run) -> None:
    """Progress is 1.0, every item's too, with the stages of a single step."""
    progress = run.client.progress(run.job_id, include=None)
    expect("its members", set(progress), {"progress", "items", "stages"})
    expect("progress", progress["progress"], 1.0)
    expect("its items", progress["items"], [{"item_index": item, "progress": 1.0} for item in range(3)])
    expect("its stages", {stage["name"]: stage["weight"] for stage in progress["stages"]}, STAGES)


def artifacts_are_streamed(run: Run) -> None:
    """The stream has an artifact event for each item, and the seed with it."""
    streamed = {data["item_index"]: data["seed"] for data in run.data("artifact")}
    expect("the streamed artifacts", streamed, dict(enumerate(_seeds(run))))


def logs_tell_the_history(run: Run) -> None:
    """/logs is NDJSON with a line for each event of the history, oldest first."""
    with run.client.get_stream(f"/v1/jobs/{run.job_id}/logs") as response:
        expect("the type", response.headers["content-type"].partition(";")[0], "application/x-ndjson")
    lines = _logs(run)
    told = [(line["ts"], line["level"], line["code"]) for line in lines]
    expect("the lines", told, [(one["ts"], one["level"], one["code"]) for one in run.client.events(run.job_id)])
    for line in lines:
        expect("the job of a line", line["job_id"], run.job_id)
        if not line["message"]:
            raise Wrong(f"the line {line} has no message")
    written = {line["item_index"]: line["seed"] for line in lines if line["code"] == "artifact.written"}
    expect("the seeds in the lines", written, dict(enumerate(_seeds(run))))


def logs_have_a_tail(run: Run) -> None:
    """/logs?tail=3 gives the last three lines."""
    expect("the tail", _logs(run, tail=3), _logs(run)[-3:])


def _logs(run: Run, tail: int | None = None) -> list[JsonObject]:
    return [msgspec.json.decode(line) for line in run.client.logs(run.job_id, tail=tail)]


def _seeds(run: Run) -> list[int]:
    return [one["seed"] for one in run.artifacts]


def _expect_same_seeds(run: Run, again: Run) -> None:
    if run.job_id == again.job_id:
        raise Wrong("it is the same job")
    expect("the seeds of the second run", _seeds(again), _seeds(run))


if __name__ == "__main__":
    sys.exit(validation.main(__doc__, validate))
