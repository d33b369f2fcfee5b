"""Who is calling: access tokens of people, and of our own services."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any

import httpx
from fastapi import Depends, Request
from joserfc import jws, jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet, OctKey

from shared.problems import Forbidden, NotAuthenticated, Unavailable
from shared.settings import ServiceSettings

SCHEMES = ("bearer", "jwt")
# A token in two parts, so that scripts of the platform's pages never have it whole.
COOKIES = ("edx-jwt-cookie-header-payload", "edx-jwt-cookie-signature")
SAFE = ("GET", "HEAD", "OPTIONS")
ALGORITHMS = ["HS256", "RS256", "RS512", "ES256", "EdDSA", "Ed25519"]
SERVICE_TTL = timedelta(minutes=5)
MOST_REMEMBERED = 1000
LONGEST_REMEMBERED = 8_000
PEOPLE_REMEMBERED_SECONDS = 60.0
KEYS_FRESH_SECONDS = 300.0
KEYS_RETRY_SECONDS = 10.0

# As the documentation shows them; `caller` reads the header itself.
SCHEMES_SHOWN: dict[str, Any] = {
    "Bearer": {"type": "http", "scheme": "bearer"},
    "JWT": {"type": "apiKey", "in": "header", "name": "Authorization"},
}


@dataclass(frozen=True, slots=True)
class Caller:
    """A person, or one of our services, whose token was verified."""

    username: str
    user_id: int | None = None
    email: str = ""
    staff: bool = False
    superuser: bool = False
    scopes: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    service: str | None = None

    @property
    def administrator(self) -> bool:
        return self.staff or self.superuser


class Tokens:
    """Verifies access tokens by shared secret and, when configured, by a JWKS address.

    A token that verified is remembered until it expires, a person's for a minute at most: so
    long may one be taken whose key is no longer in the key set. One that did not is not.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self._secret = OctKey.import_key(settings.token_secret.get_secret_value())
        self._jwks_url = settings.jwks_url
        self._registry = jwt.JWTClaimsRegistry(leeway=5, exp={"essential": True})
        self._audience = settings.token_audience
        self._keys = KeySet([])
        self._people, self._services = _Verified(), _Verified()
        self._loaded = 0.0
        self._loading = asyncio.Lock()
        # Told of every person whose token verified; must be quick and must not raise.
        self.on_caller: Callable[[Caller], None] | None = None

    async def caller(self, token: str) -> Caller:
        """Whose token this is. Raises NotAuthenticated for any that does not verify."""
        caller = self._people.find(token)
        if caller is None:
            claims = await self._claims(token)
            caller = _person(claims)
            until = min(claims["exp"], time.time() + PEOPLE_REMEMBERED_SECONDS)
            self._people.keep(token, caller, until)
        if self.on_caller is not None:
            self.on_caller(caller)
        return caller

    async def service(self, token: str) -> Caller:
        """Which of our services this is: signed with the shared secret, never by JWKS."""
        caller = self._services.find(token)
        if caller is None:
            caller, expires = self._service(token)
            self._services.keep(token, caller, expires)
        return caller

    def _service(self, token: str) -> tuple[Caller, float]:
        try:
            claims = jwt.decode(token, self._secret, algorithms=["HS256"]).claims
            self._registry.validate(claims)
        except (JoseError, ValueError) as error:
            raise NotAuthenticated("Invalid token.") from error
        name = claims.get("service")
        if not isinstance(name, str) or claims.get("token_use") != "service":
            raise Forbidden("Only services of this suite may do this.")
        return Caller(username=f"service:{name}", service=name), float(claims["exp"])

    async def _claims(self, token: str) -> dict[str, Any]:
        try:
            key = await self._key(token)
            claims = jwt.decode(token, key, algorithms=ALGORITHMS).claims
            self._registry.validate(claims)
        except (JoseError, ValueError, KeyError, TypeError) as error:
            raise NotAuthenticated("Invalid or expired token.") from error
        audience = claims.get("aud")
        accepted = audience if isinstance(audience, list) else [audience]
        if self._audience and self._audience not in accepted:
            raise NotAuthenticated("Invalid token: wrong audience.")
        if claims.get("token_use") == "service":
            raise NotAuthenticated("A service's token does not stand for a person.")
        return claims

    async def _key(self, token: str) -> OctKey | KeySet:
        header = jws.extract_compact(token.encode()).headers()
        if header.get("alg") == "HS256":
            return self._secret
        if self._jwks_url is None:
            raise ValueError("no key set is configured")
        return await self._key_set(str(header.get("kid") or ""))

    async def _key_set(self, kid: str) -> KeySet:
        known = any(key.kid == kid for key in self._keys.keys) or not kid
        age = time.monotonic() - self._loaded
        fresh = self._loaded and age < (KEYS_FRESH_SECONDS if known else KEYS_RETRY_SECONDS)
        if not fresh:
            async with self._loading:
                await self._load_keys()
        return self._keys

    async def _load_keys(self) -> None:
        assert self._jwks_url is not None
        try:
            async with httpx.AsyncClient(timeout=5) as http:
                response = await http.get(self._jwks_url)
                response.raise_for_status()
                self._keys = KeySet.import_key_set(response.json())
                self._loaded = time.monotonic()
        except httpx.HTTPError as error:
            if not self._keys.keys:
                raise Unavailable("The key set for access tokens cannot be read.") from error


