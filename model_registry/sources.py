"""Where a model comes from: a place on this machine, a copy of it, or a repository of Hugging Face's hub."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from model_registry.downloads import Download, receive
from model_registry.registry import RegistryError, expect_safe, inventory, resolved
from model_registry.view import files_digest
from orchestrator.events.models import ModelFile

_HUB = re.compile(r"hf:(?P<repo>[^@#]+)(?:@(?P<revision>[^#]+))?(?:#(?P<file>.+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SAFE = (".safetensors", ".json", ".txt", ".model")
_TIMEOUT_S = 30.0


class Obtained(msgspec.Struct, frozen=True, kw_only=True):
    """A model that lies on this machine. name: what it is called; None: like its folder or file.

    source_uri: where it came from; None: it has always been there.
    """

    path: str
    name: str | None = None
    source_uri: str | None = None


def obtain(source: str, folder: Path, *, copy: bool = False, trust: bool = False) -> Obtained:
    """Bring a model to this machine. source: a path, or `hf:repository[@revision][#file]`.

    folder: where fetched and copied models lie. copy: one of this machine is copied there. trust: files that may run
    code when they are opened may come. Raises `RegistryError`.
    """
    try:
        if source.startswith("hf:"):
            return _fetched(source, folder, trust=trust)
        return _copied(source, folder, trust=trust) if copy else Obtained(path=source)
    except OSError as error:
        raise RegistryError(f"{source} can't be brought to {folder}: {_line(error)}.") from error


def _copied(source: str, folder: Path, *, trust: bool) -> Obtained:
    path = resolved(source)
    files = inventory(path)
    if not trust:
        expect_safe(source, (file.path for file in files))
    single = path.is_file()
    name = path.stem if single else path.name
    # Each content has a folder of its own, so that what was copied earlier stays what was registered.
    into = folder / name / files_digest(files)[:12]

    def append(part: BinaryIO, file: Download) -> None:
        with (path if single else path / file.path).open("rb") as original:
            original.seek(part.tell())
            shutil.copyfileobj(original, part, 2**20)

    receive(into, [_arrival(file) for file in files], append)
    return Obtained(path=str(into / files[0].path if single else into), name=name, source_uri=path.as_uri())


def _arrival(file: ModelFile) -> Download:
    return Download(path=file.path, size=file.size, digest=file.sha256)


def _fetched(source: str, folder: Path, *, trust: bool) -> Obtained:
    """Fetch a repository's files as one commit has them.

    Each choice of files has its own folder, since files of another would look like damage: the commit's for the safe
    files alone, others for all files and for single ones.
    """
    match = _HUB.fullmatch(source)
    if match is None:
        raise RegistryError(f"{source} is no hf:repository[@revision][#file].")
    repo, revision, single = match["repo"], match["revision"] or "main", match["file"]
    if single and not trust:
        expect_safe(source, [single])
    hub = _Hub(repo)
    commit, files = hub.listed(revision)
    if single:
        wanted = [file for file in files if file.path == single]
    else:
        wanted = [file for file in files if trust or file.path.endswith(_SAFE)]
    if not wanted:
        raise RegistryError(f"{repo} holds no {single or 'file of a model'} at {commit}.")
    if not trust and not single and not any(file.path.endswith(".safetensors") for file in wanted):
        raise RegistryError(
            f"{repo} holds no weights in safetensors; others may run code of their own when they are opened: say "
            "--trust if you trust whoever made it."
        )
    into = folder / repo.replace("/", "--") / (commit + ("-files" if single else "-trusted" if trust else ""))
    receive(into, wanted, hub.filling(commit))
    name = Path(single).stem if single else repo.rpartition("/")[2]
    uri = f"hf:{repo}@{commit}" + (f"#{single}" if single else "")
    return Obtained(path=str(into / single if single else into), name=name, source_uri=uri)


class _Hub:
    """A repository of the hub. Its own downloads begin anew after a crash, so files are filled here."""

    def __init__(self, repo: str) -> None:
        try:
            import huggingface_hub  # noqa: PLC0415 - it comes with an extra
            from huggingface_hub import errors, file_download  # noqa: PLC0415
        except ImportError:
            raise RegistryError(
                "models are fetched by huggingface_hub: pip install 'dream-forge[diffusers]'."
            ) from None
        huggingface_hub.utils.disable_progress_bars()
        self._repo = repo
        self._hub = huggingface_hub
        self._http_get = file_download.http_get
        self._failures = (OSError, ValueError, errors.HTTPError)

    def listed(self, revision: str) -> tuple[str, list[Download]]:
        """The commit that a revision stands for now, and its files."""
        info = self._asked(
            lambda: self._hub.HfApi().model_info(self._repo, revision=revision, files_metadata=True, timeout=_TIMEOUT_S)
        )
        if info.sha is None or not _COMMIT.fullmatch(info.sha):
            raise RegistryError(f"{self._repo}: the hub names no commit.")
        return info.sha, [self._listed(file) for file in info.siblings or []]

    def filling(self, commit: str) -> Callable[[BinaryIO, Download], None]:
        """What appends the rest of a commit's file to a part of it."""
        headers = self._hub.utils.build_hf_headers() | {"Accept-Encoding": "identity"}

        def append(part: BinaryIO, file: Download) -> None:
            url = self._hub.hf_hub_url(self._repo, file.path, revision=commit)
            self._asked(
                lambda: self._http_get(url, part, resume_size=part.tell(), headers=headers, expected_size=file.size)
            )

        return append

    def _listed(self, file: Any) -> Download:
        if file.lfs is not None:
            return Download(path=file.rfilename, size=file.lfs.size, digest=file.lfs.sha256)
        if file.size is None or file.blob_id is None:
            raise RegistryError(f"{self._repo}: the hub does not tell the size and digest of {file.rfilename}.")
        return Download(path=file.rfilename, size=file.size, digest=file.blob_id, as_git=True)

    def _asked(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except self._failures as error:
            raise RegistryError(f"{self._repo} can't be fetched: {_line(error)}.") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
