"""Models are fetched from a hub, pinned to a commit, and a fetch that was interrupted goes on where it ended."""

import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.constants import DOWNLOAD_CHUNK_SIZE

from runners.engines.process import EngineConfig, EngineProcess
from runners.engines.protocol import ImageSpec, ModelRef, Pixels, Render, Sampling
from tests.images import tiny
from tests.images.hub import COMMIT, REPO, Hub, serving
from tests.kit import outside
from tests.weights import PIPELINE, safetensors

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
SAFE = PIPELINE | {"tokenizer/spiece.model": b"\x0a\x09", WEIGHTS: safetensors(bytes(range(256)) * 64)}
UNSAFE_SUFFIXES = {"unet/model.bin": b"\x80\x04.", "old.ckpt": b"\x80\x04."}
OTHER = {"README.md": b"# Castles", "castle.onnx": b"onnx"}

# Importing torch to ask diffusers for a class takes seven CPU seconds, and CI runs this among a dozen other processes.
PATIENCE_S = 300.0


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving(SAFE | UNSAFE_SUFFIXES | OTHER) as hub:
        yield hub


async def test_a_repository_is_opened_by_its_name(tmp_path: Path) -> None:
    """As `DF_MODEL` may give it: every pixel is that of the folder which lies there, and no pickle is fetched."""
    folder = tiny.stable_diffusion(tmp_path / "castles")
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with serving(files | UNSAFE_SUFFIXES) as hub:
        environ = outside() | {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.url}
        process = EngineProcess(EngineConfig(device="cpu"), stall_s=PATIENCE_S, environ=environ)
        seen: list[Pixels] = []
        for path in (REPO, str(folder)):
            model = ModelRef(kind="generator", path=path)
            shape = Sampling(model=model, width=32, height=24, steps=2, guidance=7.0, scheduler=None)
            work = Render(sampling=shape, specs=[ImageSpec(prompt="a moat", negative_prompt=None, seed=1)])
            await process.run(work, lambda told: seen.append(told) if isinstance(told, Pixels) else None)
        await process.stop()
    fetched, there = seen
    assert fetched.pixels == there.pixels
    asked = {path for path, _ in hub.asked}
    assert "unet/diffusion_pytorch_model.safetensors" in asked
    assert not asked & UNSAFE_SUFFIXES.keys()