class _Verified:
    """Whose tokens verified before, by their whole text; a bounded number of them."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, Caller]] = {}

    def find(self, token: str) -> Caller | None:
        until, caller = self._known.get(token, (0.0, None))
        return caller if time.time() < until else None

    def keep(self, token: str, caller: Caller, until: float) -> None:
        if len(token) > LONGEST_REMEMBERED:
            return
        if len(self._known) >= MOST_REMEMBERED:
            self._known.clear()
        self._known[token] = (until, caller)

    def __len__(self) -> int:
        return len(self._known)


def _person(claims: dict[str, Any]) -> Caller:
    """Raises NotAuthenticated for claims that name nobody."""
    username = claims.get("preferred_username")
    if not isinstance(username, str) or not username or "\x00" in username:
        raise NotAuthenticated("Invalid token: no preferred_username.")
    user_id = claims.get("user_id")
    return Caller(
        username=username,
        user_id=user_id if isinstance(user_id, int) else None,
        email=str(claims.get("email") or ""),
        staff=claims.get("administrator") is True,
        superuser=claims.get("superuser") is True,
        scopes=_texts(claims.get("scopes")),
        groups=_texts(claims.get("groups")),
    )


def _texts(value: Any) -> tuple[str, ...]:
    """A claim that is a list of texts; what cannot be one, and what no store could hold, is not."""
    texts = value if isinstance(value, list) else []
    return tuple(one for one in texts if isinstance(one, str) and "\x00" not in one)


def bearer(request: Request) -> str:
    """The token of the Authorization header, or of the platform's cookies.

    Browsers add cookies to whatever a page makes them send. So what changes something must carry a
    header that no other site's page can add: the one with which front ends ask for the cookies.
    Raises NotAuthenticated without a token.
    """
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() in SCHEMES and token:
        return token.strip()
    asked = request.headers.get("use-jwt-cookie", "").lower() == "true"
    parts = [request.cookies[name] for name in COOKIES if name in request.cookies]
    if len(parts) < len(COOKIES) or not (asked or request.method in SAFE):
        raise NotAuthenticated()
    return ".".join(parts)


async def caller(request: Request) -> Caller:
    tokens: Tokens = request.app.state.tokens
    return await tokens.caller(bearer(request))


async def service_caller(request: Request) -> Caller:
    tokens: Tokens = request.app.state.tokens
    return await tokens.service(bearer(request))


async def any_caller(request: Request) -> Caller:
    """A person or one of our services."""
    tokens: Tokens = request.app.state.tokens
    token = bearer(request)
    try:
        return await tokens.service(token)
    except (NotAuthenticated, Forbidden):
        return await tokens.caller(token)


CallerDep = Annotated[Caller, Depends(caller)]
ServiceDep = Annotated[Caller, Depends(service_caller)]
AnyCallerDep = Annotated[Caller, Depends(any_caller)]


def make_token(
    secret: str,
    username: str,
    *,
    user_id: int | None = None,
    email: str = "",
    staff: bool = False,
    superuser: bool = False,
    groups: Sequence[str] = (),
    ttl: timedelta = timedelta(hours=12),
) -> str:
    """An access token with the claims the platform issues."""
    now = int(time.time())
    claims = {
        "preferred_username": username,
        "user_id": user_id,
        "email": email or f"{username}@example.test",
        "administrator": staff,
        "superuser": superuser,
        "scopes": ["read", "write"],
        "filters": [],
        "groups": list(groups),
        "iat": now,
        "exp": now + int(ttl.total_seconds()),
    }
    return jwt.encode({"alg": "HS256"}, claims, OctKey.import_key(secret))


class ServiceTokens:
    """This service's own token for calling others, made anew when half of its time is over."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings
        self._token, self._renew_at = "", 0.0

    def current(self) -> str:
        if time.time() >= self._renew_at:
            self._token = service_token(self._settings)
            self._renew_at = time.time() + SERVICE_TTL.total_seconds() / 2
        return self._token


def service_token(settings: ServiceSettings) -> str:
    """A short-lived token with which this service calls another one."""
    now = int(time.time())
    claims = {
        "service": settings.service,
        "token_use": "service",
        "iat": now,
        "exp": now + int(SERVICE_TTL.total_seconds()),
    }
    key = OctKey.import_key(settings.token_secret.get_secret_value())
    return jwt.encode({"alg": "HS256"}, claims, key)
