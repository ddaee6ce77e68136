"""Generated images that are gone, or that somebody replaced: a retry makes them again, and the upscale goes on."""

import json
from contextlib import ExitStack
from io import BytesIO
from typing import Any

import boto3
import httpx
from PIL import Image

from artifacts.object_store import S3Config
from tests.flow.test_fleet import Fleet
from tests.kit import Api, dreamforge, roles_environ


def bodies(api: Api, job_id: str, code: str, step: str) -> list[Any]:
    """The data of a job's events of one code and step."""
    return [json.loads(one["data"]) for one in api.history(job_id) if (one["code"], one["step"]) == (code, step)]


def test_a_retry_makes_lost_images_again_and_no_others(db_url: str, s3_config: S3Config) -> None:
    """Given a failed upscale, then an image removed and one replaced, then the second retry repairs the job."""
    with ExitStack() as stack:
        environ = roles_environ(db_url, s3_config, DF_FAKE_FAIL="upscale:0:1", DF_RETRY_BASE_S="0.1")
        fleet = Fleet(environ, stack)
        api = fleet.api()
        for role in ("orchestrator", "projector", "runner"):
            fleet.start(role)
        job_id = api.create(count=4)
        assert api.finished(job_id)["status"] == "failed"
        images: dict[int, Any] = {one["item_index"]: one for one in api.artifacts(job_id)}
        store = boto3.client(
            "s3",
            endpoint_url=s3_config.endpoint,
            aws_access_key_id=s3_config.access_key,
            aws_secret_access_key=s3_config.secret_key,
            region_name=s3_config.region,
        )
        store.delete_object(Bucket=s3_config.bucket, Key=images[1]["s3_key"])
        other = BytesIO()
        Image.new("RGB", (64, 64)).save(other, "PNG")
        store.put_object(Bucket=s3_config.bucket, Key=images[3]["s3_key"], Body=other.getvalue())

        assert retry(api, job_id) == 202  # nobody knows yet
        assert api.finished(job_id)["error_code"] == "provider_error"
        [*_, error] = bodies(api, job_id, "error", "upscale")
        assert (error["attempt"], error["lost"]) == (2, [1, 3])

        assert retry(api, job_id) == 202
        job = api.finished(job_id)
        assert (job["status"], job["summary"]["completed"], job["error_code"]) == ("succeeded", 4, None)
        [*_, asked] = bodies(api, job_id, "job.retry_requested", "generate")
        assert asked["items"] == [1, 3]
        assert sorted(one["item_index"] for one in bodies(api, job_id, "artifact.rewritten", "generate")) == [1, 3]
        for step in ("generate", "upscale"):
            written = sorted(one["item_index"] for one in bodies(api, job_id, "artifact.written", step))
            assert written == [0, 1, 2, 3]
        for one in api.artifacts(job_id):
            known = images[one["item_index"]]
            if "/generate/" in one["s3_key"]:
                assert (one["s3_key"], one["seed"]) == (known["s3_key"], known["seed"])
            assert httpx.get(one["url"], trust_env=False).status_code == 200
        checked = dreamforge("audit", "verify", job_id, "--artifacts", "--json", **environ)
        assert checked.returncode == 0, checked.stdout
        assert dreamforge("audit", "replay", job_id, **environ).returncode == 0


def retry(api: Api, job_id: str) -> int:
    """Ask for a retry; answers the status."""
    return api.http.post(f"/v1/jobs/{job_id}/retry").status_code
