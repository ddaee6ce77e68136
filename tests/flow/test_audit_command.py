"""An auditor's way through a service's log: show, replay, compare, verify, export, and find what was forged."""

import asyncio
import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import boto3
import msgspec
import pytest
from PIL import Image

from artifacts.object_store import S3Config
from tests.conftest import Backends, fresh_database
from tests.http.conftest import consumer, running, until
from tests.kit import NOBODY, Api, connect, dreamforge, roles_environ


class Audited(msgspec.Struct, frozen=True):
    """A service's backends, as a command is told of them, and a chained job of two images that has ended."""

    url: str
    environ: dict[str, str]
    api: Api
    job: str

    def audit(self, *arguments: str, code: int = 0) -> Any:
        """The answer of `dreamforge audit`, which must exit so."""
        done = dreamforge("audit", *arguments, "--json", **self.environ)
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout) if done.stdout else done.stderr


@pytest.fixture(scope="module")
def audited(backends: Backends, s3_config: S3Config) -> Iterator[Audited]:
    with fresh_database(backends) as url, running("up", url, s3_config) as service, consumer(service) as api:
        job = api.create(count=2, metadata={"order": "17"})
        assert api.finished(job)["status"] == "succeeded"
        yield Audited(url, roles_environ(url, s3_config), api, job)


def test_show_tells_the_history_and_what_it_came_to(audited: Audited) -> None:
    """Now, after a version, and before there was anything."""
    shown = audited.audit("show", audited.job)
    history = audited.api.history(audited.job)
    assert [event["hash"] for event in shown["events"]] == [event["hash"] for event in history]
    assert shown["job"] == audited.api.job(audited.job)
    early = audited.audit("show", audited.job, "--at", "3")
    assert len(early["events"]) == 3
    assert early["job"] == audited.api.get(f"/v1/jobs/{audited.job}", as_of_version=3)
    middle = history[4]["ts"]
    assert audited.audit("show", audited.job, "--at", middle)["job"] == audited.api.get(
        f"/v1/jobs/{audited.job}", as_of=middle
    )
    assert audited.audit("show", audited.job, "--at", "2020-01-01T00:00:00Z") == {"job": None, "events": []}


def test_replay_folds_event_by_event(audited: Audited) -> None:
    """Up to the state that reads tell, which the read model agrees with."""
    told = audited.audit("replay", audited.job)
    assert told["disagreement"] is None
    assert [step["version"] for step in told["steps"]] == list(range(1, len(audited.api.history(audited.job)) + 1))
    progress = [step["progress"] for step in told["steps"]]
    assert progress == sorted(progress)
    assert progress[-1] == 1.0
    assert told["steps"][-1]["job"]["status"] == "succeeded"


def test_diff_names_what_changed(audited: Audited) -> None:
    """Between two versions, and from nothing."""
    found = {one["path"]: (one["before"], one["after"]) for one in audited.audit("diff", audited.job, "1", "2")}
    assert found["status"] == ("queued", "running")
    assert found["steps.generate.attempt"] == (0, 1)
    assert "params.seed" not in found
    assert audited.audit("diff", audited.job, "2", "2") == []
    assert all(one["before"] is None for one in audited.audit("diff", audited.job, "0", "1"))


def test_a_sound_log_verifies_with_its_images(audited: Audited) -> None:
    """One job, and everything."""
    events = len(audited.api.history(audited.job))
    assert audited.audit("verify", audited.job) == {
        "events": events,
        "anchors": 0,
        "flaws": [],
        "artifacts": None,
        "bad_artifacts": [],
    }
    whole = audited.audit("verify", "--all", "--artifacts")
    assert (whole["events"], whole["artifacts"], whole["flaws"], whole["bad_artifacts"]) == (events, 4, [], [])


