"""What earlier releases wrote is still read: verified, folded, and understood as it was then."""

import json
from pathlib import Path

import pytest

from eventstore.integrity import bundle
from orchestrator import codec
from tests.corpus.writing import PLACE, folded, read

FILES = sorted(PLACE.glob("*.jsonl"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_earlier_releases_histories_verify(file: Path) -> None:
    with file.open("rb") as lines:
        assert bundle.verify_bundle(lines).flaws == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_earlier_releases_histories_fold_to_what_they_did(file: Path) -> None:
    """Jobs, models and keys, every field of them; and no event of theirs is unknown today."""
    histories = read(file)
    assert all(codec.decode_body(one) is not None for one in histories)
    assert folded(histories) == json.loads(file.with_suffix(".views.json").read_bytes())


def test_every_event_of_today_is_kept() -> None:
    """Given a new event, or a new version of one, then the corpus must get a file: `python -m tests.corpus.writing`."""
    kept = {(one.code, one.schema_version) for file in FILES for one in read(file)}
    assert {(code, kind.schema_version) for code, kind in codec.EVENT_TYPE_BY_CODE.items()} <= kept
