"""Validates a service from outside: chaining, generate and then upscale.

`python scripts/validate_m5.py [--base URL]` submits small jobs and prints a line for each check; exits 0 if all are ok.
"""

import sys
from functools import partial

import validation
from validation import Report, Run, expect

from dreamforge.client.api_client import Client
from dreamforge.client.responses import ApiError, JsonObject

STEPS = ["generate", "upscale"]
GENERATE: JsonObject = {"type": "generate", "prompt": "a castle", "width": 64, "height": 64, "steps": 2, "count": 3}
UPSCALE: JsonObject = {"type": "upscale", "scale": 2, "mode": "image"}
REFUSAL = {"field": "pipeline", "reason": "M5 only supports [generate, upscale]"}
REJECTED: dict[str, list[JsonObject]] = {
    "without an upscale": [GENERATE],
    "in the wrong order": [UPSCALE, GENERATE],
    "with a third step": [GENERATE, UPSCALE, UPSCALE],
    "of an unknown type": [GENERATE, {"type": "blur"}],
    "with a scale of 3": [GENERATE, UPSCALE | {"scale": 3}],
    "with an unknown mode": [GENERATE, UPSCALE | {"mode": "magic"}],
}


def validate(client: Client, report: Report) -> None:
    """Every check, in an order that tells most by the first that fails."""
    run = report.attempt("A pipeline job is accepted, streamed and ends", lambda: Run.of(client, _pipeline()))
    if run is not None:
        validation.say(f"\nA sample of its stream:\n\n{validation.sample(run.transcript)}\n")
        report.check(
            validation.succeeded,
            two_ordered_steps,
            summary_is_the_last_steps,
            artifacts_of_both_steps,
            sizes_double,
            upscaled_items_keep_their_seeds,
            validation.keys_tell_all,
            validation.downloads_are_whole,
            progress_is_complete,
            progress_never_falls,
            transitions_are_log_events,
            transitions_are_step_events_on_request,
            validation.history_agrees,
            validation.stream_ends,
            run=run,
        )
    chained = report.attempt("A job with `chain` is accepted, streamed and ends", lambda: Run.of(client, _chain(4)))
    if chained is not None:
        report.check(
            validation.succeeded, two_ordered_steps, sizes_quadruple, validation.downloads_are_whole, run=chained
        )
    legacy = report.attempt("A legacy job is accepted, streamed and ends", lambda: Run.of(client, GENERATE))
    if legacy is not None:
        report.check(validation.succeeded, one_step_alone, validation.downloads_are_whole, run=legacy)
    for what, pipeline in REJECTED.items():
        report.attempt(f"A pipeline {what} is refused", partial(_rejected, client, pipeline))
    report.skip("What a failed step leaves behind", "start the service with DF_FAKE_FAIL=upscale to see it")


def two_ordered_steps(run: Run) -> None:
    """There are two steps, generate and then upscale, and the second began after the first had ended."""
    expect("the steps", [step["name"] for step in run.job["steps"]], STEPS)
    first, second = run.job["steps"]
    expect("their states", [first["status"], second["status"]], ["succeeded"] * 2)
    if first["finished_at"] > second["started_at"]:
        raise AssertionError(f"upscale began at {second['started_at']}, before {first['finished_at']}")


def one_step_alone(run: Run) -> None:
    """There is one step, generate, and all artifacts are its."""
    expect("the steps", [step["name"] for step in run.job["steps"]], ["generate"])
    expect("the artifacts' items", [one["item_index"] for one in run.of_step("generate")], [0, 1, 2])
    expect("the artifacts' sizes", _sizes(run, "generate"), {(64, 64)})
    expect("the chain", run.job["params"]["chain"], None)


def summary_is_the_last_steps(run: Run) -> None:
    """The summary counts the images of the last step."""
    expect("the summary", run.job["summary"], {"count": 3, "completed": 3})


def artifacts_of_both_steps(run: Run) -> None:
    """Both steps have an artifact for each item, listed by step, then item."""
    listed = [(one["step"], one["item_index"]) for one in run.artifacts]
    expect("the artifacts", listed, [(step, item) for step in STEPS for item in range(3)])


def sizes_double(run: Run) -> None:
    """Upscaled images are twice as wide and high: 64x64 becomes 128x128."""
    expect("the sizes", [_sizes(run, step) for step in STEPS], [{(64, 64)}, {(128, 128)}])


def sizes_quadruple(run: Run) -> None:
    """With scale 4, 64x64 becomes 256x256."""
    expect("the sizes", [_sizes(run, step) for step in STEPS], [{(64, 64)}, {(256, 256)}])


def upscaled_items_keep_their_seeds(run: Run) -> None:
    """Each upscaled item has the seed of the generated one, and no two items share one."""
    seeds = [{one["item_index"]: one["seed"] for one in run.of_step(step)} for step in STEPS]
    expect("the upscaled seeds", seeds[1], seeds[0])
    expect("the number of distinct seeds", len(set(seeds[0].values())), 3)


def progress_is_complete(run: Run) -> None:
    """Progress is 1.0 with both stages, whose weights sum to 1; each step's share comes on request."""
    progress = run.client.progress(run.job_id, include=None)
    expect("its members", set(progress), {"progress", "items", "stages"})
    expect("progress", progress["progress"], 1.0)
    expect("its items", progress["items"], [{"item_index": item, "progress": 1.0} for item in range(3)])
    expect("its stages", [stage["name"] for stage in progress["stages"]], STEPS)
    expect("the sum of weights", round(sum(stage["weight"] for stage in progress["stages"]), 6), 1.0)
    expect("per_step", run.client.progress(run.job_id)["per_step"], dict.fromkeys(STEPS, 1.0))


def progress_never_falls(run: Run) -> None:
    """The stream's progress only rises, and ends at 1.0."""
    told = [data["progress"] for data in run.data("progress")]
    expect("its course", told, sorted(told))
    expect("its end", told[-1], 1.0)


def transitions_are_log_events(run: Run) -> None:
    """The stream tells starts and finishes of both steps as log, and has no other kinds of events."""
    expect("the kinds", {message.event for message in run.messages}, {"log", "artifact", "progress"})
    _expect_transitions(run.data("log"))
    told = sorted((data["step"], data["item_index"]) for data in run.data("artifact"))
    expect("the artifacts", told, [(step, item) for step in STEPS for item in range(3)])


def transitions_are_step_events_on_request(run: Run) -> None:
    """With include=step they come as step."""
    transcript = validation.stream_of(run.client, run.job_id, include="step")
    _expect_transitions(validation.data_of(transcript, "step"))


def _expect_transitions(told: list[JsonObject]) -> None:
    transitions = [(data["step"], data["code"]) for data in told if data["code"] in {"step.start", "step.finish"}]
    expect("the transitions", transitions, [(step, code) for step in STEPS for code in ("step.start", "step.finish")])


def _sizes(run: Run, step: str) -> set[tuple[int, int]]:
    return {(one["width"], one["height"]) for one in run.of_step(step)}


def _pipeline() -> JsonObject:
    return {"pipeline": [GENERATE, UPSCALE]}


def _chain(scale: int) -> JsonObject:
    return GENERATE | {"chain": {"upscale": {"scale": scale}}}


def _rejected(client: Client, pipeline: list[JsonObject]) -> None:
    try:
        job = client.create_job({"pipeline": pipeline})
    except ApiError as error:
        expect("the answer", (error.status, error.code, error.details), (422, "invalid_input", REFUSAL))
        return
    raise AssertionError(f"it was accepted, as job {job['id']}")


if __name__ == "__main__":
    sys.exit(validation.main(__doc__, validate))
