"""What is known of a caller from the claims of a token."""

import time
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import OctKey

from shared import callers
from shared.callers import Caller, Tokens, make_token
from shared.problems import Forbidden, NotAuthenticated
from shared.settings import ServiceSettings
from shared.testing import SECRET

FAR = 2**33


@pytest.fixture
def tokens() -> Tokens:
    values = {"service": "dispatcher", "token_secret": SECRET, "database_url": "postgresql://x/y"}
    return Tokens(ServiceSettings.model_validate(values))


def token(**claims: Any) -> str:
    claims = {"preferred_username": "ada", "exp": FAR} | claims
    return jwt.encode({"alg": "HS256"}, claims, OctKey.import_key(SECRET))


async def test_groups_are_read_from_their_claim(tokens: Tokens) -> None:
    caller = await tokens.caller(make_token(SECRET, "ada", groups=["staff", "editors"]))

    assert caller.groups == ("staff", "editors")


async def test_who_has_no_groups_is_in_none(tokens: Tokens) -> None:
    assert (await tokens.caller(token())).groups == ()
    assert (await tokens.caller(make_token(SECRET, "ada"))).groups == ()


@pytest.mark.parametrize(
    ("claim", "groups"),
    [
        ("staff", ()),
        ({"staff": True}, ()),
        (None, ()),
        (7, ()),
        (["staff", 7, None, ["x"]], ("staff",)),
        (["a\x00b", "staff"], ("staff",)),
    ],
)
async def test_only_texts_are_groups(tokens: Tokens, claim: Any, groups: tuple[str, ...]) -> None:
    assert (await tokens.caller(token(groups=claim))).groups == groups


class Clock:
    """What the time is, moved by hand."""

    def __init__(self) -> None:
        self.now = time.time()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "time", lambda: clock.now)
    return clock


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every token that was verified, rather than remembered."""
    found: list[str] = []
    decode = jwt.decode

    def counted(token: str, *args: Any, **kwargs: Any) -> Any:
        found.append(token)
        return decode(token, *args, **kwargs)

    monkeypatch.setattr(jwt, "decode", counted)
    return found


async def test_a_persons_token_is_verified_once_a_minute(
    tokens: Tokens, clock: Clock, decoded: list[str]
) -> None:
    for _ in range(3):
        assert (await tokens.caller(token())).username == "ada"
        clock.now += 20 - 0.1
    assert len(decoded) == 1

    clock.now += 1
    await tokens.caller(token())
    assert len(decoded) == 2


async def test_a_remembered_token_expires(tokens: Tokens, clock: Clock) -> None:
    short = token(exp=int(clock.now) + 10)
    await tokens.caller(short)

    clock.now += 17  # Verified tokens are taken for five seconds more.
    with pytest.raises(NotAuthenticated):
        await tokens.caller(short)


async def test_a_token_that_never_expires_soon_is_taken_however_late_that_is(
    tokens: Tokens,
) -> None:
    assert (await tokens.caller(token(exp=10**400))).username == "ada"


async def test_one_letter_more_is_another_token(tokens: Tokens) -> None:
    await tokens.caller(token())

    with pytest.raises(NotAuthenticated):
        await tokens.caller(token() + "A")


async def test_a_token_that_did_not_verify_is_tried_again(
    tokens: Tokens, decoded: list[str]
) -> None:
    for _ in range(2):
        with pytest.raises(NotAuthenticated):
            await tokens.caller(token(preferred_username=7))
    assert len(decoded) == 2


async def test_who_calls_is_told_of_remembered_tokens_too(tokens: Tokens) -> None:
    told: list[Caller] = []
    tokens.on_caller = told.append
    for _ in range(3):
        await tokens.caller(token())

    assert [caller.username for caller in told] == ["ada"] * 3


async def test_only_so_many_tokens_are_remembered_and_no_very_long_ones(
    tokens: Tokens, monkeypatch: pytest.MonkeyPatch, decoded: list[str]
) -> None:
    monkeypatch.setattr(callers, "MOST_REMEMBERED", 3)
    for number in range(10):
        await tokens.caller(token(user_id=number))
        assert len(tokens._people) <= 3

    decoded.clear()
    long = token(email="x" * callers.LONGEST_REMEMBERED)
    await tokens.caller(long)
    await tokens.caller(long)
    assert decoded == [long, long]


async def test_services_and_people_are_remembered_apart(tokens: Tokens) -> None:
    mine = token(service="dispatcher", token_use="service")
    await tokens.service(mine)
    with pytest.raises(NotAuthenticated):
        await tokens.caller(mine)

    await tokens.caller(token())
    with pytest.raises(Forbidden):
        await tokens.service(token())
