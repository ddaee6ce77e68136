"""With keys asked for, nobody is let in who has none, and a tenant sees and touches its own things alone."""

import asyncio
import re
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import httpx
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from api.app import ROUTES
from api.openapi.document import build_document
from api.routing import ApiRoute
from api.stream_tokens import StreamTokenClaims, encode_token
from artifacts.object_store import S3Config
from dreamforge.operations.anchoring import sign_anchor
from eventstore.ids import new_id
from eventstore.log import Append, Batch
from orchestrator.events import KeyCreated, KeyRevoked, Meta, Scope
from orchestrator.service import make_event
from projections.keys import key_text_digest, make_key_text
from tests.conftest import Backends, fresh_database
from tests.http.conftest import BODY, Frames, rejected, running, until
from tests.kit import NOBODY, Api, Service, Store, eventually

GUARDED = [one for one in ROUTES if one.scopes]


class Realm(msgspec.Struct, frozen=True):
    """A service that asks for keys, and its database."""

    service: Service
    url: str

    def key(self, tenant: str, *scopes: Scope) -> str:
        """A new key."""
        return asyncio.run(self.made(tenant, *scopes))

    async def made(self, tenant: str, *scopes: Scope) -> str:
        """The same, for a test that is async."""
        key_id = new_id()
        text = make_key_text(key_id, "x" * 42 + "A")
        made = make_event(KeyCreated(name=str(key_id), scopes=list(scopes), digest=key_text_digest(text)), Meta())
        await self._append(Append(stream=key_id, category="key", tenant=tenant, expected=0, events=(made,)))
        return text

    def revoke(self, tenant: str, key: str) -> None:
        """Let a key open nothing any more."""
        asyncio.run(self.revoked(tenant, key))

    async def revoked(self, tenant: str, key: str) -> None:
        """The same, for a test that is async."""
        gone = make_event(KeyRevoked(), Meta())
        await self._append(Append(stream=id_of(key), category="key", tenant=tenant, expected=1, events=(gone,)))

    async def _append(self, append: Append) -> None:
        store = Store(self.url, listen=False)
        assert (await store.log.commit(Batch(appends=[append]))).streams[append.stream].committed
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


def shown(client: httpx.Client) -> str:
    """The key that a client shows."""
    return client.headers["Authorization"].removeprefix("Bearer ")


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
    """Of tenant alice, with a scope that opens nothing of a tenant's."""
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


def ask(client: httpx.Client, route: ApiRoute, job: dict[str, Any]) -> httpx.Response:
    """A request of one route, on a job where it is about one."""
    path = route.path.format(**job, model_id=NOBODY)
    body = BODY if route.operation.name == "createJob" else None
    headers = {"Last-Event-ID": "0"} if route.path.endswith("/progress/stream") else {}
    return client.request(route.method, path, json=body, headers=headers)


def names(route: ApiRoute) -> str:
    """What a test of it is called."""
    return route.operation.name


def test_every_path_under_v1_asks_for_a_scope() -> None:
    """A new route can't be forgotten: it names its scopes, and so the document tells of the key."""
    assert {one.path for one in ROUTES if one.path.startswith("/v1")} == {one.path for one in GUARDED}
    paths = build_document(ROUTES)["paths"]
    for route in GUARDED:
        described = paths[route.path][route.method.lower()]
        assert {"401", "403"} <= described["responses"].keys()
        assert {"key": []} in described["security"]


@pytest.mark.parametrize("route", GUARDED, ids=names)
def test_without_a_key_nothing_opens(realm: Realm, job: dict[str, Any], route: ApiRoute) -> None:
    with realm.client(None) as stranger:
        answer = ask(stranger, route, job)
    rejected(answer, 401, "unauthorized")
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="Dream Forge"'


@pytest.mark.parametrize("route", GUARDED, ids=names)
def test_a_key_without_the_scope_is_rejected(operator: httpx.Client, job: dict[str, Any], route: ApiRoute) -> None:
    """All but the service's name, and what is for operators."""
    answer = ask(operator, route, job)
    if "admin" in route.scopes:
        assert answer.status_code == 200
        return
    assert rejected(answer, 403, "forbidden") == {"field": "Authorization", "scopes": list(route.scopes)}
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="Dream Forge", error="insufficient_scope"'


