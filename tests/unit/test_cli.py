"""The command line: what it sends, what it prints, how it exits."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from dreamforge import cli
from dreamforge.client import Client
from dreamforge.settings import VARIABLES, Settings

JOB = {
    "id": "j1",
    "status": "succeeded",
    "steps": [{"name": "generate", "status": "succeeded", "attempt": 1, "started_at": None, "finished_at": None}],
    "summary": {"count": 2, "completed": 2},
    "error_code": None,
    "error_message": None,
}

Serve = Callable[[dict[str, Any]], list[httpx.Request]]


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings but a test's own."""
    for var in VARIABLES.values():
        for name in var.names:
            monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Answer the command's requests by `METHOD path`, with JSON, a response or an exception; the requests made."""

    def serve(answers: dict[str, Any]) -> list[httpx.Request]:
        requests: list[httpx.Request] = []

        def handler(request: httpx.Request) -> httpx.Response:
            requests.append(request)
            answer = answers[f"{request.method} {request.url.path}"]
            if isinstance(answer, Exception):
                raise answer
            return answer if isinstance(answer, httpx.Response) else httpx.Response(200, json=answer)

        monkeypatch.setattr(cli, "Client", partial(Client, transport=httpx.MockTransport(handler)))
        return requests

    return serve


def stream(outcome: str) -> httpx.Response:
    def log(version: int, code: str, **payload: object) -> str:
        data = {"code": code, "message": f"{code}.", "step": "generate", "payload": payload}
        return f"event: log\ndata: {msgspec.json.encode(data).decode()}\nid: {version}\n\n"

    image = 'event: artifact\ndata: {"code":"artifact.written","step":"generate","item_index":0}\nid: 3\n\n'
    progress = 'event: progress\ndata: {"progress":0.5}\n\n'
    text = log(2, "step.start") + image + progress + log(4, "job.finish", status=outcome)
    return httpx.Response(200, text=text)


def error(status: int, message: str, **details: str) -> httpx.Response:
    return httpx.Response(status, json={"code": "any", "message": message, "details": details})


