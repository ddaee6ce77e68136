"""Renders jobs for the command line: as tables, and the progress of a running one."""

import io
import sys
from collections.abc import Iterable
from datetime import datetime

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from dreamforge.client.responses import JsonObject
from dreamforge.client.sse import ServerSentEvent

_STATUS_STYLES = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "running": "cyan", "queued": "dim"}
_MAX_PROMPT_LENGTH = 40
"""The length of a prompt in a list, in characters."""
# The members of an event's data that a history shows, in this order, and their formats.
_EVENT_DETAIL_FORMATS = {
    "count": "{}",
    "item_index": "item {}",
    "size": "{}",
    "scale": "upscaled by {}",
    "seed": "seed {}",
    "bytes": "{:,} bytes",
    "attempt": "attempt {}",
    "engine": "engine {}",
    "status": "{}",
    "erased": "{}",
    "reason": "{}",
    "delay_s": "again in {:g} s",
    "error_code": "{}",
    "error_message": "{}",
}


def replace_unprintable() -> None:
    """Print a question mark for characters that the terminal's encoding lacks, where Python would raise an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def job_table(job: JsonObject) -> Table:
    """A job and its steps."""
    table = titled_table(
        f"Job {job['id']} · {_status_markup(job['status'])}", "step", "status", "attempt", "started", "finished"
    )
    for step in job["steps"]:
        times = [_local_time(step["started_at"]), _local_time(step["finished_at"])]
        table.add_row(step["name"], _status_markup(step["status"]), str(step["attempt"]), *times)
    table.caption = f"{job['summary']['completed']} of {image_count_text(job['summary']['count'])} finished"
    if job["error_code"]:
        table.caption += f"\n{job['error_code']}: {escape(job['error_message'])}"
    return table


def titled_table(title: str, *columns: str) -> Table:
    """A table with a title, whose long cells are folded."""
    table = Table(title=title, title_justify="left", caption_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def image_count_text(count: int) -> str:
    """A number of images, as text."""
    return f"{count:,} image{'' if count == 1 else 's'}"


def job_list_table(jobs: Iterable[JsonObject]) -> Table:
    """Jobs, one per line."""
    table = titled_table("Jobs", "id", "status", "created", "updated", "images", "prompt")
    for job in jobs:
        done = f"{job['summary']['completed']}/{job['summary']['count']}"
        times = [_local_date_time(job["created_at"]), _local_date_time(job["updated_at"])]
        table.add_row(
            job["id"], _status_markup(job["status"]), *times, done, escape(_shorten_prompt(job.get("prompt")))
        )
    return table


def artifact_table(artifacts: Iterable[JsonObject]) -> Table:
    """The artifacts of a job."""
    table = titled_table("Artifacts", "step", "item", "size", "seed", "bytes", "key")
    for one in artifacts:
        numbers = [str(one["seed"]), f"{one['bytes']:,}"]
        table.add_row(one["step"], str(one["item_index"]), f"{one['width']}x{one['height']}", *numbers, one["s3_key"])
    return table


def history_table(events: Iterable[JsonObject]) -> Table:
    """A job's events."""
    table = titled_table("History", "version", "time", "code", "step", "details")
    for event in events:
        details = escape(_event_details_text(msgspec.json.decode(event["data"], type=JsonObject)))
        table.add_row(str(event["version"]), _local_time(event["ts"]), event["code"], event["step"] or "", details)
    return table


def log_line_text(line: JsonObject) -> str:
    """A line of a job's log, as text."""
    return f"{_local_time(line['ts'])}  {line['level']:<7}  {line['code']:<20}  {line['message']}"


def event_line_text(event: JsonObject) -> str:
    """An event of the log, in one line."""
    details = _event_details_text(msgspec.json.decode(event["data"], type=JsonObject))
    origin = f"{event['category']} {event['stream']} {event['version']:>4}"
    return (
        f"{_local_date_time(event['ts'])}  {origin}  {event['code']:<20}  {event['step'] or '':<8}  {details}".rstrip()
    )