@pytest.mark.parametrize("scope", ["jobs", "audit", "admin"])
def test_a_scope_opens_what_it_is_for(realm: Realm, job: dict[str, Any], scope: Scope) -> None:
    """And nothing else, held against the contract's words rather than the table that the routes are made from."""

    def opens(route: ApiRoute) -> bool:
        if route.path == "/v1/":
            return True
        if route.path.startswith("/v1/events") or route.path == "/v1/anchors":
            return scope == "audit"
        if route.path == "/v1/projections":
            return scope == "admin"
        if route.method == "POST" and not route.path.endswith("/stream_token"):
            return scope == "jobs"
        return scope in {"jobs", "audit"}

    with realm.client(realm.key("alice", scope)) as client:
        until(lambda: client.get("/v1/").status_code == 200)
        found = {one.operation.name for one in GUARDED if ask(client, one, job).status_code != 403}
    assert found == {one.operation.name for one in GUARDED if opens(one)}


def told(answer: httpx.Response, job_id: str) -> object:
    """All that an answer tells, but for the id that was asked for and the request's own."""
    request_id = answer.headers["X-Request-Id"]
    headers = {name: value for name, value in answer.headers.items() if name not in {"date", "x-request-id"}}
    return answer.status_code, headers, answer.text.replace(job_id, "…").replace(request_id, "…")


@pytest.mark.parametrize("route", GUARDED, ids=names)
def test_another_tenant_finds_nothing(
    alice: httpx.Client, bob: httpx.Client, job: dict[str, Any], route: ApiRoute
) -> None:
    """What is alice's does not exist for bob, and bob changes nothing of it: 404, or a list without it."""
    version = alice.get(f"/v1/jobs/{job['job_id']}").headers["ETag"]
    answer = ask(bob, route, job)
    if "{job_id}" in route.path:
        rejected(answer, 404, "not_found")
        nobodys = ask(bob, route, job | {"job_id": str(NOBODY)})
        assert told(answer, job["job_id"]) == told(nobodys, str(NOBODY))
    assert alice.get(f"/v1/jobs/{job['job_id']}").headers["ETag"] == version
    assert job["job_id"] not in re.sub(r'"message":"[^"]*"', "", answer.text)
    assert job["s3_key"] not in answer.text


def test_lists_and_the_log_show_a_tenant_its_own(alice: httpx.Client, bob: httpx.Client, job: dict[str, Any]) -> None:
    def listed(client: httpx.Client) -> set[str]:
        return {one["id"] for one in client.get("/v1/jobs").json()["jobs"]}

    until(lambda: job["job_id"] in listed(alice))
    bobs = bob.post("/v1/jobs", json=BODY).json()["job"]["id"]
    until(lambda: bobs in listed(bob))
    assert job["job_id"] not in listed(bob)
    assert bobs not in listed(alice)
    for client, own, other in ((alice, job["job_id"], bobs), (bob, bobs, job["job_id"])):
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
        carols = carol.post("/v1/jobs", json=BODY).json()["job"]["id"]
        page = carol.get("/v1/events", params={"category": "job", "cursor": page["next_cursor"], "limit": 1}).json()
        assert [one["stream"] for one in page["events"]] == [carols]
    assert alice.get(f"/v1/jobs/{job['job_id']}").status_code == 200


async def test_every_tenants_auditors_see_the_anchors(realm: Realm, alice: httpx.Client, bob: httpx.Client) -> None:
    """They are the operator's events, and tell nothing of anybody's jobs."""
    store = Store(realm.url, listen=False)
    signed = await sign_anchor(store.log, None, Ed25519PrivateKey.generate(), "test")
    await store.close()
    for client in (alice, bob):
        assert client.get("/v1/anchors").json()["items"][0] == msgspec.to_builtins(signed)


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
    key = shown(alice)
    assert str(id_of(key)) in history
    assert key not in history


