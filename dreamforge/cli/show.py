"""How the command line shows jobs: as tables, and a running one as it goes on."""

import io
import sys
from collections.abc import Iterable
from datetime import datetime

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from dreamforge.client.api_client import JsonObject
from dreamforge.client.sse import Message

_STYLES = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "running": "cyan", "queued": "dim"}
_SHORT = 40
"""How much of a prompt a list shows, in characters."""
# What a history tells of an event's data, in this order, and how.
_TOLD = {
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
    """From now on, print what the terminal's encoding lacks as a question mark, where Python would fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def job_table(job: JsonObject) -> Table:
    """A job and its steps."""
    table = _table(f"Job {job['id']} · {_status(job['status'])}", "step", "status", "attempt", "started", "finished")
    for step in job["steps"]:
        times = [_time(step["started_at"]), _time(step["finished_at"])]
        table.add_row(step["name"], _status(step["status"]), str(step["attempt"]), *times)
    table.caption = f"{job['summary']['completed']} of {images(job['summary']['count'])} finished"
    if job["error_code"]:
        table.caption += f"\n{job['error_code']}: {escape(job['error_message'])}"
    return table


def images(count: int) -> str:
    """So many images."""
    return f"{count:,} image{'' if count == 1 else 's'}"


def job_list_table(jobs: Iterable[JsonObject]) -> Table:
    """Many jobs, a line each."""
    table = _table("Jobs", "id", "status", "created", "updated", "images", "prompt")
    for job in jobs:
        done = f"{job['summary']['completed']}/{job['summary']['count']}"
        times = [_day(job["created_at"]), _day(job["updated_at"])]
        table.add_row(job["id"], _status(job["status"]), *times, done, escape(_short(job.get("prompt"))))
    return table


def artifact_table(artifacts: Iterable[JsonObject]) -> Table:
    """The artifacts of a job."""
    table = _table("Artifacts", "step", "item", "size", "seed", "bytes", "key")
    for one in artifacts:
        numbers = [str(one["seed"]), f"{one['bytes']:,}"]
        table.add_row(one["step"], str(one["item_index"]), f"{one['width']}x{one['height']}", *numbers, one["s3_key"])
    return table


def history_table(events: Iterable[JsonObject]) -> Table:
    """A job's history as the log holds it."""
    table = _table("History", "version", "time", "code", "step", "details")
    for event in events:
        details = escape(_details(msgspec.json.decode(event["data"], type=JsonObject)))
        table.add_row(str(event["version"]), _time(event["ts"]), event["code"], event["step"] or "", details)
    return table


def log_text(line: JsonObject) -> str:
    """A line of a job's log, for people."""
    return f"{_time(line['ts'])}  {line['level']:<7}  {line['code']:<20}  {line['message']}"


def event_text(event: JsonObject) -> str:
    """An event of the whole log, in a line."""
    details = _details(msgspec.json.decode(event["data"], type=JsonObject))
    origin = f"{event['category']} {event['stream']} {event['version']:>4}"
    return f"{_day(event['ts'])}  {origin}  {event['code']:<20}  {event['step'] or '':<8}  {details}".rstrip()


class Course:
    """What a job's stream has told so far: how far each step and the whole have come, and how it ended."""

    def __init__(self, job: JsonObject) -> None:
        self.count: int = job["summary"]["count"]
        self.status: str = job["status"]
        self.progress = 0.0
        self.states = {step["name"]: "queued" for step in job["steps"]}
        self._items: dict[str, set[int]] = {name: set() for name in self.states}

    def done(self, step: str) -> int:
        """How many images a step has written."""
        return len(self._items[step])

    def update(self, message: Message) -> str | None:
        """Follow one message; a line to print where there are no bars, if it is worth one."""
        data = msgspec.json.decode(message.data, type=JsonObject)
        match message.event:
            case "progress":
                self.progress = data["progress"]
                return None
            case "artifact":
                self._items[data["step"]].add(data["item_index"])
                return f"{data['step']} {self.done(data['step'])}/{self.count}"
            case "log":
                self._follow(data)
        return str(data["message"])

    def _follow(self, data: JsonObject) -> None:
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


def follow(job: JsonObject, messages: Iterable[Message], console: Console) -> str:
    """Show a job's stream to its end, with bars on a terminal and in lines elsewhere. The job's last status."""
    course = Course(job)
    if console.is_terminal:
        _show_bars(course, messages, console)
    else:
        for message in messages:
            line = course.update(message)
            if line is not None:
                console.print(line, markup=False, highlight=False, soft_wrap=True)
    return course.status


def _show_bars(course: Course, messages: Iterable[Message], console: Console) -> None:
    columns = (
        SpinnerColumn(finished_text=" "),
        TextColumn("{task.description:<9}"),
        BarColumn(bar_width=40),
        TextColumn("{task.fields[amount]:>7}"),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bars:
        steps = {name: bars.add_task(name, total=course.count, amount="", state="") for name in course.states}
        whole = bars.add_task("overall", total=1.0, amount="", state="")
        for message in messages:
            course.update(message)
            for name, bar in steps.items():
                done, state = course.done(name), _status(course.states[name])
                bars.update(bar, completed=done, amount=f"{done}/{course.count}", state=state)
            state = _status(course.status)
            bars.update(whole, completed=course.progress, amount=f"{course.progress:.0%}", state=state)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _short(prompt: str | None) -> str:
    """The beginning of a prompt, in one line; nothing of it steers the terminal."""
    line = "".join(one if one.isprintable() else " " for one in prompt or "")
    return line if len(line) <= _SHORT else f"{line[: _SHORT - 1]}…"


def _status(text: str) -> str:
    return f"[{_STYLES.get(text, 'default')}]{text}[/]"


def _day(ts: str) -> str:
    return datetime.fromisoformat(ts).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _time(ts: str | None) -> str:
    return "" if ts is None else datetime.fromisoformat(ts).astimezone().strftime("%H:%M:%S.%f")[:-3]


def _details(data: JsonObject) -> str:
    nested = {key: value for part in data.values() if isinstance(part, dict) for key, value in part.items()}
    told = nested | data
    if "width" in told:
        told["size"] = f"{told['width']}x{told['height']}"
    if "count" in told:
        told["count"] = images(told["count"])
    if "erased" in told:
        told["erased"] = ", ".join(told["erased"])
    return ", ".join(form.format(told[key]) for key, form in _TOLD.items() if told.get(key) is not None)