def test_a_bundle_verifies_with_no_database(audited: Audited, tmp_path: Path) -> None:
    """Given a job's bundle and one of the whole log, then each verifies alone; one flipped bit names its line."""
    for name, what in (("job", [audited.job]), ("all", ["--since", "1d"])):
        file = tmp_path / f"{name}.jsonl"
        audited.audit("export", *what, "-o", str(file))
        assert b"castle" not in file.read_bytes()
        report = json.loads(dreamforge("audit", "verify", str(file), "--json").stdout)
        assert (report["events"], report["flaws"]) == (len(audited.api.history(audited.job)), [])
        forged = bytearray(file.read_bytes())
        forged[len(forged) // 2] ^= 1
        file.write_bytes(forged)
        rejected = dreamforge("audit", "verify", str(file))
        assert rejected.returncode == 1
        assert f"line {bytes(forged[: len(forged) // 2]).count(10) + 1}: " in rejected.stdout
    assert "castle" in dreamforge("audit", "export", audited.job, "--private", "-o", "-", **audited.environ).stdout


def test_what_was_forged_is_named(backends: Backends, s3_config: S3Config) -> None:
    """Given an event, a row and an image that somebody changed, then each command that looks at it says so."""
    with fresh_database(backends) as url:
        with running("up", url, s3_config) as service, consumer(service) as api:
            job = api.create(count=1, scale=None)
            api.finished(job)
            [artifact] = api.artifacts(job)
        audited = Audited(url, roles_environ(url, s3_config), api, job)

        there, forged = artifact["sha256"], "0" * 64
        changed = f"replace(data::text, '{there}', '{forged}')::json"
        asyncio.run(_forged(url, f"update eventstore.events set data = {changed} where code = 'artifact.written'"))
        asyncio.run(_forged(url, "update readmodel.jobs set status = 'failed'"))
        wrong = audited.audit("verify", job, "--artifacts", code=1)
        [version] = [event["version"] for event in audited.audit("show", job)["events"] if "artifact" in event["code"]]
        assert [(flaw["version"], flaw["field"].split(" ")[0]) for flaw in wrong["flaws"]] == [(version, "envelope")]
        assert [bad["s3_key"] for bad in wrong["bad_artifacts"]] == [artifact["s3_key"]]
        done = dreamforge("audit", "replay", job, **audited.environ)
        assert done.returncode == 1
        assert "the read model disagrees" in done.stderr
        assert "status" in done.stdout


def test_an_anchor_tells_of_a_lost_tail_and_of_a_rewritten_history(
    backends: Backends, s3_config: S3Config, tmp_path: Path
) -> None:
    """Given an anchor that was kept, then a log set back, and one computed anew, are told from what it was."""
    key = tmp_path / "anchor.pem"
    public = dreamforge("audit", "key", str(key)).stdout.strip()
    assert key.stat().st_mode & 0o077 == 0
    assert dreamforge("audit", "key", str(key)).returncode == 2
    with fresh_database(backends) as url:
        audited = Audited(url, roles_environ(url, s3_config), Api("http://127.0.0.1:1"), "")
        with running("up", url, s3_config) as service, consumer(service) as api:
            assert api.finished(api.create(count=1, scale=None))["status"] == "succeeded"
        signed = dreamforge("audit", "anchor", **audited.environ, DF_ANCHOR_KEY=str(key))
        assert signed.returncode == 0, signed.stderr
        kept = tmp_path / "anchor.json"
        kept.write_text(signed.stdout)
        whole = audited.audit("verify", "--all", "--key", public)
        assert (whole["anchors"], whole["flaws"]) == (1, [])
        ends = {end["partition"]: end["position"] for end in json.loads(signed.stdout)["ends"] if end["position"]}

        def held(code: int) -> Any:
            return audited.audit("verify", "--all", "--anchor", str(kept), "--key", public, code=code)

        assert held(0)["anchors"] == 2
        rejected = dreamforge("audit", "verify", "--all", "--anchor", str(kept), **audited.environ)
        assert rejected.returncode == 1
        assert "not trusted" in rejected.stderr

        partition, position = max(ends.items(), key=lambda end: end[1])
        row = f"(partition, position) = ({partition}, {position})"
        asyncio.run(_forged(url, f"delete from eventstore.events where {row}"))
        lost = [flaw for flaw in held(1)["flaws"] if "anchor of" in flaw["problem"]]
        assert {(flaw["field"], flaw["partition"], flaw["position"]) for flaw in lost} == {
            ("position", partition, position)
        }


async def _forged(url: str, statement: str) -> None:
    connection = await connect(url)
    await connection.execute("alter table eventstore.envelopes disable trigger user")
    await connection.execute(statement)
    await connection.close()


def test_the_orchestrator_signs_by_itself(db_url: str, s3_config: S3Config, tmp_path: Path) -> None:
    """Given an interval, then anchors come while events do, and stand in the log, verified."""
    key = tmp_path / "anchor.pem"
    public = dreamforge("audit", "key", str(key)).stdout.strip()
    environ = roles_environ(db_url, s3_config)
    with (
        running("up", db_url, s3_config, DF_ANCHOR_KEY=str(key), DF_ANCHOR_EVERY_S="0.5") as service,
        consumer(service) as api,
    ):
        api.finished(api.create(count=1, scale=None))
        until(lambda: api.get("/v1/events", category="anchor")["events"])
    done = dreamforge("audit", "verify", "--all", "--key", public, "--json", **environ)
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["anchors"] >= 1


def test_anchors_without_a_key_are_rejected_at_the_start(db_url: str, s3_config: S3Config, tmp_path: Path) -> None:
    environ = roles_environ(db_url, s3_config)
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("nothing")
    for more in ({"DF_ANCHOR_EVERY_S": "60"}, {"DF_ANCHOR_EVERY_S": "60", "DF_ANCHOR_KEY": str(wrong)}):
        done = dreamforge("orchestrator", **environ, **more)
        assert done.returncode == 1
        assert "DF_ANCHOR_KEY" in done.stderr
    assert dreamforge("audit", "anchor", **environ).returncode == 2


@pytest.mark.parametrize("command", [["show"], ["replay"], ["verify"], ["diff", "1", "2"], ["export", "-o", "x"]])
def test_a_job_that_is_not_there_is_told(audited: Audited, command: list[str], tmp_path: Path) -> None:
    name, *more = [str(tmp_path / "x") if word == "x" else word for word in command]
    done = dreamforge("audit", name, str(NOBODY), *more, **audited.environ)
    assert done.returncode == 4
    assert str(NOBODY) in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", "x"],
        ["show", str(NOBODY), "--at", "x"],
        ["diff", str(NOBODY), "-1", "2"],
        ["verify"],
        ["verify", "nothing.jsonl"],
        ["verify", str(NOBODY), "--all"],
        ["export", "-o", "x"],
    ],
)
def test_wrong_arguments_are_told(arguments: list[str]) -> None:
    done = dreamforge("audit", *arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_tables_are_for_people(audited: Audited) -> None:
    """Every command shows its answer without --json, too."""
    shown = dreamforge("audit", "show", audited.job, **audited.environ).stdout
    assert "job.created" in shown
    assert "castle" in shown
    assert "The read model agrees" in dreamforge("audit", "replay", audited.job, **audited.environ).stdout
    assert "steps.generate.attempt" in dreamforge("audit", "diff", audited.job, "1", "2", **audited.environ).stdout
    assert "Intact" in dreamforge("audit", "verify", "--all", **audited.environ).stdout


def paint_over(config: S3Config, key: str, pixel: tuple[int, int]) -> None:
    """Change one pixel of an image in the store."""
    store = boto3.client(
        "s3",
        endpoint_url=config.endpoint,
        aws_access_key_id=config.access_key,
        aws_secret_access_key=config.secret_key,
        region_name=config.region,
    )
    image = Image.open(store.get_object(Bucket=config.bucket, Key=key)["Body"])
    red, green, blue = cast("tuple[int, int, int]", image.getpixel(pixel))
    image.putpixel(pixel, (255 - red, green, blue))
    body = BytesIO()
    image.save(body, "PNG")
    store.put_object(Bucket=config.bucket, Key=key, Body=body.getvalue())


def test_images_are_made_again_pixel_by_pixel(audited: Audited, s3_config: S3Config) -> None:
    """Both steps' images are; one that was painted over in the store is not, and says how far it is off."""
    found = audited.audit("reproduce", audited.job)
    assert [(one["step"], one["item_index"], one["difference"]) for one in found] == [
        ("generate", 0, 0),
        ("generate", 1, 0),
        ("upscale", 0, 0),
        ("upscale", 1, 0),
    ]
    job = audited.api.create(count=1, scale=None)
    assert audited.api.finished(job)["status"] == "succeeded"
    [artifact] = audited.api.artifacts(job)
    paint_over(s3_config, artifact["s3_key"], (3, 4))
    [one] = audited.audit("reproduce", job, code=1)
    assert one["pixels"] == 1
    assert one["difference"] > 0
    assert one["changed"]
    paint_over(s3_config, artifact["s3_key"], (3, 4))
    [one] = audited.audit("reproduce", job, code=1)
    assert (one["pixels"], one["changed"]) == (0, True), "the same picture, in a file that no event names"


def test_a_job_that_is_not_there_can_not_be_made_again(audited: Audited) -> None:
    assert "has no job" in audited.audit("reproduce", "018f0000-0000-7000-8000-000000000001", code=4)
