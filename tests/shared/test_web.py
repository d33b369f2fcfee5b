"""What is the same around everyone's routes: tokens, problems, limits, health."""

import base64
import hmac
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi import APIRouter, FastAPI
from joserfc import jwt
from joserfc.jwk import KeySet, OctKey, RSAKey
from pydantic import BaseModel, ValidationError

from services.dispatcher.settings import Settings
from shared import problems
from shared.app import create_service_app
from shared.callers import CallerDep, ServiceDep, Tokens, make_token, service_token
from shared.problems import Conflict, NotAuthenticated
from shared.testing import SECRET, as_user, client, running
from tests.conftest import Servers

router = APIRouter()


class Body(BaseModel):
    """A small body."""

    name: str
    count: int = 0


@router.get("/old/me/")
async def me(caller: CallerDep) -> dict[str, Any]:
    return {"username": caller.username, "staff": caller.staff}


@router.post("/old/things/")
async def old_thing(caller: CallerDep, body: Body) -> Body:
    return body


@router.post("/new/things")
async def new_thing(caller: CallerDep, body: Body) -> Body:
    return body


@router.get("/old/clash/")
async def clash() -> None:
    raise Conflict("Already there.", body=["Already there."], holder="ada")


@router.get("/new/boom")
async def boom() -> None:
    raise RuntimeError("a secret inside")


@router.get("/new/service")
async def only_services(service: ServiceDep) -> str:
    return service.service or ""


@pytest_asyncio.fixture
async def app(servers: Servers) -> AsyncIterator[FastAPI]:
    app = create_service_app(
        Settings(max_body_bytes=2048), title="t", description="d", routers=[router],
        compatible=["/old/"],
    )  # fmt: skip
    async with running(app):
        yield app


@pytest_asyncio.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client(app) as http:
        yield http


@pytest.mark.parametrize("scheme", ["JWT", "Bearer", "bearer"])
async def test_both_schemes_are_taken(http: httpx.AsyncClient, scheme: str) -> None:
    token = make_token(SECRET, "ada", staff=True)

    answer = await http.get("/old/me/", headers={"Authorization": f"{scheme} {token}"})

    assert answer.json() == {"username": "ada", "staff": True}


async def test_the_platforms_cookies_stand_for_a_token_where_no_other_site_can_use_them(
    http: httpx.AsyncClient,
) -> None:
    payload, _, signature = make_token(SECRET, "ada").rpartition(".")
    whole = f"edx-jwt-cookie-header-payload={payload}; edx-jwt-cookie-signature={signature}"
    asked = {"Cookie": whole, "USE-JWT-COOKIE": "true"}

    read = await http.get("/old/me/", headers={"Cookie": whole})
    written = await http.post("/old/things/", json={"name": "x"}, headers=asked)

    assert (read.json()["username"], written.status_code) == ("ada", 200)
    forged = await http.post("/old/things/", json={"name": "x"}, headers={"Cookie": whole})
    half = await http.get("/old/me/", headers={"Cookie": whole.partition(";")[0]})
    wrong = await http.get("/old/me/", headers={"Cookie": f"{whole}x"})
    assert (forged.status_code, half.status_code, wrong.status_code) == (401, 401, 401)
    other = await http.get("/old/me/", headers=asked | as_user("bob"))
    assert other.json()["username"] == "bob"


def encoded(claims: dict[str, Any], key: str = SECRET) -> str:
    return jwt.encode({"alg": "HS256"}, claims, OctKey.import_key(key))


SOON = int(time.time()) + 86_400


@pytest.mark.parametrize(
    "token",
    [
        "",
        "x",
        "x.y.z",
        "\u00e9.\u00e9.\u00e9".encode().decode("latin-1"),
        encoded({"preferred_username": "ada", "exp": int(time.time()) - 60}),
        encoded({"preferred_username": "ada"}),
        encoded(
            {"preferred_username": "ada", "exp": SOON}, "another-secret-of-at-least-32-characters"
        ),
        encoded({"exp": SOON}),
        encoded({"preferred_username": "", "exp": SOON}),
        encoded({"preferred_username": ["ada"], "exp": SOON}),
        # "alg": "none"
        "eyJhbGciOiJub25lIn0.eyJwcmVmZXJyZWRfdXNlcm5hbWUiOiJhZGEifQ.",
    ],
)
async def test_a_bad_token_is_refused(http: httpx.AsyncClient, token: str) -> None:
    headers = {"Authorization": f"JWT {token}".encode()}

    answer = await http.get("/old/me/", headers=headers)

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'JWT realm="api"'
    assert "detail" in answer.json()


async def test_only_services_come_in_at_their_door(http: httpx.AsyncClient, app: FastAPI) -> None:
    own = {"Authorization": f"Bearer {service_token(app.state.settings)}"}

    assert (await http.get("/new/service", headers=own)).json() == "dispatcher"
    assert (await http.get("/new/service", headers=as_user("ada"))).status_code == 403
    assert (await http.get("/old/me/", headers=own)).status_code == 401


async def test_the_same_error_in_the_contracts_form_and_as_a_problem(
    http: httpx.AsyncClient,
) -> None:
    old = await http.get("/old/clash/")
    asked = await http.get("/old/clash/", headers={"Accept": "application/problem+json"})

    assert (old.status_code, old.json()) == (409, ["Already there."])
    assert asked.headers["content-type"] == "application/problem+json"
    assert asked.json() == {
        "type": "urn:lyceum:conflict",
        "title": "The current state does not allow this",
        "status": 409,
        "detail": "Already there.",
        "holder": "ada",
    }
    again = problems.from_response(asked)
    assert isinstance(again, Conflict)
    assert again.extensions == {"holder": "ada"}