class Buyer:
    """Who adds models of a hub to a registry."""

    def __init__(self, hub: Hub, db_url: str, folder: Path) -> None:
        self.folder = folder / "models"
        hub_home = {
            "HF_HOME": str(folder / "hf"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": "hf_secret",
        }
        self._environ = outside() | hub_home | {"DF_DB_URL": db_url, "DF_MODELS_DIR": str(self.folder)}

    def adding(self, source: str, *more: str) -> "subprocess.Popen[str]":
        """A process that adds a model."""
        command = self._command(source, more)
        return subprocess.Popen(command, env=self._environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def ended(self, source: str, *more: str) -> "subprocess.CompletedProcess[str]":
        """The same once it has ended; it is killed when that takes too long."""
        command = self._command(source, more)
        return subprocess.run(
            command, env=self._environ, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )

    def added(self, source: str, *more: str) -> Any:
        """What the command answers."""
        process = self.ended(source, *more)
        assert process.returncode == 0, process.stderr
        assert process.stderr == ""
        return json.loads(process.stdout)

    def rejected(self, source: str, *more: str) -> str:
        """The one line in which the command rejects."""
        process = self.ended(source, *more)
        assert process.returncode == 2, process.stderr
        assert process.stderr.count("\n") == 1
        return process.stderr

    def _command(self, source: str, more: Iterable[str]) -> list[str]:
        command = ["models", "add", source, "--kind", "generator", "--output", "json", *more]
        return [sys.executable, "-m", "dreamforge", "--no-env-file", *command]


@pytest.fixture
def buyer(hub: Hub, db_url: str, tmp_path: Path) -> Buyer:
    return Buyer(hub, db_url, tmp_path)


def test_a_repository_is_fetched_and_pinned_to_its_commit(hub: Hub, buyer: Buyer) -> None:
    """Its safe files alone; and adding it again fetches nothing, and finds the same model."""
    model = buyer.added(f"hf:{REPO}@v1")
    assert hub.revisions == ["v1"]
    assert (model["name"], model["source_uri"]) == ("castles", f"hf:{REPO}@{COMMIT}")
    assert model["local_path"] == str(buyer.folder / "masons--castles" / COMMIT)
    assert {file["path"] for file in model["files_json"]} == SAFE.keys()
    for name, content in SAFE.items():
        assert (Path(model["local_path"]) / name).read_bytes() == content
    assert hub.tokens_shown == 0
    hub.asked.clear()
    again = buyer.ended(f"hf:{REPO}@{COMMIT}")
    assert json.loads(again.stdout) == model
    assert "registered already" in again.stderr
    assert hub.asked == []


def test_a_fetch_that_was_killed_goes_on_where_it_ended(hub: Hub, buyer: Buyer) -> None:
    """Given a hub that falls silent half way and a process that is killed, then the next one asks for the rest."""
    name = WEIGHTS
    hub.files = {name: safetensors(bytes(range(256)) * (2 * DOWNLOAD_CHUNK_SIZE // 256 - 1))}
    hub.files |= {other: content for other, content in PIPELINE.items() if other != name}
    hub.stalls[name] = DOWNLOAD_CHUNK_SIZE + 1000
    part = buyer.folder / "masons--castles" / COMMIT / f"{name}.part"
    process = buyer.adding(f"hf:{REPO}")
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not part.exists() or part.stat().st_size < DOWNLOAD_CHUNK_SIZE:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        process.communicate()
    hub.stalls.clear()
    model = buyer.added(f"hf:{REPO}")
    assert hub.asked[:2] == [(name, None), (name, f"bytes={DOWNLOAD_CHUNK_SIZE}-")]
    assert set(hub.asked[2:]) == {(other, None) for other in PIPELINE if other != name}
    assert (Path(model["local_path"]) / name).read_bytes() == hub.files[name]
    assert {file["path"] for file in model["files_json"]} == hub.files.keys()


def test_one_file_is_a_model_of_its_own(hub: Hub, buyer: Buyer) -> None:
    """Beside the whole repository, whichever came first."""
    single = buyer.added(f"hf:{REPO}#{WEIGHTS}")
    assert [name for name, _ in hub.asked] == [WEIGHTS]
    assert (single["name"], single["source_uri"]) == (Path(WEIGHTS).stem, f"hf:{REPO}@{COMMIT}#{WEIGHTS}")
    whole = buyer.added(f"hf:{REPO}")
    assert {file["path"] for file in whole["files_json"]} == SAFE.keys()


def test_what_may_run_code_is_fetched_only_where_it_is_trusted(hub: Hub, buyer: Buyer) -> None:
    assert "--trust" in buyer.rejected(f"hf:{REPO}#old.ckpt")
    assert hub.asked == []
    model = buyer.added(f"hf:{REPO}", "--trust")
    assert {file["path"] for file in model["files_json"]} == hub.files.keys()
    hub.files = UNSAFE_SUFFIXES | {"config.json": b"{}"}
    assert "no weights in safetensors" in buyer.rejected(f"hf:{REPO}")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (f"{REPO}@v2", "can't be fetched: "),
        ("masons/castles/north", "can't be fetched: "),
        (f"{REPO}#moat.safetensors", "holds no moat.safetensors"),
    ],
)
def test_what_the_hub_does_not_hold_is_rejected_in_a_line(buyer: Buyer, source: str, message: str) -> None:
    assert message in buyer.rejected(f"hf:{source}")


def test_a_file_that_is_not_what_the_hub_told_is_rejected(hub: Hub, buyer: Buyer) -> None:
    for name in ("model_index.json", WEIGHTS):
        hub.lies = {name}
        assert f"{name} did not come as it should have" in buyer.rejected(f"hf:{REPO}")
        assert not (buyer.folder / "masons--castles" / COMMIT / name).exists()


@pytest.mark.parametrize("path", ["model_index.json", "unet"])
def test_a_class_that_diffusers_does_not_have_is_rejected(hub: Hub, buyer: Buyer, path: str) -> None:
    index = json.loads(SAFE["model_index.json"])
    if path == "unet":
        index["unet"] = ["diffusers", "CastleModel"]
    else:
        index["_class_name"] = "CastleModel"
    hub.files = SAFE | {"model_index.json": json.dumps(index).encode()}
    assert f"{path} wants CastleModel, which the installed diffusers does not have" in buyer.rejected(f"hf:{REPO}")


def test_no_file_of_a_repository_leaves_its_folder(hub: Hub, buyer: Buyer) -> None:
    hub.files = {"../../../stray.safetensors": b"x"}
    assert "leads out of the model's folder" in buyer.rejected(f"hf:{REPO}")
    assert hub.asked == []
