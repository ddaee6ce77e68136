"""The demo: starts the service with embedded services, and runs one chained job. `make demo` runs it."""

import argparse
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
from PIL import Image
from rich.console import Console

from dreamforge.cli import show
from dreamforge.cli.arguments import parse_image_size, parse_unicode_text
from dreamforge.client.api_client import Client
from dreamforge.client.responses import ClientError, JsonObject
from dreamforge.demo import contact_sheet
from dreamforge.demo.contact_sheet import LabelledImage
from dreamforge.demo.stack import DemoStack, StackError, exit_on_signals
from orchestrator.step_kinds import STEP_KINDS

DEMO_HOME = Path(".demo")
OUTPUT_FOLDER = Path("demo-output")
STEPS = FIRST_STEP, SECOND_STEP = tuple(STEP_KINDS)[:2]

_DEFAULT_PROMPT = "a lighthouse above a stormy sea at dusk"


class DemoError(Exception):
    """The demo failed; the message says why."""


class DemoJobSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters of the demo's job."""

    prompt: str
    count: int
    scale: int
    width: int
    height: int

    def request(self) -> JsonObject:
        """The job to submit."""
        fields = {name: getattr(self, name) for name in ("prompt", "count", "width", "height")}
        return {"type": "generate", **fields, "chain": {SECOND_STEP: {"scale": self.scale}}}

    def size(self, step: str) -> tuple[int, int]:
        """The size of a step's images."""
        factor = self.scale if step == SECOND_STEP else 1
        return self.width * factor, self.height * factor


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo. Returns the exit code: 0 only if every image exists and has its size."""
    show.replace_unprintable()
    spec = parse_spec(argv)
    exit_on_signals()
    # Without a terminal, tables have no given width.
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 160)
    try:
        run(spec, console)
    except (DemoError, StackError, ClientError) as error:
        console.print(f"The demo failed. {error}", style="red", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("Interrupted; everything is stopped.")
        return 128 + signal.SIGINT
    return 0


def run(spec: DemoJobSpec, console: Console) -> None:
    """Start the service, submit the job, follow it, download and check its images, show its history, stop."""
    rendered, enlarged = ("{}x{}".format(*spec.size(step)) for step in STEPS)
    console.print(f'"{spec.prompt}": {spec.count} in {rendered}, then enlarged to {enlarged}.')
    started_at = time.monotonic()
    with DemoStack(DEMO_HOME) as stack, Client(stack.base_url, patience_s=10) as client:
        console.print(
            f"PostgreSQL, S3 and the service run in {DEMO_HOME}/, started in {time.monotonic() - started_at:.1f} s."
        )
        job_id = client.create_job(spec.request())["id"]
        status = show.follow_job(client.job(job_id), client.stream(job_id), console)
        if status != "succeeded":
            job = client.job(job_id)
            raise DemoError(f"The job {status}: {job['error_code']}: {job['error_message']}")
        paths = _download_artifacts(client, job_id)
        check_images(spec, paths)
        _write_contact_sheet(spec, paths)
        console.print(show.history_table(client.events(job_id)))
    console.print(
        f"All {2 * spec.count} images are in {OUTPUT_FOLDER}/, side by side in {OUTPUT_FOLDER}/contact-sheet.png."
    )
    console.print("Everything is stopped.")


def _download_artifacts(client: Client, job_id: str) -> dict[tuple[str, int], Path]:
    """Download every artifact of a job, and delete those of the last demo. Returns the paths by step and item."""
    for step in STEPS:
        shutil.rmtree(OUTPUT_FOLDER / step, ignore_errors=True)
        (OUTPUT_FOLDER / step).mkdir(parents=True)
    (OUTPUT_FOLDER / "contact-sheet.png").unlink(missing_ok=True)
    return {
        (artifact["step"], artifact["item_index"]): client.download(artifact, OUTPUT_FOLDER / artifact["step"])
        for artifact in client.artifacts(job_id)
    }


def check_images(spec: DemoJobSpec, image_paths: dict[tuple[str, int], Path]) -> None:
    """Raise `DemoError` unless there is exactly one image of the right size for each step and item."""
    faults = []
    for step in STEPS:
        for item in range(spec.count):
            path = image_paths.get((step, item))
            if path is None:
                faults.append(f"{step} {item} is missing")
                continue
            with Image.open(path) as image:
                image.load()
                if image.size != spec.size(step):
                    faults.append(f"{path} is {image.width}x{image.height}, not {'{}x{}'.format(*spec.size(step))}")
    if len(image_paths) > 2 * spec.count:
        faults.append(f"there are {len(image_paths)} artifacts, not {2 * spec.count}")
    if faults:
        raise DemoError(f"The job succeeded, but {'; '.join(faults)}.")


def _write_contact_sheet(spec: DemoJobSpec, paths: dict[tuple[str, int], Path]) -> None:
    labels = {step: "{} · {}x{}".format(step, *spec.size(step)) for step in STEPS}
    pairs = [
        (
            LabelledImage(paths[FIRST_STEP, item], labels[FIRST_STEP]),
            LabelledImage(paths[SECOND_STEP, item], labels[SECOND_STEP]),
        )
        for item in range(spec.count)
    ]
    contact_sheet.write_contact_sheet(OUTPUT_FOLDER / "contact-sheet.png", spec.prompt, pairs)


def parse_spec(argv: Sequence[str] | None) -> DemoJobSpec:
    """Parse the variables of `make demo`. Exits with a message if one is invalid."""
    parser = argparse.ArgumentParser(
        prog="make demo",
        usage="make demo PROMPT=… COUNT=… SCALE=2|4 SIZE=512|640x384",
        description="Run one chained job and show what comes out.",
    )
    parser.add_argument("--prompt", default="", type=parse_unicode_text, help="PROMPT, what to paint")
    parser.add_argument("--count", default="", help="COUNT, how many images: 1 to 100")
    parser.add_argument("--scale", default="", help="SCALE, by how much to enlarge: 2 or 4")
    parser.add_argument("--size", default="", help="SIZE of the generated images, like 512 or 640x384")
    args = parser.parse_args(argv)
    # make passes an empty text for an unset variable.
    count, scale = args.count or "4", args.scale or "2"
    if not (count.isascii() and count.isdigit() and 1 <= int(count) <= 100):
        parser.error(f"COUNT is {count!r}; it must be a whole number from 1 to 100")
    if scale not in {"2", "4"}:
        parser.error(f"SCALE is {scale!r}; it must be 2 or 4")
    try:
        width, height = parse_image_size(args.size or "512")
    except argparse.ArgumentTypeError as error:
        parser.error(f"SIZE: {error}")
    if not (16 <= width <= 4096 and 16 <= height <= 4096):
        parser.error(f"SIZE is {args.size!r}; each side must be from 16 to 4096")
    prompt = args.prompt.strip() or _DEFAULT_PROMPT
    return DemoJobSpec(prompt=prompt, count=int(count), scale=int(scale), width=width, height=height)


if __name__ == "__main__":
    sys.exit(main())