async def test_field_errors_name_the_field(http: httpx.AsyncClient) -> None:
    body = {"count": "many"}

    old = await http.post("/old/things/", json=body, headers=as_user("ada"))
    new = await http.post("/new/things", json=body, headers=as_user("ada"))

    assert old.status_code == new.status_code == 400
    assert old.json()["name"] == ["This field is required."]
    assert set(new.json()["fields"]) == {"name", "count"}


async def test_a_body_that_is_not_json(http: httpx.AsyncClient) -> None:
    headers = as_user("ada") | {"Content-Type": "application/json"}

    answer = await http.post("/old/things/", content=b"{nope", headers=headers)

    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("JSON parse error - ")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
async def test_a_body_that_is_not_said_to_be_json_is_not_read(
    http: httpx.AsyncClient, kind: str | None
) -> None:
    headers = as_user("ada") | ({"Content-Type": kind} if kind else {})

    answer = await http.post("/old/things/", content=b'{"name": "x"}', headers=headers)

    assert answer.status_code == 415
    assert answer.json()["detail"].startswith("Unsupported media type ")


async def test_no_body_at_all_lacks_what_an_empty_object_lacks(http: httpx.AsyncClient) -> None:
    answer = await http.post("/old/things/", headers=as_user("ada"))

    assert (answer.status_code, answer.json()) == (400, {"name": ["This field is required."]})


async def test_a_body_that_is_not_utf8_is_not_json(http: httpx.AsyncClient) -> None:
    headers = as_user("ada") | {"Content-Type": "application/json"}

    answer = await http.post("/old/things/", content=b'{"name": "\xff"}', headers=headers)

    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("JSON parse error - ")


async def test_a_body_over_the_limit_is_refused_declared_or_not(http: httpx.AsyncClient) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 1000

    headers = as_user("ada")
    declared = await http.post("/old/things/", json={"name": "x" * 3000}, headers=headers)
    hidden = await http.post("/old/things/", content=endless(), headers=headers)

    assert (declared.status_code, hidden.status_code) == (413, 413)


async def test_unknown_paths_methods_and_missing_slashes(http: httpx.AsyncClient) -> None:
    assert (await http.get("/old/nothing/")).json() == {"detail": "Not found."}
    assert (await http.get("/old/me")).status_code == 404
    wrong = await http.delete("/old/me/")
    assert (wrong.status_code, wrong.json()) == (405, {"detail": 'Method "DELETE" not allowed.'})


async def test_an_unexpected_error_leaks_nothing(http: httpx.AsyncClient) -> None:
    answer = await http.get("/new/boom")

    assert answer.status_code == 500
    assert "secret" not in answer.text


async def test_health_readiness_metrics_and_docs(http: httpx.AsyncClient) -> None:
    for prefix in ("", "/dispatcher"):
        assert (await http.get(f"{prefix}/healthz")).json()["status"] == "ok"
        assert (await http.get(f"{prefix}/readyz")).json()["ready"] is True
        assert "lyceum_http_request_seconds" in (await http.get(f"{prefix}/metrics")).text
    assert (await http.get("/dispatcher/docs")).status_code == 200
    schemes = (await http.get("/dispatcher/openapi.json")).json()["components"]["securitySchemes"]
    assert set(schemes) == {"Bearer", "JWT"}


async def test_a_request_id_is_kept_or_made(http: httpx.AsyncClient) -> None:
    given = await http.get("/healthz", headers={"X-Request-Id": "abc-123"})
    hostile = await http.get("/healthz", headers={"X-Request-Id": "a b\tc" * 40})

    assert given.headers["x-request-id"] == "abc-123"
    assert len(hostile.headers["x-request-id"]) == 32


def signed_with_the_public_key(key: RSAKey, token: str) -> str:
    """The classic confusion: the published key used as a shared secret."""
    header = base64.urlsafe_b64encode(b'{"alg":"HS256","kid":"one"}').decode().rstrip("=")
    content = f"{header}.{token.split('.')[1]}"
    mac = hmac.digest(key.as_pem(private=False), content.encode(), "sha256")
    return f"{content}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"


class Jwks(httpx.AsyncBaseTransport):
    """A key server."""

    def __init__(self, keys: KeySet) -> None:
        self.keys, self.asked = keys, 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        return httpx.Response(200, json=self.keys.as_dict(private=False), request=request)


@pytest.fixture
def key() -> Iterator[RSAKey]:
    yield RSAKey.generate_key(2048, {"kid": "one"})


async def test_tokens_signed_with_a_published_key(
    key: RSAKey, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Jwks(KeySet([key]))
    plain = httpx.AsyncClient
    monkeypatch.setattr(
        "shared.callers.httpx.AsyncClient", lambda **kwargs: plain(transport=server)
    )
    tokens = Tokens(Settings(jwks_url="http://keys.test/"))
    claims = {"preferred_username": "ada", "exp": SOON}
    good = jwt.encode({"alg": "RS256", "kid": "one"}, claims, key)
    stranger = RSAKey.generate_key(2048, {"kid": "one"})
    forged = jwt.encode({"alg": "RS256", "kid": "one"}, claims, stranger)
    confused = signed_with_the_public_key(key, good)

    assert (await tokens.caller(good)).username == "ada"
    assert (await tokens.caller(good)).username == "ada"
    assert server.asked == 1
    for bad in (forged, confused):
        with pytest.raises(NotAuthenticated):
            await tokens.caller(bad)


@pytest.mark.parametrize(
    ("environment", "secret"),
    [("development", ""), ("production", "short"), ("production", SECRET)],
)
def test_production_never_starts_on_a_weak_secret(environment: Any, secret: str) -> None:
    with pytest.raises(ValidationError, match="LYCEUM_TOKEN_SECRET"):
        Settings(environment=environment, token_secret=secret, database_url="postgresql://x/y")