@pytest.mark.parametrize(
    "header",
    ["Bearer", "Bearer x", "Basic Og==", f"Bearer df_{NOBODY.hex}_{'x' * 43}", f"bearer  df_{'0' * 32}_{'é' * 43}"],
)
def test_what_is_no_key_opens_nothing(realm: Realm, header: str) -> None:
    with realm.client(None) as client:
        answer = client.get("/v1/jobs", headers={b"Authorization": header.encode()})
    rejected(answer, 401, "unauthorized")
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="Dream Forge", error="invalid_token"'


def test_a_key_with_a_wrong_secret_opens_nothing(realm: Realm, alice: httpx.Client) -> None:
    with realm.client(shown(alice)[:-2] + "zz") as client:
        rejected(client.get("/v1/jobs"), 401, "unauthorized")


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

    def claims(self, alice: httpx.Client, job: dict[str, Any], **changes: Any) -> StreamTokenClaims:
        """What a token for alice's job would say."""
        given = {
            "job_id": UUID(job["job_id"]),
            "tenant": "alice",
            "key_id": id_of(shown(alice)),
            "expires_at_unix_s": 2**40,
        }
        return StreamTokenClaims(**given | changes)  # type: ignore[arg-type]  # of several types, each in its place

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
        rejected(self.stream(realm, other, token), 401, "unauthorized")
        with realm.client(None) as page:
            for path in (f"/v1/jobs/{job['job_id']}", f"/v1/jobs/{job['job_id']}/events", "/v1/events/stream"):
                rejected(page.get(path, params={"access_token": token}), 401, "unauthorized")

    def test_one_that_is_forged_or_over_opens_nothing(
        self, realm: Realm, alice: httpx.Client, job: dict[str, Any]
    ) -> None:
        """Nor does one that was given to somebody without a key, before keys were asked for."""
        secret = realm.secret()
        good = encode_token(self.claims(alice, job), secret)
        assert self.stream(realm, job["job_id"], good).status_code == 200
        forged = encode_token(self.claims(alice, job), b"guessed")
        over = encode_token(self.claims(alice, job, expires_at_unix_s=1), secret)
        others = encode_token(self.claims(alice, job, job_id=NOBODY), secret)
        nobodys = [encode_token(self.claims(alice, job, key_id=key), secret) for key in (None, NOBODY)]
        for token in (forged, over, others, *nobodys, good[:-4] + "AAAA", good[4:], "", "é", "=", "A" * 5000):
            rejected(self.stream(realm, job["job_id"], token), 401, "unauthorized")

    def test_it_ends_with_the_key_that_it_was_asked_for_with(self, realm: Realm, job: dict[str, Any]) -> None:
        key = realm.key("alice", "audit")
        with realm.client(key) as client:
            until(lambda: client.get("/v1/").status_code == 200)
            token = client.post(f"/v1/jobs/{job['job_id']}/stream_token").json()["token"]
        assert self.stream(realm, job["job_id"], token).status_code == 200
        realm.revoke("alice", key)
        until(lambda: self.stream(realm, job["job_id"], token).status_code == 401)


async def test_open_streams_end_with_the_key(realm: Realm, s3_config: S3Config, job: dict[str, Any]) -> None:
    """A stream of a revoked key tells nothing more, though it was opened before; whoever comes back is rejected."""
    with running("api", realm.url, s3_config, DF_REQUIRE_KEYS="1", DF_SSE_HEARTBEAT_S="0.2") as service:
        key = await realm.made("alice", "jobs", "audit")
        headers = {"Authorization": f"Bearer {key}"}
        async with (
            httpx.AsyncClient(base_url=service.url, timeout=30, trust_env=False) as client,
            client.stream("GET", "/v1/events/stream", headers=headers) as stream,
        ):
            assert stream.status_code == 200
            frames = Frames(stream)
            assert (await frames.next()).startswith("retry: ")
            await realm.revoked("alice", key)
            await frames.rest()
            assert (await client.get(f"/v1/jobs/{job['job_id']}", headers=headers)).status_code == 401


