"""With keys asked for, nobody is let in who has none, and a tenant sees and touches its own things alone."""

import asyncio
import re
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import httpx
import msgspec
import pytest

from api import openapi
from api.operations import OPERATIONS, Operation
from api.tokens import Claims, encode
from eventstore.events import KeyCreated, KeyRevoked, Meta, Scope
from eventstore.ids import new_id
from eventstore.log import Append, Batch
from orchestrator.transact import event
from projections.keys import digest, key_text
from runners.objects import S3Config
from tests.conftest import Backends, fresh_database
from tests.http.conftest import BODY, refused, running, until
from tests.kit import NOBODY, Service, Store, eventually

GUARDED = [one for one in OPERATIONS if one.scopes]


class Realm(msgspec.Struct, frozen=True):
    """A service that asks for keys, and its database."""

    service: Service
    url: str

    def key(self, tenant: str, *scopes: Scope) -> str:
        """A new key."""
        return asyncio.run(self._key(tenant, list(scopes)))

    async def _key(self, tenant: str, scopes: list[Scope]) -> str:
        key_id = new_id()
        text = key_text(key_id, "x" * 42 + "A")
        made = event(KeyCreated(name=str(key_id), scopes=scopes, digest=digest(text)), Meta())
        await self._append(Append(stream=key_id, category="key", tenant=tenant, expected=0, events=(made,)))
        return text

    def revoke(self, tenant: str, key: str) -> None:
        """Let a key open nothing any more."""
        key_id = id_of(key)
        gone = event(KeyRevoked(), Meta())
        asyncio.run(self._append(Append(stream=key_id, category="key", tenant=tenant, expected=1, events=(gone,))))

    async def _append(self, append: Append) -> None:
        store = Store(self.url, listen=False)
        assert (await store.log.commit(Batch(appends=[append]))).streams[append.stream].stands
        await store.close()

    def secret(self) -> bytes:
        """What the servers make stream tokens with."""

        async def read() -> bytes:
            store = Store(self.url, listen=False)
            rows = await store.database.read("select secret from eventstore.secrets")
            await store.close()
            return bytes(rows[0]["secret"])

        return asyncio.run(read())

    def client(self, key: str | None) -> httpx.Client:
        """A client that shows a key."""
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.service.url, headers=headers, timeout=30, trust_env=False)


def id_of(key: str) -> UUID:
    """The id in a key."""
    return UUID(hex=key[3:35])


@pytest.fixture(scope="module")
def realm(backends: Backends, s3_config: S3Config) -> Iterator[Realm]:
    """A service of every role, whose jobs run."""
    with (
        fresh_database(backends) as url,
        running("up", url, s3_config, DF_REQUIRE_KEYS="1", DF_STREAM_MAX_S="0.3") as service,
    ):
        yield Realm(service, url)


@pytest.fixture(scope="module")
def alice(realm: Realm) -> Iterator[httpx.Client]:
    """Of tenant alice, with every scope."""
    with realm.client(realm.key("alice", "jobs", "audit", "admin")) as client:
        until(lambda: client.get("/v1/").status_code == 200)
        yield client


@pytest.fixture(scope="module")
def bob(realm: Realm) -> Iterator[httpx.Client]:
    """Of tenant bob, with every scope."""
    with realm.client(realm.key("bob", "jobs", "audit", "admin")) as client:
        until(lambda: client.get("/v1/").status_code == 200)
        yield client


@pytest.fixture(scope="module")
def operator(realm: Realm) -> Iterator[httpx.Client]:
    """Of tenant alice, with a scope that opens nothing of these."""
    with realm.client(realm.key("alice", "admin")) as client:
        until(lambda: client.get("/v1/").status_code == 200)
        yield client


