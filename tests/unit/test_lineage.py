"""Where a picture came from, within its file: written, read back by others, and taken out again."""

from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from PIL import Image, JpegImagePlugin, PngImagePlugin

from artifacts.encoding import encode
from artifacts.errors import InvalidSource
from artifacts.lineage import (
    GenerateInputs,
    Lineage,
    UpscaleInputs,
    embed_lineage,
    lineage_of,
    parameters_text,
    read_lineage,
    remove_private_text,
)
from dreamforge.cli import main as cli
from eventstore.ids import new_id
from orchestrator.events import PersonalText, Rendering
from orchestrator.parameters import ImageFormat
from runners.engines.landscape import paint
from tests.kit import History, project_root

RENDERING = Rendering(
    engine="diffusers",
    device="cuda:NVIDIA H100",
    dtype="bfloat16",
    versions={"torch": "2.13.0", "diffusers": "0.42.1"},
    model_id=new_id(),
    model_sha256="ab" * 32,
    scheduler="DPMSolverMultistepScheduler",
    batch_size=4,
    batch_index=2,
)
FORMATS: list[ImageFormat] = ["png", "jpg"]
LONGEST = 4096


def a_lineage(prompt: str | None = "ein Schloß, 城, 🏰", negative: str | None = "fog") -> Lineage:
    generated = GenerateInputs(
        prompt=prompt,
        negative_prompt=negative,
        seed=7,
        width=24,
        height=16,
        steps=30,
        guidance=7.5,
        scheduler="dpmpp_2m_karras",
        rendering=RENDERING,
    )
    upscaled = UpscaleInputs(scale=2, impl="auto", parent_sha256="cd" * 32, rendering=None)
    return Lineage(job_id=new_id(), item_index=3, generate=generated, upscale=upscaled)


def picture(fmt: ImageFormat, size: tuple[int, int] = (48, 32)) -> bytes:
    return encode(paint("a castle", 1, size), fmt)


def opened(body: bytes) -> Image.Image:
    image = Image.open(BytesIO(body))
    image.load()
    return image


@pytest.mark.parametrize("fmt", FORMATS)
@given(prompt=st.text(max_size=200), negative=st.none() | st.text(max_size=200))
def test_what_is_embedded_is_read_back_and_touches_no_pixel(
    fmt: ImageFormat, prompt: str, negative: str | None
) -> None:
    """Whatever the texts; embedded anew it replaces what was there."""
    plain, found = picture(fmt), a_lineage(prompt, negative)
    body = embed_lineage(plain, found)
    assert read_lineage(body) == found
    assert opened(body).tobytes() == opened(plain).tobytes()
    assert embed_lineage(embed_lineage(plain, a_lineage()), found) == body
    assert read_lineage(plain) is None


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("letter", ["a", "é", "🏰", "\x01", '"'])
def test_the_longest_prompts_fit(fmt: ImageFormat, letter: str) -> None:
    """A JPEG's segment holds 65,533 bytes; each of these letters takes another number of them."""
    found = a_lineage(letter * LONGEST, letter * LONGEST)
    assert read_lineage(embed_lineage(picture(fmt), found)) == found


@pytest.mark.parametrize("prompt", ["a castle", "ein Schloß", "城 🏰"])
def test_other_tools_find_the_text_where_they_look(prompt: str) -> None:
    """PNG: the text chunk `parameters`; JPEG: EXIF's UserComment, as piexif reads it."""
    found = a_lineage(prompt)
    text = parameters_text(found)
    assert text.splitlines()[:2] == [prompt, "Negative prompt: fog"]
    assert text.splitlines()[2].startswith(
        "Steps: 30, Sampler: DPM++ 2M Karras, CFG scale: 7.5, Seed: 7, Size: 24x16, "
    )
    png = cast("PngImagePlugin.PngImageFile", opened(embed_lineage(picture("png"), found)))
    assert png.text["parameters"] == text
    assert msgspec.json.decode(str(png.text["dreamforge"]).encode(), type=Lineage) == found
    jpeg = cast("JpegImagePlugin.JpegImageFile", opened(embed_lineage(picture("jpg"), found)))
    comment: bytes = jpeg.getexif().get_ifd(0x8769)[0x9286]
    assert comment.startswith(b"UNICODE\0")
    assert comment[8:].decode("utf-16-be") == text
    assert msgspec.json.decode(jpeg.info["comment"], type=Lineage) == found


