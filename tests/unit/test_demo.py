"""The demo's own part: what it asks for, and what it accepts as done."""

from pathlib import Path

import pytest
from PIL import Image

from dreamforge.demo import __main__ as demo
from dreamforge.demo import contact_sheet
from dreamforge.demo.contact_sheet import LabelledImage

SPEC = demo.DemoJobSpec(prompt="p", count=2, scale=2, width=32, height=16)


@pytest.fixture
def paths(tmp_path: Path) -> dict[tuple[str, int], Path]:
    """The images of a demo that went well."""
    paths = {(step, item): tmp_path / f"{step}-{item}.png" for step in demo.STEPS for item in range(SPEC.count)}
    for (step, _), path in paths.items():
        Image.new("RGB", SPEC.size(step), "teal").save(path)
    return paths


def test_nothing_given_takes_the_defaults() -> None:
    """Each of make's variables is passed on, empty where it was not given."""
    spec = demo.parse_spec(["--prompt=", "--count=", "--scale=", "--size="])
    assert spec == demo.parse_spec([])
    assert (spec.count, spec.scale, spec.width, spec.height) == (4, 2, 512, 512)


def test_a_wish_becomes_a_chained_job() -> None:
    spec = demo.parse_spec(["--prompt=a knight's castle", "--count=3", "--scale=4", "--size=64x32"])
    assert spec.request() == {
        "type": "generate",
        "prompt": "a knight's castle",
        "count": 3,
        "width": 64,
        "height": 32,
        "chain": {"upscale": {"scale": 4}},
    }


@pytest.mark.parametrize(
    ("argument", "variable"),
    [
        ("--count=0", "COUNT"),
        ("--count=many", "COUNT"),
        ("--scale=3", "SCALE"),
        ("--size=8", "SIZE"),
        ("--size=a", "SIZE"),
    ],
)
def test_a_wrong_wish_is_rejected_by_its_variables_name(
    argument: str, variable: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exited:
        demo.parse_spec([argument])
    assert exited.value.code == 2
    assert f"make demo: error: {variable}" in capsys.readouterr().err


def test_all_images_in_their_sizes_are_enough(paths: dict[tuple[str, int], Path]) -> None:
    demo.check_images(SPEC, paths)


def test_a_missing_image_is_named(paths: dict[tuple[str, int], Path]) -> None:
    del paths["upscale", 1]
    with pytest.raises(demo.DemoError, match="upscale 1 is missing"):
        demo.check_images(SPEC, paths)


def test_an_image_of_a_wrong_size_is_named(paths: dict[tuple[str, int], Path]) -> None:
    Image.new("RGB", (32, 16)).save(paths["upscale", 0])
    with pytest.raises(demo.DemoError, match=r"upscale-0\.png is 32x16, not 64x32"):
        demo.check_images(SPEC, paths)


def test_an_image_too_many_is_noticed(paths: dict[tuple[str, int], Path]) -> None:
    paths["generate", 2] = paths["generate", 1]
    with pytest.raises(demo.DemoError, match="5 artifacts, not 4"):
        demo.check_images(SPEC, paths)


@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize("size", [(64, 64), (64, 32), (16, 256)])
def test_a_contact_sheet_has_room_for_every_pair(tmp_path: Path, count: int, size: tuple[int, int]) -> None:
    """The upper image of each pair and the lower one are on it whole, none over another."""
    upper, lower, sheet = (tmp_path / name for name in ("upper.png", "lower.png", "sheet.png"))
    Image.new("RGB", size, "red").save(upper)
    Image.new("RGB", (size[0] * 2, size[1] * 2), "blue").save(lower)
    contact_sheet.write_contact_sheet(
        sheet, "t" * 500, [(LabelledImage(upper, "upper"), LabelledImage(lower, "lower"))] * count
    )
    with Image.open(sheet) as written:
        found = {colour: pixels for pixels, colour in written.getcolors(maxcolors=2**24) or []}
    factor = min(280 / size[0], 420 / size[1])
    area = round(size[0] * factor) * round(size[1] * factor)
    assert (found[255, 0, 0], found[0, 0, 255]) == (count * area, count * area)