@pytest.fixture(scope="module")
def job(alice: httpx.Client) -> dict[str, Any]:
    """A job of alice's that has ended, and one of its artifacts."""
    made = alice.post("/v1/jobs", json=BODY, headers={"Prefer": "wait=60"})
    assert made.status_code == 200, made.text
    job_id = made.json()["job"]["id"]
    artifacts = alice.get(f"/v1/jobs/{job_id}/artifacts").json()["artifacts"]
    return {"job_id": job_id, "artifact_id": artifacts[0]["id"], "s3_key": artifacts[0]["s3_key"]}


def ask(client: httpx.Client, operation: Operation, job: dict[str, Any]) -> httpx.Response:
    """One operation, on a job where it is about one."""
    path = operation.path.format(**job, model_id=NOBODY)
    body = BODY if operation.name == "createJob" else None
    headers = {"Last-Event-ID": "0"} if operation.path.endswith("/progress/stream") else {}
    return client.request(operation.method, path, json=body, headers=headers)


def names(operation: Operation) -> str:
    """What a test of it is called."""
    return operation.name


def test_every_path_under_v1_asks_for_a_scope() -> None:
    """A new operation can't be forgotten: it names its scopes, and so the document tells of the key."""
    assert {one.path for one in OPERATIONS if one.path.startswith("/v1")} == {one.path for one in GUARDED}
    document = openapi.document()
    for operation in GUARDED:
        described = document["paths"][operation.path][operation.method.lower()]
        assert {"401", "403"} <= described["responses"].keys()
        assert {"key": []} in described["security"]


@pytest.mark.parametrize("operation", GUARDED, ids=names)
def test_without_a_key_nothing_opens(realm: Realm, job: dict[str, Any], operation: Operation) -> None:
    with realm.client(None) as stranger:
        answer = ask(stranger, operation, job)
    refused(answer, 401, "unauthorized")
    assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("operation", GUARDED, ids=names)
def test_a_key_without_the_scope_is_refused(operator: httpx.Client, job: dict[str, Any], operation: Operation) -> None:
    """All but the service's name."""
    answer = ask(operator, operation, job)
    if "admin" in operation.scopes:
        assert answer.status_code == 200
        return
    assert refused(answer, 403, "forbidden") == {"field": "Authorization", "scopes": list(operation.scopes)}


@pytest.mark.parametrize("operation", GUARDED, ids=names)
def test_another_tenant_finds_nothing(bob: httpx.Client, job: dict[str, Any], operation: Operation) -> None:
    """What is alice's does not exist for bob: 404, or a list without it."""
    answer = ask(bob, operation, job)
    if "{job_id}" in operation.path:
        refused(answer, 404, "not_found")
        nobodys = ask(bob, operation, job | {"job_id": str(NOBODY)})
        assert nobodys.text.replace(str(NOBODY), job["job_id"]).count(job["job_id"]) == answer.text.count(job["job_id"])
    assert job["job_id"] not in re.sub(r'"message":"[^"]*"', "", answer.text)
    assert job["s3_key"] not in answer.text


def test_lists_and_the_log_show_a_tenant_its_own(alice: httpx.Client, bob: httpx.Client, job: dict[str, Any]) -> None:
    def listed(client: httpx.Client) -> set[str]:
        return {one["id"] for one in client.get("/v1/jobs").json()["jobs"]}

    until(lambda: job["job_id"] in listed(alice))
    mine = bob.post("/v1/jobs", json=BODY).json()["job"]["id"]
    until(lambda: mine in listed(bob))
    assert job["job_id"] not in listed(bob)
    assert mine not in listed(alice)
    for client, own, other in ((alice, job["job_id"], mine), (bob, mine, job["job_id"])):
        seen = {one["stream"] for one in client.get("/v1/events", params={"limit": 1000}).json()["events"]}
        live = client.get("/v1/events/stream", params={"from": "start"}).text
        assert own in seen
        assert own in live
        assert other not in seen
        assert other not in live