class JobProgress:
    """The state of a job, accumulated from its stream: its status and progress, and those of its steps."""

    def __init__(self, job: JsonObject) -> None:
        self.count: int = job["summary"]["count"]
        self.status: str = job["status"]
        self.progress = 0.0
        self.states = {step["name"]: "queued" for step in job["steps"]}
        self._items: dict[str, set[int]] = {name: set() for name in self.states}

    def images_written(self, step: str) -> int:
        """How many images a step has written."""
        return len(self._items[step])

    def apply_message(self, message: ServerSentEvent) -> str | None:
        """Apply a message. Returns a line to print if there are no progress bars; None for no line."""
        data = msgspec.json.decode(message.data, type=JsonObject)
        match message.event:
            case "progress":
                self.progress = data["progress"]
                return None
            case "artifact":
                self._items[data["step"]].add(data["item_index"])
                return f"{data['step']} {self.images_written(data['step'])}/{self.count}"
            case "log":
                self._apply_log_event(data)
        return str(data["message"])

    def _apply_log_event(self, data: JsonObject) -> None:
        match data["code"]:
            case "step.start":
                self.states[data["step"]] = self.status = "running"
            case "step.retry":
                self.states[data["step"]] = "queued"
            case "job.retry_requested":
                failed = [step for step, state in self.states.items() if state == "failed"]
                self.states |= dict.fromkeys([*failed, data["step"]], "queued")
            case "step.finish":
                self.states[data["step"]] = data["payload"]["status"]
            case "job.finish":
                self.status = data["payload"]["status"]


def follow_job(job: JsonObject, messages: Iterable[ServerSentEvent], console: Console) -> str:
    """Show a job's stream until it ends: progress bars on a terminal, else lines. Returns the job's last status."""
    job_progress = JobProgress(job)
    if console.is_terminal:
        _show_progress_bars(job_progress, messages, console)
    else:
        for message in messages:
            line = job_progress.apply_message(message)
            if line is not None:
                console.print(line, markup=False, highlight=False, soft_wrap=True)
    return job_progress.status


def _show_progress_bars(job_progress: JobProgress, messages: Iterable[ServerSentEvent], console: Console) -> None:
    columns = (
        SpinnerColumn(finished_text=" "),
        TextColumn("{task.description:<9}"),
        BarColumn(bar_width=40),
        TextColumn("{task.fields[amount]:>7}"),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bars:
        steps = {
            name: bars.add_task(name, total=job_progress.count, amount="", state="") for name in job_progress.states
        }
        overall = bars.add_task("overall", total=1.0, amount="", state="")
        for message in messages:
            job_progress.apply_message(message)
            for name, bar in steps.items():
                done, state = job_progress.images_written(name), _status_markup(job_progress.states[name])
                bars.update(bar, completed=done, amount=f"{done}/{job_progress.count}", state=state)
            state = _status_markup(job_progress.status)
            bars.update(overall, completed=job_progress.progress, amount=f"{job_progress.progress:.0%}", state=state)


def _shorten_prompt(prompt: str | None) -> str:
    """The beginning of a prompt, in one line, without control characters."""
    line = "".join(character if character.isprintable() else " " for character in prompt or "")
    return line if len(line) <= _MAX_PROMPT_LENGTH else f"{line[: _MAX_PROMPT_LENGTH - 1]}…"


def _status_markup(text: str) -> str:
    return f"[{_STATUS_STYLES.get(text, 'default')}]{text}[/]"


def _local_date_time(ts: str) -> str:
    return datetime.fromisoformat(ts).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _local_time(ts: str | None) -> str:
    return "" if ts is None else datetime.fromisoformat(ts).astimezone().strftime("%H:%M:%S.%f")[:-3]


def _event_details_text(data: JsonObject) -> str:
    nested = {key: value for part in data.values() if isinstance(part, dict) for key, value in part.items()}
    fields = nested | data
    if "width" in fields:
        fields["size"] = f"{fields['width']}x{fields['height']}"
    if "count" in fields:
        fields["count"] = image_count_text(fields["count"])
    if "erased" in fields:
        fields["erased"] = ", ".join(fields["erased"])
    return ", ".join(
        form.format(fields[key]) for key, form in _EVENT_DETAIL_FORMATS.items() if fields.get(key) is not None
    )
