"""The command line: what it sends, what it prints, how it exits."""

import hashlib
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from dreamforge.cli import jobs
from dreamforge.cli import main as cli
from dreamforge.client.api_client import Client
from dreamforge.settings import VARIABLES_BY_FIELD, Settings

JOB = {
    "id": "j1",
    "status": "succeeded",
    "steps": [{"name": "generate", "status": "succeeded", "attempt": 1, "started_at": None, "finished_at": None}],
    "summary": {"count": 2, "completed": 2},
    "error_code": None,
    "error_message": None,
}

TIME = "2026-01-02T12:00:00.000000Z"
LISTED = {
    "id": "j1",
    "status": "queued",
    "created_at": TIME,
    "updated_at": TIME,
    "summary": {"count": 2, "completed": 0},
}
EVENT = {
    "version": 4,
    "code": "job.finish",
    "ts": TIME,
    "step": None,
    "data": '{"status":"failed"}',
    "stream": "s1",
    "category": "job",
}
ARTIFACT = {
    "step": "generate",
    "item_index": 0,
    "width": 64,
    "height": 64,
    "seed": 7,
    "bytes": 9,
    "s3_key": "generate/a.png",
}

Serve = Callable[[dict[str, Any]], list[httpx.Request]]


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings but a test's own."""
    for var in VARIABLES_BY_FIELD.values():
        for name in var.names:
            monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Answer the command's requests by `METHOD path`: JSON, a response, an exception, or a function that gives one.

    Returns the requests made.
    """

    def serve(answers: dict[str, Any]) -> list[httpx.Request]:
        requests: list[httpx.Request] = []

        def handler(request: httpx.Request) -> httpx.Response:
            requests.append(request)
            answer = answers[f"{request.method} {request.url.path}"]
            if callable(answer):
                answer = answer()
            if isinstance(answer, BaseException):
                raise answer
            return answer if isinstance(answer, httpx.Response) else httpx.Response(200, json=answer)

        monkeypatch.setattr(jobs, "Client", partial(Client, transport=httpx.MockTransport(handler)))
        return requests

    return serve


def stream(outcome: str) -> httpx.Response:
    def log(version: int, code: str, **payload: object) -> str:
        data = {"code": code, "message": f"{code}.", "step": "generate", "payload": payload}
        return f"event: log\ndata: {msgspec.json.encode(data).decode()}\nid: {version}\n\n"

    written = {
        "code": "artifact.written",
        "step": "generate",
        "item_index": 0,
        "width": 64,
        "height": 64,
        "payload": {},
    }
    image = f"event: artifact\ndata: {msgspec.json.encode(written).decode()}\nid: 3\n\n"
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
    given = (
        "--count 3 --size 640x384 --steps 9 --guidance 2.5 --seed 0 --format jpg --negative-prompt fog --model-id m1 "
        "--engine sdxl --scheduler euler --no-embed-metadata --scale 4 --impl gan --strict-scale "
        "--metadata project=harbour --metadata note=a=b --idempotency-key k-1 --wait 9"
    )
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
        "scheduler": "euler",
        "seed": 0,
        "format": "jpg",
        "embed_metadata": False,
        "model_id": "m1",
        "engine": "sdxl",
        "chain": {"upscale": {"scale": 4, "impl": "gan", "strict_scale": True}},
        "metadata": {"project": "harbour", "note": "a=b"},
    }
    assert (requests[0].headers["Idempotency-Key"], requests[0].headers["Prefer"]) == ("k-1", "wait=9")


def test_a_whole_request_is_sent_as_it_is(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a file or from standard input, malformed or not: the service is to judge."""
    requests = serve({"POST /v1/jobs": {"job": {"id": "j1", "status": "queued"}}})
    (tmp_path / "request.json").write_bytes(b'{"pipeline": [] }\n')
    assert cli.main(["jobs", "create", "--file", "request.json"]) == 0
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"not json")))
    assert cli.main(["jobs", "create", "--file", "-"]) == 0
    assert [request.content for request in requests] == [b'{"pipeline": [] }\n', b"not json"]
    assert {request.headers["Content-Type"] for request in requests} == {"application/json"}