def test_a_log_of_others_alone_is_passed_by(realm: Realm, alice: httpx.Client, job: dict[str, Any]) -> None:
    """The cursor of a tenant with nothing to see moves all the same, to where its first own event will be."""
    with realm.client(realm.key("carol", "jobs", "audit")) as carol:
        until(lambda: carol.get("/v1/").status_code == 200)
        page = carol.get("/v1/events", params={"category": "job"}).json()
        while page["has_more"]:
            page = carol.get("/v1/events", params={"category": "job", "cursor": page["next_cursor"]}).json()
        assert page["events"] == []
        mine = carol.post("/v1/jobs", json=BODY).json()["job"]["id"]
        page = carol.get("/v1/events", params={"category": "job", "cursor": page["next_cursor"], "limit": 1}).json()
        assert [one["stream"] for one in page["events"]] == [mine]
    assert alice.get(f"/v1/jobs/{job['job_id']}").status_code == 200


def test_a_tenants_objects_lie_under_its_name(job: dict[str, Any]) -> None:
    assert job["s3_key"].startswith(f"dreamforge/alice/jobs/{job['job_id']}/generate/")


def test_the_same_idempotency_key_of_two_tenants_is_two(alice: httpx.Client, bob: httpx.Client) -> None:
    headers = {"Idempotency-Key": "same"}
    answers = [client.post("/v1/jobs", json=BODY, headers=headers) for client in (alice, bob, alice)]
    ids = [answer.json()["job"]["id"] for answer in answers]
    assert ids[0] == ids[2] != ids[1]


def test_events_say_whose_key_asked(alice: httpx.Client, job: dict[str, Any]) -> None:
    """An auditor sees which key it was, and never the key."""
    history = alice.get(f"/v1/jobs/{job['job_id']}/events").text
    key = alice.headers["Authorization"].removeprefix("Bearer ")
    assert str(id_of(key)) in history
    assert key not in history


@pytest.mark.parametrize(
    "shown",
    ["Bearer", "Bearer x", "Basic Og==", f"Bearer df_{NOBODY.hex}_{'x' * 43}", f"bearer  df_{'0' * 32}_{'é' * 43}"],
)
def test_what_is_no_key_opens_nothing(realm: Realm, shown: str) -> None:
    with realm.client(None) as client:
        answer = client.get("/v1/jobs", headers={b"Authorization": shown.encode()})
    refused(answer, 401, "unauthorized")
    assert answer.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'


def test_a_key_with_a_wrong_secret_opens_nothing(realm: Realm, alice: httpx.Client) -> None:
    key = alice.headers["Authorization"].removeprefix("Bearer ")
    with realm.client(key[:-2] + "zz") as client:
        refused(client.get("/v1/jobs"), 401, "unauthorized")


def test_a_revoked_key_opens_nothing_soon(realm: Realm) -> None:
    key = realm.key("dora", "jobs")
    with realm.client(key) as client:
        until(lambda: client.get("/v1/jobs").status_code == 200)
        realm.revoke("dora", key)
        until(lambda: client.get("/v1/jobs").status_code == 401)


def test_probes_and_documents_need_no_key(realm: Realm) -> None:
    """And unknown paths under /v1 tell nothing to strangers."""
    with realm.client(None) as client:
        for path in ("/healthz", "/readyz", "/metrics", "/openapi.json", "/docs"):
            assert client.get(path).status_code == 200, path
        assert client.get("/v1/nothing").status_code == 401
        assert client.options("/v1/jobs").status_code == 401
        assert client.get("/nothing").status_code == 404


