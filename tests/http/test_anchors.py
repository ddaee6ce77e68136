"""GET /v1/anchors: the log's signed heads."""

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from artifacts.object_store import S3Config
from dreamforge.operations import anchoring
from eventstore.integrity import anchors
from eventstore.integrity.anchors import Anchor
from tests.http.conftest import consumer, invalid, running
from tests.kit import Api, Store, dreamforge, roles_environ

KEY = Ed25519PrivateKey.generate()


class Anchored(msgspec.Struct, frozen=True):
    """An API, and the store whose log it reads."""

    api: Api
    store: Store

    async def sign(self) -> Anchor:
        """A new anchor."""
        return await anchoring.sign_anchor(self.store.log, None, KEY, "test")

    def items(self, **params: int) -> list[bytes]:
        """The texts of the items that the list answers."""
        answer = self.api.http.get("/v1/anchors", params=params)
        assert answer.status_code == 200, answer.text
        found = msgspec.json.decode(answer.content, type=dict[str, list[msgspec.Raw]])
        assert found.keys() == {"items"}
        return [bytes(item) for item in found["items"]]


@pytest.fixture
async def anchored(store: Store, db_url: str, s3_config: S3Config) -> AsyncIterator[Anchored]:
    """On a database of its own."""
    with running("api", db_url, s3_config) as service, consumer(service) as api:
        yield Anchored(api, store)


async def test_they_come_newest_first_and_as_many_as_asked_for(anchored: Anchored) -> None:
    """50 unless told otherwise; none where nothing was signed."""
    assert anchored.items() == []
    signed = [msgspec.json.encode(await anchored.sign()) for _ in range(52)][::-1]
    assert anchored.items() == signed[:50]
    assert anchored.items(limit=200) == signed
    assert anchored.items(limit=1) == signed[:1]
    for limit in (0, 201, -1):
        invalid(anchored.api.http.get("/v1/anchors", params={"limit": limit}), "limit")


async def test_an_item_is_a_file_that_verify_reads(
    anchored: Anchored, db_url: str, s3_config: S3Config, tmp_path: Path
) -> None:
    """Given an item as it came, the log is held against it; one that was changed proves nothing."""
    anchored.api.create()
    await anchored.sign()
    [item] = anchored.items()
    file = tmp_path / "anchor.json"
    trusted = ("--anchor", str(file), "--key", anchors.public_key_hex(KEY))
    for text, code, told in (
        (item, 0, "2 anchor(s)"),  # itself, and the same as it stands in the log
        (item.replace(b'"position":1', b'"position":2', 1), 1, "is not that of its content"),
    ):
        file.write_bytes(text)
        done = dreamforge("audit", "verify", "--all", *trusted, **roles_environ(db_url, s3_config))
        assert done.returncode == code, done.stderr
        assert told in done.stdout + done.stderr
