"""What is known of a caller from the claims of a token."""

from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import OctKey

from shared.callers import Tokens, make_token
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
