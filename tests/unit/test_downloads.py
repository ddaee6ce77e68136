"""Files that are brought into the folder of models."""

import fcntl
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from model_registry.downloads import ExpectedFile, transfer_files
from model_registry.registry import RegistryError, hash_model_files
from model_registry.sources import fetch_model

WORDS = b"weights of a model"
ARRIVAL = ExpectedFile(path="unet/weights.safetensors", size=len(WORDS), digest=hashlib.sha256(WORDS).hexdigest())


class Broken(Exception):
    """The line went dead."""


def rest(
    of: bytes, *, until: int | None = None, starts: list[int] | None = None
) -> Callable[[BinaryIO, ExpectedFile], None]:
    """Brings what is lacking; until: and breaks off there. starts: where it began."""

    def fill(part: BinaryIO, _: ExpectedFile) -> None:
        if starts is not None:
            starts.append(part.tell())
        part.write(of[part.tell() : until])
        if until is not None:
            raise Broken

    return fill


def test_a_file_bears_its_name_only_when_all_of_it_is_there(tmp_path: Path) -> None:
    """Given a try that breaks off, then the next one goes on where it ended, and a third has nothing to do."""
    starts: list[int] = []
    path = tmp_path / ARRIVAL.path
    with pytest.raises(Broken):
        transfer_files(tmp_path, [ARRIVAL], rest(WORDS, until=7, starts=starts))
    assert not path.exists()
    for _ in range(2):
        transfer_files(tmp_path, [ARRIVAL], rest(WORDS, starts=starts))
        assert path.read_bytes() == WORDS
    assert starts == [0, 7]
    assert list(path.parent.iterdir()) == [path]


def test_what_came_wrong_is_thrown_away(tmp_path: Path) -> None:
    """Given a part of another file, then the try is rejected, and the next one begins anew."""
    _left(tmp_path, b"something else")
    with pytest.raises(RegistryError, match="Try again"):
        transfer_files(tmp_path, [ARRIVAL], rest(WORDS))
    transfer_files(tmp_path, [ARRIVAL], rest(WORDS))
    assert (tmp_path / ARRIVAL.path).read_bytes() == WORDS


def test_a_part_that_is_too_long_is_begun_anew(tmp_path: Path) -> None:
    _left(tmp_path, WORDS + b" and more")
    transfer_files(tmp_path, [ARRIVAL], rest(WORDS))
    assert (tmp_path / ARRIVAL.path).read_bytes() == WORDS


def test_a_damaged_file_is_brought_again(tmp_path: Path) -> None:
    path = tmp_path / ARRIVAL.path
    path.parent.mkdir()
    path.write_bytes(WORDS.upper())
    transfer_files(tmp_path, [ARRIVAL], rest(WORDS))
    assert path.read_bytes() == WORDS


def test_gits_digest_of_a_file_is_known(tmp_path: Path) -> None:
    """`git hash-object` of this very text."""
    text = b"what is up, doc?"
    known = ExpectedFile(
        path="doc", size=len(text), digest="bd9dbf5aae1a3862dd1526723246b20206e5fc37", is_git_blob_sha1=True
    )
    (tmp_path / "doc").write_bytes(text)
    assert known.matches(tmp_path / "doc")


@pytest.mark.parametrize("path", ["../weights.safetensors", "/tmp/weights.safetensors", "unet/../../x.json"])
def test_no_file_leaves_the_folder(tmp_path: Path, path: str) -> None:
    with pytest.raises(RegistryError, match="leads out"):
        transfer_files(tmp_path / "models", [ExpectedFile(path=path, size=1, digest="")], rest(b"x"))
    assert list(tmp_path.iterdir()) == []


def test_no_file_comes_where_the_registry_does_not_look(tmp_path: Path) -> None:
    """Given a repository that holds weights among the hub's own notes, then it is rejected."""
    with pytest.raises(RegistryError, match="is not registered"):
        transfer_files(tmp_path, [ExpectedFile(path=".cache/huggingface/x.safetensors", size=1, digest="")], rest(b"x"))
    assert list(tmp_path.iterdir()) == []


def test_two_who_bring_the_same_file_do_not_mix_their_bytes(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    with (tmp_path / f"{ARRIVAL.path}.part").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(RegistryError, match="another process"):
            transfer_files(tmp_path, [ARRIVAL], rest(WORDS))


def test_a_copy_goes_on_where_it_was_interrupted_and_leaves_whole_files_alone(tmp_path: Path) -> None:
    model = tmp_path / "castles"
    model.mkdir()
    (model / "a.json").write_bytes(b"{}")
    (model / "b.safetensors").write_bytes(WORDS)
    copy = Path(fetch_model(str(model), tmp_path / "kept", copy=True).path)
    assert hash_model_files(copy) == hash_model_files(model)
    (copy / "b.safetensors").unlink()
    (copy / "b.safetensors.part").write_bytes(WORDS[:5])
    before = (copy / "a.json").stat()
    assert fetch_model(str(model), tmp_path / "kept", copy=True).path == str(copy)
    assert hash_model_files(copy) == hash_model_files(model)
    assert (copy / "a.json").stat().st_mtime_ns == before.st_mtime_ns


def test_a_changed_model_is_copied_beside_the_earlier_copy(tmp_path: Path) -> None:
    file = tmp_path / "castle.safetensors"
    copies = []
    for content in (b"one", b"two"):
        file.write_bytes(content)
        copies.append(Path(fetch_model(str(file), tmp_path / "kept", copy=True).path))
    assert [copy.read_bytes() for copy in copies] == [b"one", b"two"]
    assert {copy.name for copy in copies} == {"castle.safetensors"}


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    file = tmp_path / "castle.safetensors"
    file.write_bytes(WORDS)
    with pytest.raises(RegistryError, match=r"castle\.safetensors/kept"):
        fetch_model(str(file), file / "kept", copy=True)


def test_without_the_extra_a_fetch_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(RegistryError, match=r"pip install 'dream-forge\[diffusers\]'"):
        fetch_model("hf:masons/castles", tmp_path)


def _left(folder: Path, content: bytes) -> None:
    (folder / "unet").mkdir()
    (folder / f"{ARRIVAL.path}.part").write_bytes(content)