def test_a_browsers_preflight_needs_no_key(realm: Realm, s3_config: S3Config) -> None:
    """It can't show one; what it asks for does, and a page of that origin may read the rejection."""
    origin = {"Origin": "https://app.example"}
    asks = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
    with (
        running("api", realm.url, s3_config, DF_REQUIRE_KEYS="1", DF_CORS_ORIGINS=origin["Origin"]) as service,
        httpx.Client(base_url=service.url, headers=origin, timeout=30, trust_env=False) as page,
    ):
        allowed = page.options("/v1/jobs", headers=asks)
        assert allowed.status_code == 200
        assert "authorization" in allowed.headers["Access-Control-Allow-Headers"].lower()
        answer = page.get("/v1/jobs")
        rejected(answer, 401, "unauthorized")
        assert answer.headers["Access-Control-Allow-Origin"] == origin["Origin"]


def test_where_no_keys_are_asked_for_none_is_needed(lone: Api) -> None:
    """What is shown all the same is not looked at; a stream's token is given, so that pages need no second way."""
    job_id = lone.create()
    for header in ("Bearer x", "Basic Og=="):
        assert lone.http.get(f"/v1/jobs/{job_id}", headers={"Authorization": header}).status_code == 200
    made = lone.http.post(f"/v1/jobs/{job_id}/stream_token")
    assert made.json().keys() == {"token", "expires_at"}
    for token in (made.json()["token"], "x"):
        params = {"access_token": token}
        with lone.http.stream("GET", f"/v1/jobs/{job_id}/progress/stream", params=params) as stream:
            assert stream.status_code == 200
    lone.http.post(f"/v1/jobs/{job_id}/cancel")


@pytest.mark.parametrize("path", ["/v1/", "/v1/jobs", "/v1/nothing", "/healthz", "/docs", "/docs/assets/index.html"])
def test_every_answer_tells_browsers_to_be_careful(realm: Realm, path: str) -> None:
    """Refusals included."""
    with realm.client(None) as client:
        answer = client.get(path)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
    if path.startswith("/v1"):
        assert answer.headers["Cache-Control"] == "private, no-cache"


def test_no_secret_is_told(realm: Realm, alice: httpx.Client, job: dict[str, Any]) -> None:
    """Neither keys nor tokens, nor those of the backends, stand in logs, errors or metrics."""
    token = alice.post(f"/v1/jobs/{job['job_id']}/stream_token").json()["token"]
    with realm.client(None) as page:
        page.get(f"/v1/jobs/{job['job_id']}/progress/stream", params={"access_token": token})
        wrong = page.get(f"/v1/jobs/{NOBODY}/progress/stream", params={"access_token": token})
        told = "".join(realm.service.lines) + page.get("/metrics").text + wrong.text
    key = shown(alice)
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
            headers = {"Authorization": f"Bearer {make_key_text(new_id(), 'x' * 43)}"}
            assert (await client.get("/v1/jobs", headers=headers)).status_code == 401

    async def counted() -> bool:
        return await calls() < before + 100

    await eventually(counted)
    await store.close()


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://[", "http://127.0.0.1.evil.example"])
def test_a_strange_page_changes_nothing_where_no_key_is_asked_for(lone: Api, origin: str) -> None:
    """Given a page of another origin in a browser on the machine, then it can post nothing, whatever type it gives."""
    for kind in ("application/json", "text/plain"):
        answer = lone.http.post("/v1/jobs", json=BODY, headers={"Origin": origin, "Content-Type": kind})
        assert rejected(answer, 403, "forbidden") == {"field": "Origin"}
    assert lone.http.get("/v1/jobs", headers={"Origin": origin}).status_code == 200


def test_its_own_pages_and_those_that_are_named_may(db_url: str, s3_config: S3Config) -> None:
    named = "https://app.example.org"
    with running("api", db_url, s3_config, DF_CORS_ORIGINS=named, DF_EAGER_TIMEOUT_S="0.3") as service:
        for origin in (named, service.url):
            answer = httpx.post(f"{service.url}/v1/jobs", json=BODY, headers={"Origin": origin})
            assert answer.status_code in {200, 202}, answer.text
