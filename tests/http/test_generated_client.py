"""A client made from the OpenAPI document by a well-known generator completes a chained job."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.kit import Service, project_root

SCRIPT = """
import json, sys, time
from dream_client import Client
from dream_client.api.jobs import create_job, get_job, list_artifacts
from dream_client.models import Chain, JobRequest, JobRequestType, Upscale, UpscaleScaleType0

client = Client(base_url=sys.argv[1], httpx_args={"trust_env": False})
chain = Chain(upscale=Upscale(scale=UpscaleScaleType0.VALUE_2))
size = {"width": 64, "height": 64}
request = JobRequest(type_=JobRequestType.GENERATE, prompt="a castle", steps=2, count=2, chain=chain, **size)
job_id = create_job.sync(client=client, body=request, idempotency_key="generated").job.id
while (job := get_job.sync(job_id, client=client)).status not in {"succeeded", "failed", "cancelled"}:
    time.sleep(0.05)
artifacts = list_artifacts.sync(job_id, client=client).artifacts
print(json.dumps([job.status, job.summary.completed, [[one.step, one.width] for one in artifacts]]))
"""


def test_a_generated_client_completes_a_chained_job(service: Service, tmp_path: Path) -> None:
    """Given what openapi-python-client makes of the committed document, then its types fit what goes to and fro."""
    document = project_root() / "docs" / "openapi" / "openapi.v1.json"
    tools = Path(sys.executable).parent
    environ = os.environ | {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}  # it formats what it writes with ruff
    subprocess.run(
        [
            *(tools / "openapi-python-client", "generate", "--path", document),
            *("--meta", "none", "--output-path", tmp_path / "dream_client"),
        ],
        check=True,
        capture_output=True,
        env=environ,
    )
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, service.url], cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found == ["succeeded", 2, [["generate", 64], ["generate", 64], ["upscale", 128], ["upscale", 128]]]
