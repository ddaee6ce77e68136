"""A generated image that somebody replaces in the store is never enlarged under its name."""

import time
from contextlib import ExitStack
from io import BytesIO

import boto3
import pytest
from PIL import Image

from artifacts.object_store import S3Config
from tests.flow.test_fleet import Fleet
from tests.kit import codes, roles_environ


@pytest.mark.parametrize("size", [(3000, 1000), (128, 128)], ids=["larger", "of the same size"])
def test_a_replaced_image_fails_the_upscale(db_url: str, s3_config: S3Config, size: tuple[int, int]) -> None:
    """Given an orchestrator that is away between the steps, and an image replaced meanwhile, then its job says so."""
    with ExitStack() as stack:
        fleet = Fleet(roles_environ(db_url, s3_config, DF_RETRY_BASE_S="0.1"), stack)
        api = fleet.api()
        orchestrator = fleet.start("orchestrator")
        job_id = api.create(count=8, width=1024, height=1024)
        fleet.start("runner")
        while "step.start" not in codes(api.history(job_id)):
            time.sleep(0.02)
        orchestrator.kill()
        while api.job(job_id)["steps"][0]["status"] != "succeeded":
            time.sleep(0.02)
        victim = api.artifacts(job_id)[5]
        body = BytesIO()
        Image.new("RGB", size).save(body, "PNG")
        boto3.client(
            "s3",
            endpoint_url=s3_config.endpoint,
            aws_access_key_id=s3_config.access_key,
            aws_secret_access_key=s3_config.secret_key,
            region_name=s3_config.region,
        ).put_object(Bucket=s3_config.bucket, Key=victim["s3_key"], Body=body.getvalue())
        fleet.start("orchestrator")
        job = api.finished(job_id, within=120)
        assert (job["status"], job["error_code"]) == ("failed", "provider_error")
        assert victim["s3_key"] in job["error_message"]
        assert "is not what was written" in job["error_message"]
        made = [one["item_index"] for one in api.artifacts(job_id) if "/upscale/" in one["s3_key"]]
        assert 5 not in made