def test_the_model_hash_is_that_of_the_one_file_of_weights() -> None:
    """As galleries read it; a model of several files has none, whatever else is known of it."""
    found = a_lineage()
    assert "Model hash" not in parameters_text(found)
    single = replace(RENDERING, weights_sha256="0123456789abcdef" * 4)
    known = replace(found, generate=replace(found.generate, rendering=single))
    assert ", Model hash: 0123456789, Model: " in parameters_text(known)
    erased = replace(known, generate=replace(known.generate, prompt=None, negative_prompt=None))
    assert embed_lineage(picture("png"), erased) == remove_private_text(embed_lineage(picture("png"), known))


@pytest.mark.parametrize("fmt", FORMATS)
def test_stripping_takes_the_texts_and_leaves_the_rest(fmt: ImageFormat) -> None:
    """No byte of them stays; a second time changes nothing; a file without lineage stays as it is."""
    plain, found = picture(fmt), a_lineage("a secret harbour", "a secret fog")
    body = remove_private_text(embed_lineage(plain, found))
    for text in ("secret", "secret".encode("utf-16-be"), "secret".encode("utf-16-le")):
        assert (text if isinstance(text, bytes) else text.encode()) not in body
    anonymous = replace(found.generate, prompt=None, negative_prompt=None)
    assert read_lineage(body) == replace(found, generate=anonymous)
    assert opened(body).tobytes() == opened(plain).tobytes()
    assert remove_private_text(body) == body
    assert remove_private_text(plain) == plain


@pytest.mark.parametrize("fmt", FORMATS)
@given(data=st.data())
def test_a_broken_file_is_told_in_a_sentence(fmt: ImageFormat, data: Any) -> None:
    """Given any byte changed, or the file cut anywhere, then it is read, or rejected."""
    body = bytearray(embed_lineage(picture(fmt), a_lineage()))
    at = data.draw(st.integers(0, len(body) - 1))
    body[at] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.none() | st.integers(0, len(body)))
    with suppress(InvalidSource):
        read_lineage(bytes(body[:cut]))


def test_it_tells_what_the_job_asked_for_and_both_steps_did() -> None:
    """And nothing of attempts or times: the same item has the same lineage whoever renders it when."""
    history = History(count=2).started("generate").wrote("generate", 0, 1).finished("generate").started("upscale")
    job = replace(history.state, private=PersonalText(prompt="a castle"))
    parent = job.steps[0].artifacts[1]
    made = replace(parent, rendering=RENDERING)
    step = replace(job.steps[0], artifacts={**job.steps[0].artifacts, 1: made})
    job = replace(job, steps=(step, job.steps[1]))
    found = lineage_of(job, "upscale", 1, None)
    assert (found.generate.prompt, found.generate.rendering) == ("a castle", RENDERING)
    assert found.upscale == UpscaleInputs(scale=2, impl="auto", parent_sha256=parent.sha256, rendering=None)
    again = replace(job, steps=(step, replace(job.steps[1], attempt=9)))
    assert lineage_of(again, "upscale", 1, None) == found
    assert lineage_of(job, "generate", 0, None).upscale is None


def test_the_documents_example_is_a_lineage() -> None:
    """And shows every field of it."""
    page = (project_root() / "docs" / "images.md").read_text("utf-8")
    text = page.split("```json\n", 1)[1].split("```", 1)[0]
    found = msgspec.json.decode(text, type=Lineage, strict=True)
    assert msgspec.to_builtins(found) == msgspec.json.decode(text)


def test_a_strangers_file_does_not_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Given a prompt with escape sequences, then they are shown as what they are not: text."""
    path = tmp_path / "theirs.png"
    path.write_bytes(embed_lineage(picture("png"), a_lineage("a \x1b]0;title\x07 castle\x9b31m")))
    assert cli.main(["--no-env-file", "artifact", "show", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "castle" in shown
    assert not set(shown) & {"\x1b", "\x07", "\x9b"}


def test_a_file_that_is_not_what_it_says_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Given an image's text in another one's file, then it is shown, and so is the difference."""
    path = tmp_path / "theirs.png"
    other = picture("png", (30, 20))
    path.write_bytes(embed_lineage(other, a_lineage("a castle")))
    assert cli.main(["--no-env-file", "artifact", "show", str(path)]) == 1
    shown = capsys.readouterr()
    assert "castle" in shown.out
    assert "the file is 30x20, and says that it is" in shown.err
