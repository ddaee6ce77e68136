"""GET /v1/projections: how far each has come."""

from artifacts.object_store import S3Config
from eventstore.log import Batch, CheckpointMove
from tests.http.conftest import consumer, running
from tests.kit import Store, some_append, stream_in

PLACE = {"projection", "partition", "position", "head", "lag", "lag_s"}


async def test_each_projection_tells_what_waits_for_it(store: Store, db_url: str, s3_config: S3Config) -> None:
    """Given four events in a partition and one elsewhere, then those wait that the checkpoint has not passed."""
    with running("api", db_url, s3_config) as service, consumer(service) as api:
        assert api.get("/v1/projections") == {"items": []}
        await store.log.subscribe("readmodel")
        await store.log.subscribe("another")
        await store.log.commit(Batch(appends=[some_append(stream_in(4), count=4), some_append(stream_in(5))]))
        await store.log.commit(Batch(moves=[CheckpointMove(subscription="readmodel", partition=4, start=0, end=3)]))
        answer = api.get("/v1/projections")
    assert answer.keys() == {"items"}
    assert all(one.keys() == PLACE for one in answer["items"])
    found = {(one["projection"], one["partition"]): one for one in answer["items"]}
    assert list(found) == [(name, partition) for name in ("another", "readmodel") for partition in range(8)]
    waiting = {key: (one["position"], one["head"], one["lag"]) for key, one in found.items() if one["lag"]}
    assert waiting == {
        ("another", 4): (0, 4, 4),
        ("another", 5): (0, 1, 1),
        ("readmodel", 4): (3, 4, 1),
        ("readmodel", 5): (0, 1, 1),
    }
    assert all((one["lag_s"] is None) == (one["lag"] == 0) for one in answer["items"])