class TestStreamTokens:
    """What a page shows that can't send headers."""

    def stream(self, realm: Realm, job_id: str, token: str) -> httpx.Response:
        """The job's stream, opened with a token."""
        with realm.client(None) as page:
            return page.get(f"/v1/jobs/{job_id}/progress/stream", params={"access_token": token})

    def claims(self, job: dict[str, Any], **changes: Any) -> Claims:
        """What a token for alice's job would say."""
        given: dict[str, Any] = {"job_id": UUID(job["job_id"]), "tenant": "alice", "key_id": None, "expires": 2**40}
        return Claims(**given | changes)

    def test_it_opens_its_jobs_stream_and_nothing_else(
        self, realm: Realm, alice: httpx.Client, job: dict[str, Any]
    ) -> None:
        made = alice.post(f"/v1/jobs/{job['job_id']}/stream_token")
        assert made.status_code == 200
        assert made.headers["Cache-Control"] == "no-store"
        token = made.json()["token"]
        answer = self.stream(realm, job["job_id"], token)
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8")
        assert "job.finish" in answer.text
        other = alice.post("/v1/jobs", json=BODY).json()["job"]["id"]
        refused(self.stream(realm, other, token), 401, "unauthorized")
        with realm.client(None) as page:
            for path in (f"/v1/jobs/{job['job_id']}", f"/v1/jobs/{job['job_id']}/events", "/v1/events/stream"):
                refused(page.get(path, params={"access_token": token}), 401, "unauthorized")

    def test_one_that_is_forged_or_over_opens_nothing(self, realm: Realm, job: dict[str, Any]) -> None:
        secret = realm.secret()
        good = encode(self.claims(job), secret)
        assert self.stream(realm, job["job_id"], good).status_code == 200
        forged = encode(self.claims(job), b"guessed")
        over = encode(self.claims(job, expires=1), secret)
        others = encode(self.claims(job, job_id=NOBODY), secret)
        for token in (forged, over, others, good[:-4] + "AAAA", good[4:], "", "é", "=", "A" * 5000):
            refused(self.stream(realm, job["job_id"], token), 401, "unauthorized")

    def test_it_ends_with_the_key_that_it_was_asked_for_with(self, realm: Realm, job: dict[str, Any]) -> None:
        key = realm.key("alice", "audit")
        with realm.client(key) as client:
            until(lambda: client.get("/v1/").status_code == 200)
            token = client.post(f"/v1/jobs/{job['job_id']}/stream_token").json()["token"]
        assert self.stream(realm, job["job_id"], token).status_code == 200
        realm.revoke("alice", key)
        until(lambda: self.stream(realm, job["job_id"], token).status_code == 401)


def test_no_secret_is_told(realm: Realm, alice: httpx.Client, job: dict[str, Any]) -> None:
    """Neither keys nor tokens, nor those of the backends, stand in logs, errors or metrics."""
    token = alice.post(f"/v1/jobs/{job['job_id']}/stream_token").json()["token"]
    with realm.client(None) as page:
        page.get(f"/v1/jobs/{job['job_id']}/progress/stream", params={"access_token": token})
        wrong = page.get(f"/v1/jobs/{NOBODY}/progress/stream", params={"access_token": token})
        told = "".join(realm.service.lines) + page.get("/metrics").text + wrong.text
    key = alice.headers["Authorization"].removeprefix("Bearer ")
    log = alice.get("/v1/events", params={"limit": 1000}).text
    for secret in (token, key, key[36:]):
        assert secret not in told
        assert secret not in log
    assert str(id_of(key)) in told


async def test_a_made_up_key_costs_no_read_of_the_database(realm: Realm) -> None:
    """Whoever guesses keys keeps nobody waiting."""
    store = Store(realm.url, listen=False)

    async def calls() -> int:
        rows = await store.database.read(
            "select coalesce(sum(idx_scan), 0)::bigint as scans from pg_stat_user_indexes "
            "where indexrelname = 'events_beside_jobs'"
        )
        return int(rows[0]["scans"])

    before = await calls()
    async with httpx.AsyncClient(base_url=realm.service.url, trust_env=False) as client:
        for _ in range(200):
            headers = {"Authorization": f"Bearer {key_text(new_id(), 'x' * 43)}"}
            assert (await client.get("/v1/jobs", headers=headers)).status_code == 401

    async def counted() -> bool:
        return await calls() < before + 100

    await eventually(counted)
    await store.close()