def test_no_field_stands_beside_a_whole_request(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    requests = serve({})
    Path("request.json").touch()
    with pytest.raises(SystemExit) as exited:
        cli.main(["jobs", "create", "--file", "request.json", "--count", "3", "--impl", "gan"])
    assert exited.value.code == 2
    assert "count, chain can't be given beside --file" in capsys.readouterr().err
    assert requests == []


@pytest.mark.parametrize(("status", "code"), [("queued", 0), ("succeeded", 0), ("failed", 1), ("cancelled", 1)])
def test_create_exits_as_the_answer_says(
    serve: Serve, capsys: pytest.CaptureFixture[str], status: str, code: int
) -> None:
    """An answer that waited may report a job that has failed already."""
    job = JOB | {"status": status, "error_code": "no_model", "error_message": "There is no such model."}
    serve({"POST /v1/jobs": {"job": {"id": "j1", "status": status}}, "GET /v1/jobs/j1": job})
    assert cli.main(["jobs", "create", "--prompt", "p", "--wait", "5"]) == code
    told = capsys.readouterr().err
    assert ("no_model: There is no such model." in told) is (code == 1)
    assert ("dreamforge jobs watch j1" in told) is (status == "queued")
    assert ("dreamforge jobs artifacts j1 --download DIR" in told) is (code == 0)


def test_the_prompt_may_be_an_argument(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    requests = serve({"POST /v1/jobs": {"job": {"id": "j1", "status": "queued"}}})
    assert cli.main(["jobs", "create", "a knight's castle", "--quiet"]) == 0
    assert msgspec.json.decode(requests[0].content) == {"type": "generate", "prompt": "a knight's castle"}
    assert capsys.readouterr() == ("j1\n", "")
    with pytest.raises(SystemExit):
        cli.main(["jobs", "create", "a castle", "--prompt", "another"])
    with pytest.raises(SystemExit):
        cli.main(["jobs", "create"])


def test_a_request_whose_answer_was_lost_is_sent_again_under_the_same_key(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a service that ends after it has read the request and comes back, slowly, then the job is made once."""
    monkeypatch.setattr("dreamforge.client.api_client._RETRY_PAUSE_S", 0)
    made, busy = {"job": {"id": "j1", "status": "queued"}}, error(503, "not now")
    answers = iter([httpx.ReadError("gone"), httpx.ConnectError("away"), busy, made, httpx.ReadTimeout("slow"), made])
    requests = serve({"POST /v1/jobs": lambda: next(answers)})
    for _ in range(2):
        assert cli.main(["jobs", "create", "p", "--quiet"]) == 0
    keys = [request.headers["Idempotency-Key"] for request in requests]
    assert [len(set(keys[:4])), len(set(keys[4:])), len(set(keys))] == [1, 1, 2]


def test_a_request_whose_answer_stays_lost_is_told_by_its_key(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Given a service that takes the request and does not come back, then the user can still send it again."""
    monkeypatch.setattr("dreamforge.client.api_client._RETRY_PAUSE_S", 0)
    requests = serve({"POST /v1/jobs": httpx.ReadError("gone")})
    monkeypatch.setattr(jobs, "Client", partial(vars(jobs)["Client"], patience_s=-1))
    assert cli.main(["jobs", "create", "p"]) == 3
    assert f"--idempotency-key {requests[0].headers['Idempotency-Key']}" in capsys.readouterr().err


def test_a_rejection_for_now_is_told_where_no_answer_was_lost(serve: Serve) -> None:
    requests = serve({"POST /v1/jobs": error(503, "not now")})
    assert cli.main(["jobs", "create", "p"]) == 3
    assert len(requests) == 1


def test_create_downloads_what_came_out(serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = b"an image"
    artifact = ARTIFACT | {
        "url": "http://store/a.png",
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    serve(
        {
            "POST /v1/jobs": {"job": {"id": "j1", "status": "queued"}},
            "GET /v1/jobs/j1": JOB,
            "GET /v1/jobs/j1/progress/stream": stream("succeeded"),
            "GET /v1/jobs/j1/artifacts": {
                "artifacts": [
                    artifact,
                    artifact | {"step": "upscale"},
                    artifact | {"url": "http://store/b.png", "s3_key": "generate/b.png"},
                ]
            },
            "GET /a.png": httpx.Response(200, content=content),
            "GET /b.png": httpx.Response(200, content=content),
        }
    )
    assert cli.main(["jobs", "create", "p", "--download", str(tmp_path), "--quiet"]) == 0
    found = {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file()}
    assert found == {"generate/a.png", "generate/b.png", "upscale/a.png"}
    assert (tmp_path / "generate" / "a.png").read_bytes() == content
    assert capsys.readouterr() == ("j1\n", "")


def test_an_interrupted_watch_says_that_the_job_goes_on(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    serve({"GET /v1/jobs/j1": JOB, "GET /v1/jobs/j1/progress/stream": KeyboardInterrupt()})
    assert cli.main(["jobs", "watch", "j1"]) == 130
    told = capsys.readouterr().err
    assert "the job goes on" in told
    assert "dreamforge jobs watch j1" in told
    assert "dreamforge jobs cancel j1" in told


def test_a_job_is_named_by_the_beginning_of_its_id(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    ids = ["018f0000-0000-7000-8000-00000000000a", "018f0000-0000-7000-8000-00000000000b"]
    other = "d9cad306-81ea-80be-ab55-c2f1976a5692"
    requests = serve(
        {
            "GET /v1/jobs": {"jobs": [LISTED | {"id": one} for one in [*ids, other]], "next_cursor": None},
            f"GET /v1/jobs/{other}": JOB | {"id": other},
        }
    )
    assert cli.main(["jobs", "show", "D9ca"]) == 0
    assert requests[-1].url.path == f"/v1/jobs/{other}"
    assert cli.main(["jobs", "show", other]) == 0
    assert cli.main(["jobs", "cancel", "018f"]) == 2
    assert f"2 jobs have an id that begins with 018f: {', '.join(ids)}" in capsys.readouterr().err
    assert cli.main(["jobs", "cancel", "aaaa"]) == 4
    assert {request.method for request in requests} == {"GET"}


def test_a_mistyped_command_is_told_the_near_one(capsys: pytest.CaptureFixture[str]) -> None:
    for typed, near in (("job", "jobs"), ("jobs creat", "create"), ("projection", "projections")):
        with pytest.raises(SystemExit) as exited:
            cli.main(typed.split())
        assert exited.value.code == 2
        assert f"did you mean {near!r}?" in capsys.readouterr().err


def test_the_list_shows_prompts_that_do_not_steer_the_terminal(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = ["a castle", "a \x1b[31mred\n[bold]house", "x" * 100, None]
    serve({"GET /v1/jobs": {"jobs": [LISTED | {"prompt": one} for one in prompts], "next_cursor": None}})
    assert cli.main(["jobs", "list"]) == 0
    out = capsys.readouterr().out
    assert "a castle" in out
    assert "a  [31mred [bold]house" in out
    assert f"{'x' * 39}…" in out


def test_one_image_is_no_images(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    serve({"GET /v1/jobs/j1": JOB | {"summary": {"count": 1, "completed": 1}}})
    assert cli.main(["jobs", "show", "j1"]) == 0
    assert "1 of 1 image finished" in capsys.readouterr().out


def test_list_asks_for_as_many_as_are_wanted(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """20 unless told; more than a page comes in pages."""
    requests = serve({"GET /v1/jobs": {"jobs": [LISTED] * 200, "next_cursor": "c"}})
    assert cli.main(["jobs", "list"]) == 0
    assert cli.main(["jobs", "list", "--limit", "300", "--status", "failed", "--output", "json"]) == 0
    asked = [dict(request.url.params) for request in requests]
    page = {"limit": "200", "status": "failed"}
    assert asked == [{"limit": "20"}, page, page | {"cursor": "c"}]
    out = capsys.readouterr().out
    assert out.count("0/2") == 20
    assert len(msgspec.json.decode(out[out.index("[\n") :])) == 300


def test_show_asks_for_the_moment_that_is_wanted(serve: Serve) -> None:
    requests = serve({"GET /v1/jobs/j1": JOB})
    assert cli.main(["jobs", "show", "j1", "--as-of-version", "3"]) == 0
    assert cli.main(["jobs", "show", "j1", "--as-of", "2026-01-02T12:00:00+01:00"]) == 0
    asked = [dict(request.url.params) for request in requests]
    assert asked == [{"as_of_version": "3"}, {"as_of": "2026-01-02T12:00:00+01:00"}]


def test_logs_are_printed_verbatim_or_as_text(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    line = '{"ts":"2026-01-02T12:00:00.000000Z","level":"info","code":"step.start","message":"It\u2028 started."}'
    requests = serve({"GET /v1/jobs/j1/logs": httpx.Response(200, text=line + "\n")})
    assert cli.main(["jobs", "logs", "j1", "--output", "json", "--tail", "5", "--since", "2026-01-02T12:00:00Z"]) == 0
    assert capsys.readouterr().out == line + "\n"
    assert dict(requests[0].url.params) == {"tail": "5", "since_ts": "2026-01-02T12:00:00Z"}
    assert cli.main(["jobs", "logs", "j1"]) == 0
    assert capsys.readouterr().out.split(maxsplit=3)[1:] == ["info", "step.start", "It\u2028 started.\n"]


def test_followed_logs_come_from_the_stream_alone(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """The last ones of those that are there, and then the rest."""
    requests = serve({"GET /v1/jobs/j1": JOB | {"version": 3}, "GET /v1/jobs/j1/progress/stream": stream("failed")})
    assert cli.main(["jobs", "logs", "j1", "--follow", "--tail", "2", "--output", "json"]) == 0
    assert requests[1].headers["Last-Event-ID"] == "1"
    lines = [msgspec.json.decode(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["code"] for line in lines] == ["step.start", "artifact.written", "job.finish"]


def test_the_whole_log_is_printed_line_by_line(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    requests = serve({"GET /v1/events": {"events": [EVENT], "next_cursor": "c", "has_more": False}})
    given = ["jobs", "events", "--all", "--codes", "job.finish,error", "--category", "job"]
    assert cli.main([*given, "--output", "json"]) == 0
    assert msgspec.json.decode(capsys.readouterr().out) == EVENT
    assert cli.main(given) == 0
    assert "job s1    4  job.finish" in capsys.readouterr().out
    assert dict(requests[0].url.params) == {"limit": "1000", "codes": "job.finish,error", "category": "job"}


@pytest.mark.parametrize(("more", "begin"), [([], "start"), (["--new"], "now")])
def test_the_whole_log_is_followed(
    serve: Serve, capsys: pytest.CaptureFixture[str], more: list[str], begin: str
) -> None:
    """Until Ctrl-C."""
    event = f"data: {msgspec.json.encode(EVENT).decode()}\nid: c1\n\n"
    answers = iter([httpx.Response(200, text=event), KeyboardInterrupt()])
    requests = serve({"GET /v1/": {}, "GET /v1/events/stream": lambda: next(answers)})
    assert cli.main(["jobs", "events", "--all", "--follow", *more, "--output", "json"]) == 130
    assert msgspec.json.decode(capsys.readouterr().out) == EVENT
    assert requests[1].url.params["from"] == begin
    assert requests[2].headers["Last-Event-ID"] == "c1"


@pytest.mark.parametrize(("outcome", "code"), [("cancelled", 0), ("succeeded", 1)])
def test_cancel_waits_for_the_end_if_told(
    serve: Serve, capsys: pytest.CaptureFixture[str], outcome: str, code: int
) -> None:
    """A job whose last image was written already may still succeed."""
    asked = {"POST /v1/jobs/j1/cancel": httpx.Response(202, json={"job": JOB | {"status": "running"}})}
    serve(asked)
    assert cli.main(["jobs", "cancel", "j1"]) == 0
    serve(asked | {"GET /v1/jobs/j1/progress/stream": stream(outcome), "GET /v1/jobs/j1": JOB | {"status": outcome}})
    assert cli.main(["jobs", "cancel", "j1", "--wait"]) == code
    assert capsys.readouterr().out == f"Job j1 is being cancelled.\nJob j1 is {outcome}.\n"


def test_retry_can_be_watched(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    queued = httpx.Response(202, json={"job": JOB | {"status": "queued"}})
    serve(
        {
            "POST /v1/jobs/j1/retry": queued,
            "GET /v1/jobs/j1": JOB,
            "GET /v1/jobs/j1/progress/stream": stream("succeeded"),
        }
    )
    assert cli.main(["jobs", "retry", "j1"]) == 0
    assert capsys.readouterr().out == "Job j1 is queued.\n"
    assert cli.main(["jobs", "retry", "j1", "--watch"]) == 0
    assert "Job j1 · succeeded" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_exits_2(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    Path("taken").touch()
    serve({"GET /v1/jobs/j1/artifacts": {"artifacts": [ARTIFACT]}})
    assert cli.main(["jobs", "artifacts", "j1", "--download", "taken"]) == 2
    assert capsys.readouterr().err == "dreamforge: taken/generate: Not a directory.\n"


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
        (error(409, "It has ended.", field="status"), 5, "It has ended. (status)"),
        (error(429, "Slower."), 3, "Slower."),
        (error(503, "Later."), 3, "Later."),
        (
            httpx.ConnectError("refused"),
            3,
            "No service answers at http://127.0.0.1:8001 (refused): start one by `dreamforge up`, or set DF_API_BASE.",
        ),
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
        ["jobs", "create", "--prompt", "p", "--file", "-"],
        ["jobs", "create", "--prompt", "p", "--watch", "--wait", "3"],
        ["jobs", "list", "--limit", "0"],
        ["jobs", "logs", "j1", "--follow", "--tail", "3", "--since", "2026-01-02T12:00:00Z"],
        ["jobs", "events"],
        ["jobs", "events", "j1", "--all"],
        ["jobs", "events", "j1", "--follow"],
        ["jobs", "events", "--all", "--new"],
        ["up", "--port", "70000"],
        ["--env-file", "nowhere", "up"],
    ],
)
def test_a_wrong_argument_exits_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        cli.main(arguments)
    assert exited.value.code == 2


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
    monkeypatch.setattr("dreamforge.logs.configure_logging", lambda *_: None)
    assert cli.main(arguments) == 7
    assert (started[0].host, started[0].port) == (host, port)
