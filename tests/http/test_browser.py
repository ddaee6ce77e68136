"""What a browser makes of the service: headless Chromium, Debian's package."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import BrowserContext, Page, Request, async_playwright

from artifacts.object_store import S3Config
from dreamforge.embedded.processes import choose_free_ports
from tests.kit import Api, Service, eventually, roles_environ

CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is missing: install Debian's chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
FOLLOW = """path => {
    window.told = [];
    window.source = new EventSource(path);
    for (const kind of ["message", "log", "artifact", "error", "progress"])
        source.addEventListener(kind, event => {
            if (event instanceof MessageEvent) told.push({kind, id: event.lastEventId, data: event.data});
        });
}"""
OPEN, CLOSED = 1, 2
QUIET_S = 5
"""More than twice the two seconds after which an EventSource comes back."""


@pytest.fixture(scope="module")
async def browser(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[BrowserContext]:
    """A browser without a past."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("browser"), executable_path=CHROMIUM, headless=True, args=FLAGS
        )
        yield browser
        await browser.close()


@pytest.fixture
async def page(browser: BrowserContext) -> AsyncIterator[Page]:
    """An empty page."""
    page = await browser.new_page()
    yield page
    await page.close()


class Server:
    """An API on a port of its own, where it is started again; the job's other roles run beside it."""

    def __init__(self, environ: dict[str, str], stack: ExitStack) -> None:
        [port] = choose_free_ports(1, ())
        self._environ = environ | {"DF_PORT": str(port)}
        self.service = Service("api", self._environ)
        stack.callback(self.stop)
        self._runner = Service("runner", environ)
        for service in (self._runner, Service("orchestrator", environ)):
            stack.callback(service.stop)

    @contextmanager
    def job_waits(self) -> Iterator[None]:
        """No runner works meanwhile, so that no machine is too fast for what happens."""
        self._runner.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._runner.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End what runs of it."""
        self.service.stop()

    def restart(self, end: Callable[[Service], object]) -> None:
        """End it as told, and start it where it was."""
        end(self.service)
        self.service = Service("api", self._environ)
        assert self.service.url

    def requests(self) -> list[Any]:
        """The requests that it has answered since its start."""
        lines = [json.loads(line) for line in self.service.lines]
        return [line for line in lines if line["event"] == "request"]


@pytest.fixture
def server(db_url: str, s3_config: S3Config) -> Iterator[Server]:
    """It, for one test."""
    with ExitStack() as stack:
        yield Server(roles_environ(db_url, s3_config), stack)


async def test_an_event_source_follows_a_job_through_restarts_and_stops_at_its_end(server: Server, page: Page) -> None:
    """Given a server that is killed and another time stopped midway, then each event comes once and in order.

    The browser resumes by itself, and after the 204 it never comes back.
    """
    api = Api(server.service.url)
    job_id = api.create(count=12, width=512, height=512)
    await page.goto(f"{api.base}/v1/")
    await page.evaluate(FOLLOW, f"/v1/jobs/{job_id}/progress/stream")
    for end in (Service.kill, Service.stop):
        seen = len(await events(page))
        await page.wait_for_function("count => told.filter(one => one.kind != 'progress').length > count + 3", arg=seen)
        with server.job_waits():
            assert api.job(job_id)["status"] == "running"
            await asyncio.to_thread(server.restart, end)
            await page.wait_for_function(f"source.readyState == {OPEN}")
    await page.wait_for_function(f"source.readyState == {CLOSED}", timeout=120_000)
    answered = await eventually(lambda: _told_to_stay_away(server, job_id), what="the 204 in the server's log")
    await asyncio.sleep(QUIET_S)
    assert server.requests() == answered
    history = api.history(job_id)
    api.close()
    told = await events(page)
    assert [one["id"] for one in told] == [str(event["version"]) for event in history]
    assert [one["data"]["code"] for one in told] == [event["code"] for event in history]
    assert [one["data"]["payload"] for one in told] == [json.loads(event["data"]) for event in history]
    assert {one["kind"] for one in told} == {"log", "artifact"}
    assert json.loads(await page.evaluate("told.at(-1).data"))["progress"] == 1.0


async def _told_to_stay_away(server: Server, job_id: str) -> list[Any]:
    """All requests, once the last of them is the one that ended the stream."""
    answered = server.requests()
    [*_, last] = answered
    is_end = (last["http_status"], last["path"]) == (204, f"/v1/jobs/{job_id}/progress/stream")
    return answered if is_end else []


async def events(page: Page) -> list[Any]:
    """The job's events that the page was told."""
    told = await page.evaluate("told.filter(one => one.kind != 'progress')")
    return [one | {"data": json.loads(one["data"])} for one in told]


async def test_the_documentation_is_readable_without_a_network(service: Service, page: Page, tmp_path: Path) -> None:
    """Given /docs, then every operation is on the page, nothing is fetched from elsewhere, and nothing breaks."""
    asked: list[Request] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request))  # noqa: PLW0108  # playwright takes no built-in function
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(f"{request.url} failed"))
    await page.set_viewport_size({"width": 1280, "height": 2000})
    await page.goto(f"{service.url}/docs")
    await page.wait_for_selector(".opblock")
    shown = await page.locator(".opblock-summary-path").evaluate_all("all => all.map(one => one.dataset.path)")
    paths = await page.evaluate("fetch('/openapi.json').then(answer => answer.json()).then(document => document.paths)")
    await page.screenshot(path=tmp_path / "docs.png", full_page=True)
    assert sorted(shown) == sorted(path for path, operations in paths.items() for _ in operations)
    assert complaints == []
    assert [one.url for one in asked if not one.url.startswith((f"{service.url}/", "data:"))] == []
    assert len(asked) >= 4
