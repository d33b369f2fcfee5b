"""What is known here of people besides their names. contract: libraries §3.3"""

import re
from datetime import datetime

from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries.models import Person
from shared.callers import Caller

LONGEST_EMAIL = 254
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
EMAIL = re.compile(rf"{_ATOM}(?:\.{_ATOM})*@(?:{_LABEL}\.)+[A-Za-z]{{2,63}}")

_REMEMBER = text("""
    insert into person (username, email, active, creator, seen)
    values (:username, :email, true, false, :now)
    on conflict (username) do update set email = excluded.email, seen = excluded.seen
    where (person.email, person.seen) is distinct from (excluded.email, excluded.seen)
""")


async def remember(session: AsyncSession, caller: Caller, *, now: datetime) -> None:
    """Keep what the caller's token says, for work that is done when the caller is gone."""
    connection = await session.connection()
    email = caller.email.replace("\x00", "")
    values = {"username": caller.username, "email": email, "now": now}
    await connection.execute(_REMEMBER, values)


async def email_of(session: AsyncSession, username: str | None) -> str:
    """The address of a person, or nothing when it is unknown or is no address."""
    person = await session.get(Person, username) if username is not None else None
    return valid_email(person.email) if person else ""


def valid_email(text: str) -> str:
    """The text, if other systems take it for an address; otherwise nothing."""
    return text if len(text) <= LONGEST_EMAIL and EMAIL.fullmatch(text) else ""
