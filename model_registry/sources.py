"""Where a model comes from: a path on this machine, a copy of it, or a repository of the Hugging Face Hub."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from model_registry.downloads import ExpectedFile, transfer_files
from model_registry.registry import RegistryError, expect_safe_files, hash_model_files, resolve_path
from model_registry.view import files_digest
from orchestrator.events import ModelFile

_HUB_SOURCE_PATTERN = re.compile(r"hf:(?P<repo>[^@#]+)(?:@(?P<revision>[^#]+))?(?:#(?P<file>.+))?")
_COMMIT_HASH_PATTERN = re.compile(r"[0-9a-f]{40}")
_SAFE_SUFFIXES = (".safetensors", ".json", ".txt", ".model")
_HUB_TIMEOUT_S = 30.0


class LocalModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model on this machine. name: None means the name of its folder or file.

    source_uri: where it was fetched or copied from; None if it was not.
    """

    path: str
    name: str | None = None
    source_uri: str | None = None


def fetch_model(source: str, folder: Path, *, copy: bool = False, trust: bool = False) -> LocalModel:
    """Make a model available on this machine. source: a path, or `hf:repository[@revision][#file]`.

    folder: for fetched and copied models. copy: copy a model of this machine to the folder. trust: allow files that may
    run code when they are opened. Raises `RegistryError`.
    """
    try:
        if source.startswith("hf:"):
            return _fetch_from_hub(source, folder, trust=trust)
        return _copy_model(source, folder, trust=trust) if copy else LocalModel(path=source)
    except OSError as error:
        raise RegistryError(f"{source} can't be brought to {folder}: {_one_line_message(error)}.") from error


def _copy_model(source: str, folder: Path, *, trust: bool) -> LocalModel:
    path = resolve_path(source)
    files = hash_model_files(path)
    if not trust:
        expect_safe_files(source, (file.path for file in files))
    is_file = path.is_file()
    name = path.stem if is_file else path.name
    # Each content has its own folder, so that an earlier copy, which is registered, does not change.
    target = folder / name / files_digest(files)[:12]

    def append(part: BinaryIO, file: ExpectedFile) -> None:
        with (path if is_file else path / file.path).open("rb") as original:
            original.seek(part.tell())
            shutil.copyfileobj(original, part, 2**20)

    transfer_files(target, [_expected_file(file) for file in files], append)
    return LocalModel(path=str(target / files[0].path if is_file else target), name=name, source_uri=path.as_uri())


def _expected_file(file: ModelFile) -> ExpectedFile:
    return ExpectedFile(path=file.path, size=file.size, digest=file.sha256)


def _fetch_from_hub(source: str, folder: Path, *, trust: bool) -> LocalModel:
    """Fetch a repository's files as of one commit.

    Each selection of files (safe files, all files, a single file) has its own folder: files of another selection would
    count as damage.
    """
    match = _HUB_SOURCE_PATTERN.fullmatch(source)
    if match is None:
        raise RegistryError(f"{source} is no hf:repository[@revision][#file].")
    repo, revision, file_path = match["repo"], match["revision"] or "main", match["file"]
    if file_path and not trust:
        expect_safe_files(source, [file_path])
    hub = _HubRepository(repo)
    commit, files = hub.list_files(revision)
    if file_path:
        chosen = [file for file in files if file.path == file_path]
    else:
        chosen = [file for file in files if trust or file.path.endswith(_SAFE_SUFFIXES)]
    if not chosen:
        raise RegistryError(f"{repo} holds no {file_path or 'file of a model'} at {commit}.")
    if not trust and not file_path and not any(file.path.endswith(".safetensors") for file in chosen):
        raise RegistryError(
            f"{repo} holds no weights in safetensors; others may run code of their own when they are opened: say "
            "--trust if you trust whoever made it."
        )
    target = folder / repo.replace("/", "--") / (commit + ("-files" if file_path else "-trusted" if trust else ""))
    transfer_files(target, chosen, hub.make_append_function(commit))
    name = Path(file_path).stem if file_path else repo.rpartition("/")[2]
    uri = f"hf:{repo}@{commit}" + (f"#{file_path}" if file_path else "")
    return LocalModel(path=str(target / file_path if file_path else target), name=name, source_uri=uri)


class _HubRepository:
    """A repository of the hub. huggingface_hub's own downloads do not resume after a crash, so this class appends."""

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

    def list_files(self, revision: str) -> tuple[str, list[ExpectedFile]]:
        """The commit that a revision points to now, and its files."""
        info = self._call_hub(
            lambda: self._hub.HfApi().model_info(
                self._repo, revision=revision, files_metadata=True, timeout=_HUB_TIMEOUT_S
            )
        )
        if info.sha is None or not _COMMIT_HASH_PATTERN.fullmatch(info.sha):
            raise RegistryError(f"{self._repo}: the hub names no commit.")
        return info.sha, [self._expected_file(file) for file in info.siblings or []]

    def make_append_function(self, commit: str) -> Callable[[BinaryIO, ExpectedFile], None]:
        """A function that appends the rest of a file of this commit to a partial file."""
        headers = self._hub.utils.build_hf_headers() | {"Accept-Encoding": "identity"}

        def append(part: BinaryIO, file: ExpectedFile) -> None:
            url = self._hub.hf_hub_url(self._repo, file.path, revision=commit)
            self._call_hub(
                lambda: self._http_get(url, part, resume_size=part.tell(), headers=headers, expected_size=file.size)
            )

        return append

    def _expected_file(self, file: Any) -> ExpectedFile:
        if file.lfs is not None:
            return ExpectedFile(path=file.rfilename, size=file.lfs.size, digest=file.lfs.sha256)
        if file.size is None or file.blob_id is None:
            raise RegistryError(f"{self._repo}: the hub reports no size and digest for {file.rfilename}.")
        return ExpectedFile(path=file.rfilename, size=file.size, digest=file.blob_id, is_git_blob_sha1=True)

    def _call_hub(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except self._failures as error:
            raise RegistryError(f"{self._repo} can't be fetched: {_one_line_message(error)}.") from error


def _one_line_message(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