def test_create_sends_only_what_was_given(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    requests = serve({"POST /v1/jobs": {"job": {"id": "j1", "status": "queued"}}})
    assert cli.main(["jobs", "create", "--prompt", "a knight's castle"]) == 0
    assert msgspec.json.decode(requests[0].content) == {"type": "generate", "prompt": "a knight's castle"}
    assert capsys.readouterr().out == "Job j1 is queued.\n"


def test_create_sends_all_that_was_given(serve: Serve) -> None:
    requests = serve({"POST /v1/jobs": {"job": {"id": "j1", "status": "queued"}}})
    given = "--count 3 --size 640x384 --steps 9 --guidance 2.5 --seed 0 --format jpg --scale 4 --negative-prompt fog"
    assert cli.main(["jobs", "create", "--prompt", "p", *given.split()]) == 0
    assert msgspec.json.decode(requests[0].content) == {
        "type": "generate",
        "prompt": "p",
        "negative_prompt": "fog",
        "count": 3,
        "width": 640,
        "height": 384,
        "steps": 9,
        "guidance": 2.5,
        "seed": 0,
        "format": "jpg",
        "chain": {"upscale": {"scale": 4}},
    }


def test_json_output_is_the_services_answer(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    serve({"GET /v1/jobs/j1": JOB})
    assert cli.main(["jobs", "show", "j1", "--output", "json"]) == 0
    assert msgspec.json.decode(capsys.readouterr().out) == JOB


def test_table_output_tells_of_each_step(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    serve({"GET /v1/jobs/j1": JOB})
    assert cli.main(["jobs", "show", "j1"]) == 0
    out = capsys.readouterr().out
    assert "Job j1" in out
    assert "generate" in out
    assert "2 of 2 images finished" in out


@pytest.mark.parametrize(("outcome", "code"), [("succeeded", 0), ("failed", 1), ("cancelled", 1)])
def test_watch_exits_as_the_job_ended(
    serve: Serve, capsys: pytest.CaptureFixture[str], outcome: str, code: int
) -> None:
    """Its course goes to stderr, in lines where there is no terminal; its end to stdout."""
    serve({"GET /v1/jobs/j1": JOB | {"status": "running"}, "GET /v1/jobs/j1/progress/stream": stream(outcome)})
    assert cli.main(["jobs", "watch", "j1", "--output", "json"]) == code
    captured = capsys.readouterr()
    assert captured.err.splitlines() == ["step.start.", "generate 1/2", "job.finish."]
    assert msgspec.json.decode(captured.out)["id"] == "j1"


@pytest.mark.parametrize(
    ("answer", "code", "message"),
    [
        (error(404, "There is no such job."), 4, "There is no such job."),
        (error(422, "Refused.", field="count", reason="too many"), 2, "Refused. (count: too many)"),
        (error(503, "Later."), 3, "Later."),
        (httpx.ConnectError("refused"), 3, "No service answers at http://127.0.0.1:8001 (refused)."),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    serve: Serve, capsys: pytest.CaptureFixture[str], answer: httpx.Response | Exception, code: int, message: str
) -> None:
    serve({"GET /v1/jobs/j1": answer})
    assert cli.main(["jobs", "show", "j1"]) == code
    assert capsys.readouterr().err == f"dreamforge: {message}\n"


def test_the_client_asks_where_the_settings_say(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DF_API_BASE", "https://forge.example")
    requests = serve({"GET /v1/jobs/j1": JOB})
    cli.main(["jobs", "show", "j1"])
    assert str(requests[0].url) == "https://forge.example/v1/jobs/j1"


def test_a_wrong_setting_exits_2(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DF_PORT", "x")
    assert cli.main(["jobs", "show", "j1"]) == 2
    assert capsys.readouterr().err.startswith("dreamforge: DF_PORT is 'x'")


def test_an_unknown_setting_is_warned_of(
    serve: Serve, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DF_PROT", "1")
    serve({"GET /v1/jobs/j1": JOB})
    assert cli.main(["jobs", "show", "j1"]) == 0
    assert capsys.readouterr().err == "dreamforge: warning: DF_PROT is no setting of this release; is DF_PORT meant?\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["jobs"],
        ["jobs", "show", ""],
        ["jobs", "create"],
        ["jobs", "create", "--prompt", "p", "--size", "12x"],
        ["up", "--port", "70000"],
        ["--env-file", "nowhere", "up"],
    ],
)
def test_a_wrong_argument_exits_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        cli.main(arguments)
    assert exited.value.code == 2


@pytest.mark.parametrize(("text", "size"), [("512", (512, 512)), ("640x384", (640, 384)), ("640X384", (640, 384))])
def test_sizes(text: str, size: tuple[int, int]) -> None:
    assert cli.image_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "12x", "x12", "1x2x3", "-4", "5.5", "٣"])
def test_sizes_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        cli.image_size(text)


@pytest.mark.parametrize(
    ("arguments", "host", "port"),
    [
        (["up"], "127.0.0.1", 8001),
        (["up", "--port", ""], "127.0.0.1", 8001),
        (["up", "--host", "0.0.0.0", "--port", "9000"], "0.0.0.0", 9000),
    ],
)
def test_a_role_gets_the_settings_and_gives_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], host: str, port: int
) -> None:
    """Arguments win over settings; make passes an empty port where none is given."""
    started: list[Settings] = []

    def up(settings: Settings) -> int:
        started.append(settings)
        return 7

    monkeypatch.setattr("dreamforge.roles.up", up)
    monkeypatch.setattr("dreamforge.logs.configure", lambda *_: None)
    assert cli.main(arguments) == 7
    assert (started[0].host, started[0].port) == (host, port)
