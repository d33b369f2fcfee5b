"""Tables of credentials."""

from sqlmodel import SQLModel

from shared import outbox
from shared.database import new_registry


class Base(SQLModel, registry=new_registry()):
    """This service's own registry."""


Outbox = outbox.outbox_table(Base)
