"""`dreamforge models`: what it answers, how it exits, and whose database it uses."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dreamforge.cli import main as cli
from dreamforge.embedded import EmbeddedPostgres, Home
from dreamforge.settings import VARIABLES_BY_FIELD, unconfigured_environ
from tests import processes
from tests.embedded.conftest import of_home
from tests.kit import NOBODY
from tests.weights import CENTRAL, PIPELINE, UPSCALER, lay, safetensors

Json = Callable[..., Any]


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings but a test's own, and a model to register."""
    for var in VARIABLES_BY_FIELD.values():
        for name in var.names:
            monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("dreamforge.logs.configure_logging", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    lay(Path("castles"), PIPELINE)
    Path("weights.safetensors").write_bytes(safetensors())
    Path("sharp.safetensors").write_bytes(safetensors(name="body.0.weight"))


@pytest.fixture
def given_database(monkeypatch: pytest.MonkeyPatch, db_url: str) -> None:
    """DF_DB_URL names a database with the schema."""
    monkeypatch.setenv("DF_DB_URL", db_url)


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> Json:
    """Run a command that must succeed, or exit with another code; its answer as JSON."""

    def answer(*arguments: str, code: int = 0) -> Any:
        assert cli.main(["models", *arguments, "--output", "json"]) == code
        return msgspec.json.decode(capsys.readouterr().out)

    return answer


def run_in(home: Path, *arguments: str) -> Any:
    """Run a command in a process of its own, with nothing set but DF_HOME; its answer as JSON."""
    command = ["--no-env-file", "models", *arguments, "--output", "json"]
    done = processes.run(command, unconfigured_environ() | {"DF_HOME": str(home)})
    assert done.returncode == 0, done.stderr
    return msgspec.json.decode(done.stdout)


@pytest.mark.usefixtures("given_database")
def test_a_model_is_added_listed_shown_and_switched(answer: Json) -> None:
    model = answer("add", "castles", "--kind", "generator", "--version", "3")
    assert (model["name"], model["version"], model["installed"], model["enabled"]) == ("castles", "3", True, True)
    assert answer("show", "castles") == answer("show", model["id"]) == model
    assert [listed["id"] for listed in answer("list")] == [model["id"]]
    assert answer("disable", "castles")["enabled"] is False
    assert answer("list") == []
    assert [listed["id"] for listed in answer("list", "--all")] == [model["id"]]
    assert answer("enable", model["id"])["enabled"] is True


@pytest.mark.usefixtures("given_database")
def test_a_model_may_be_named_described_and_left_disabled(answer: Json) -> None:
    Path("schema.json").write_text('{"type": "object"}')
    given = "--kind gan-upscaler --name sharper --parameters-schema schema.json --disabled"
    model = answer("add", "sharp.safetensors", *given.split())
    assert (model["name"], model["parameters_schema"], model["enabled"]) == ("sharper", {"type": "object"}, False)
    assert model["files_json"][0]["path"] == "sharp.safetensors"


@pytest.mark.usefixtures("given_database")
def test_adding_a_model_again_says_so_and_answers_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    added = []
    for _ in range(2):
        assert cli.main(["models", "add", "castles", "--kind", "generator", "--output", "json"]) == 0
        captured = capsys.readouterr()
        added.append(msgspec.json.decode(captured.out))
    assert added[0] == added[1]
    assert captured.err == f"dreamforge: it is registered already, as {added[0]['id']}\n"


@pytest.mark.usefixtures("given_database")
def test_a_model_with_pickles_is_added_by_who_trusts_it(answer: Json, capsys: pytest.CaptureFixture[str]) -> None:
    Path("castles/old.ckpt").touch()
    answer("add", "castles", "--kind", "generator", "--trust")
    assert cli.main(["models", "show", "castles"]) == 0
    assert "trusted" in capsys.readouterr().out


@pytest.mark.usefixtures("given_database")
@pytest.mark.parametrize("source", ["castles", "weights.safetensors"])
def test_a_copy_outlives_its_original(answer: Json, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.setenv("DF_MODELS_DIR", "kept")
    model = answer("add", source, "--kind", "generator", "--copy")
    assert (model["name"], model["source_uri"]) == (Path(source).stem, Path(source).resolve().as_uri())
    assert Path(model["local_path"]).is_relative_to(Path("kept").resolve())
    again = answer("add", source, "--kind", "generator", "--copy")
    shutil.rmtree("castles")
    Path("weights.safetensors").unlink()
    assert again == model
    assert answer("verify")[0]["intact"] is True


@pytest.mark.usefixtures("given_database")
def test_a_copy_is_kept_in_the_home_unless_told_otherwise(answer: Json, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DF_HOME", "home")
    model = answer("add", "castles", "--kind", "generator", "--copy")
    assert Path(model["local_path"]).is_relative_to(Path("home/models/castles").resolve())


@pytest.mark.usefixtures("given_database")
def test_verify_exits_1_if_any_model_is_damaged_and_names_the_damage(answer: Json) -> None:
    model = answer("add", "castles", "--kind", "generator")
    assert answer("verify") == [{"id": model["id"], "name": "castles", "intact": True, "problems": []}]
    Path("castles/unet/config.json").write_bytes(b"[]")
    assert answer("verify", code=1)[0]["problems"] == ["unet/config.json has changed"]
    assert answer("verify", "castles", code=1)[0]["intact"] is False
    assert answer("show", "castles")["installed"] is False


@pytest.mark.usefixtures("given_database")
def test_tables_are_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("add castles --kind generator", "list", "show castles", "verify", "disable castles"):
        assert cli.main(["models", *command.split()]) == 0
        assert "castles" in capsys.readouterr().out
    shutil.rmtree("castles")
    Path("castles").mkdir()
    assert cli.main(["models", "verify"]) == 1
    assert "holds no file" in capsys.readouterr().out
    assert cli.main(["models", "enable", "castles"]) == 0
    assert "its files are damaged" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("add nowhere --kind generator", 2, "there is no such folder or file"),
        ("add hf:@main --kind generator", 2, "is no hf:repository[@revision][#file]"),
        ("add hf:some/model#old.ckpt --kind generator", 2, "--trust"),
        ("add pickles --kind generator", 2, "--trust"),
        ("add pickles --kind generator --copy", 2, "--trust"),
        ("add castles --kind generator --parameters-schema weights.safetensors", 2, "is no JSON Schema"),
        ("add castles --kind generator --parameters-schema bad.json", 2, "$.type"),
        (f"show {NOBODY}", 4, "There is no model"),
        ("enable nameless", 4, "There is no model nameless"),
    ],
)
@pytest.mark.usefixtures("given_database")
def test_a_rejection_is_one_line_and_an_exit_code(
    capsys: pytest.CaptureFixture[str], command: str, code: int, message: str
) -> None:
    Path("bad.json").write_text('{"type": "number of pixels"}')
    Path("pickles").mkdir()
    Path("pickles/old.ckpt").touch()
    assert cli.main(["models", *command.split()]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_database_that_is_away_exits_3(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DF_DB_URL", "postgresql://nobody@127.0.0.1:1/nothing")
    assert cli.main(["models", "list"]) == 3
    assert "PostgreSQL" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "add castles",
        "add castles --kind painter",
        "add castles --kind generator --parameters-schema nowhere",
        "show",
    ],
)
def test_a_wrong_argument_exits_2(arguments: str) -> None:
    with pytest.raises(SystemExit) as exited:
        cli.main(["models", *arguments.split()])
    assert exited.value.code == 2


def test_a_homes_database_is_shared_while_it_runs_and_started_while_it_does_not(home: Path) -> None:
    """A command neither stops a database that it found running, nor leaves one behind that it started."""
    EmbeddedPostgres.start(home).stop()
    model = run_in(home, "add", "castles", "--kind", "generator")
    assert not of_home(home)
    held = Home(home)
    held.lock()
    postgres = EmbeddedPostgres.start(home)
    assert EmbeddedPostgres.running_url(home) == postgres.url
    assert [listed["id"] for listed in run_in(home, "list")] == [model["id"]]
    assert EmbeddedPostgres.running_url(home) == postgres.url
    postgres.stop()
    assert EmbeddedPostgres.running_url(home) is None
    held.release()


def test_a_home_in_use_without_a_database_is_named(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is just starting, or whose database is elsewhere."""
    monkeypatch.setenv("DF_HOME", str(home))
    held = Home(home)
    held.lock()
    assert cli.main(["models", "list"]) == 3
    assert f"DF_HOME {home} is in use" in capsys.readouterr().err
    held.release()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 3438167540\n"
SHARDS = b'{"weight_map": {"a": "diffusion_pytorch_model.safetensors", "b": "second.safetensors"}}'
PICKLED = b'{"metadata": {}, "weight_map": {"a": "first.bin", "b": "second.bin"}}'
PICKLE = b"\x80\x02."
UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


def without(weights: str, instead: str, content: bytes) -> dict[str, bytes | None]:
    """A change of a folder: a file in another's place."""
    return {weights: None, instead: content}


@pytest.mark.parametrize(
    ("given", "files", "message"),
    [
        ("generator", {UNET: LFS}, "run `git lfs pull`"),
        ("generator", {"model_index.json": LFS}, "model_index.json is a pointer of Git LFS"),
        ("generator", {UNET: safetensors()[:-1]}, "it is cut off or damaged"),
        ("generator", {UNET: safetensors() + b"x"}, "it is cut off or damaged"),
        ("generator", {UNET: safetensors()[:40]}, "it has no whole header"),
        ("generator", {UNET: b""}, "it has no whole header"),
        ("generator", {UNET: b"\x02" + bytes(7) + b"[]"}, "can't be read"),
        ("generator", {UNET: b"\x02" + bytes(7) + b"{}"}, "holds no tensor"),
        ("generator", {"model_index.json": None}, "holds no model_index.json"),
        ("generator", {"model_index.json": PIPELINE["model_index.json"][:-9]}, "model_index.json is no JSON"),
        ("generator", {"model_index.json": b"{}"}, "names no _class_name"),
        ("generator", {UNET: None}, "unet holds no diffusion_pytorch_model.safetensors"),
        ("generator", {"unet/config.json": None}, "unet holds no config.json"),
        ("generator", {"unet/config.json": b"{"}, "unet/config.json is no JSON"),
        ("generator", {"tokenizer/merges.txt": None}, "names tokenizer, and there is no folder of it"),
        ("generator", {f"{UNET}.index.json": SHARDS}, "unet/second.safetensors is missing"),
        (
            "generator",
            without(UNET, "unet/diffusion_pytorch_model.fp16.safetensors", safetensors()),
            "unet/diffusion_pytorch_model.fp16.safetensors is a variant, and is not opened",
        ),
        (
            "generator",
            without(UNET, "unet/my_lora.safetensors", safetensors()),
            "unet holds no diffusion_pytorch_model.safetensors.\n",
        ),
        (
            "generator",
            without(UNET, "unet/model.safetensors.index.json", b'{"weight_map": {"a": "a.safetensors"}}')
            | {"unet/a.safetensors": safetensors()},
            "unet holds no diffusion_pytorch_model.safetensors.\n",
        ),
        (
            "generator",
            without(TEXT, "text_encoder/diffusion_pytorch_model.safetensors", safetensors()),
            "text_encoder holds no model.safetensors.\n",
        ),
        (
            "generator --trust",
            without(UNET, "unet/diffusion_pytorch_model.bin.index.json", PICKLED) | {"unet/first.bin": PICKLE},
            "unet holds no diffusion_pytorch_model.safetensors or diffusion_pytorch_model.bin.\n",
        ),
        (
            "generator --trust",
            without(TEXT, "text_encoder/pytorch_model.bin.index.json", PICKLED) | {"text_encoder/first.bin": PICKLE},
            "text_encoder/second.bin is missing",
        ),
        (
            "generator --trust",
            without(UNET, "unet/diffusion_pytorch_model.bin", b"<html>"),
            "unet/diffusion_pytorch_model.bin is no file of torch's",
        ),
        ("generator", UPSCALER, "add it with --kind diffusion-upscaler"),
        ("diffusion-upscaler", {}, "enlarges no image by 4"),
        ("gan-upscaler", {}, "found are 2"),
    ],
)
@pytest.mark.usefixtures("given_database")
def test_what_its_kind_could_not_be_opened_from_is_rejected_by_name(
    capsys: pytest.CaptureFixture[str], given: str, files: dict[str, bytes | None], message: str
) -> None:
    """Given a folder with one thing wrong, then nothing is registered."""
    for name, content in files.items():
        if content is None:
            (Path("castles") / name).unlink()
        else:
            lay(Path("castles"), {name: content})
    if files.get("tokenizer/merges.txt", b"") is None:
        Path("castles/tokenizer").rmdir()
    assert cli.main(["models", *f"add castles --kind {given}".split()]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert cli.main(["models", "list", "--all", "--output", "json"]) == 0
    assert msgspec.json.decode(capsys.readouterr().out) == []


@pytest.mark.usefixtures("given_database")
def test_what_its_kind_can_be_opened_from_is_added(answer: Json) -> None:
    lay(Path("larger"), UPSCALER)
    assert answer("add", "larger", "--kind", "diffusion-upscaler")["enabled"]
    assert answer("add", "weights.safetensors", "--kind", "generator")["enabled"]
    assert answer("add", "sharp.safetensors", "--kind", "gan-upscaler")["enabled"]
    Path("pickled.pt").write_bytes(PICKLE)
    assert answer("add", "pickled.pt", "--kind", "gan-upscaler", "--trust")["enabled"]
    shards = {f"unet/diffusion_pytorch_model-{part}.safetensors": safetensors(name=part) for part in ("a", "b")}
    index = {"metadata": {}, "weight_map": {part: f"diffusion_pytorch_model-{part}.safetensors" for part in ("a", "b")}}
    sharded = PIPELINE | shards | {f"{UNET}.index.json": msgspec.json.encode(index)}
    del sharded[UNET]
    lay(Path("sharded"), sharded | {"text_encoder/pytorch_model.bin.index.json": PICKLED})
    assert answer("add", "sharded", "--kind", "generator")["enabled"]
    pickled = {"unet/diffusion_pytorch_model.bin": PICKLE, "unet/openvino_model.bin": b"\0\0"}
    del sharded[f"{UNET}.index.json"]
    lay(Path("pickled"), sharded | pickled)
    assert answer("add", "pickled", "--kind", "generator", "--trust")["enabled"]
    named = {"text_encoder/config.json": b'{"transformers_weights": "other.safetensors"}'}
    lay(Path("named"), PIPELINE | named | {"text_encoder/other.safetensors": safetensors()})
    Path("named", TEXT).unlink()
    assert answer("add", "named", "--kind", "generator")["enabled"]


@pytest.mark.usefixtures("given_database")
@pytest.mark.parametrize(
    ("name", "content", "kind", "message"),
    [
        (
            "lora.safetensors",
            safetensors(name="lora_unet_down.weight"),
            "generator",
            f"none of its tensors' names begins with {CENTRAL[:22]}",
        ),
        ("whole.safetensors", safetensors(), "gan-upscaler", "add it with --kind generator"),
        ("cut.pth", b"PK\x03\x04" + bytes(99), "gan-upscaler", "cut.pth is cut off"),
        ("empty.pth", b"", "gan-upscaler", "empty.pth is no file of torch's"),
        ("page.pth", b"<!DOCTYPE html>", "gan-upscaler", "page.pth is no file of torch's"),
    ],
)
def test_a_file_that_is_no_model_of_its_kind_is_rejected_by_name(
    capsys: pytest.CaptureFixture[str], name: str, content: bytes, kind: str, message: str
) -> None:
    """Given a file, then the names of its tensors tell, or a pickle's first bytes and its archive's end."""
    Path(name).write_bytes(content)
    assert cli.main(["models", "add", name, "--kind", kind, "--trust"]) == 2
    assert message in capsys.readouterr().err
