"""What operators and tools read: health, the OpenAPI document, the page that shows it."""

import json
import re
import time

from tests.kit import Api, project_root


def test_healthz_answers_while_the_process_does(api: Api) -> None:
    health = api.get("/healthz")
    assert health.keys() == {"status", "ts"}
    assert health["status"] == "ok"
    assert isinstance(health["ts"], int)
    assert abs(health["ts"] - time.time()) < 60


def test_readyz_names_its_checks(api: Api, lone: Api) -> None:
    """Those of the roles that the process has."""
    ready = api.get("/readyz")
    assert ready == {"status": "ready", "checks": dict.fromkeys(ready["checks"], "ok")}
    alone = {"database", "committer", "tailer", "writes"}
    assert set(ready["checks"]) == alone | {"heartbeat", "object_store", "orchestrator", "quarantine", "readmodel"}
    assert lone.get("/readyz") == {"status": "ready", "checks": dict.fromkeys(alone, "ok")}


def test_the_document_is_the_committed_one(api: Api) -> None:
    """OpenAPI 3.1, to the byte."""
    committed = project_root() / "docs" / "openapi" / "openapi.v1.json"
    answer = api.http.get("/openapi.json")
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json() == json.loads(committed.read_text())
    assert answer.json()["openapi"].startswith("3.1.")


def test_the_page_brings_all_that_it_needs(api: Api) -> None:
    """Every file that it names is served here, none by another host."""
    page = api.http.get("/docs")
    assert page.headers["Content-Type"].startswith("text/html")
    assert not re.findall(r"(?:https?:)?//\\w", page.text)
    wanted = re.findall(r'(?:src|href|url: )="?([^" ,]+)"', page.text) + re.findall(r'url: "([^"]+)"', page.text)
    assert {"/openapi.json", "/docs/assets/swagger-ui-bundle.js", "/docs/assets/swagger-ui.css"} <= set(wanted)
    for path in wanted:
        assert path.startswith("/")
        assert api.http.get(path).status_code == 200
    assert api.http.get("/docs/assets/nothing.js").status_code == 404


def test_the_root_leads_to_the_page(api: Api) -> None:
    """Whoever opens the address that the log names sees something; so does a probe that asks by HEAD."""
    for method in ("GET", "HEAD"):
        answer = api.http.request(method, "/", follow_redirects=False)
        assert (answer.status_code, answer.headers["Location"]) == (307, "/docs")
    assert api.http.get("/", follow_redirects=True).headers["Content-Type"].startswith("text/html")
