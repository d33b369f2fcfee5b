"""A process that holds a lease for as long as it lives, for a test that kills it."""

import asyncio
import sys

from services.dispatcher.client import holding
from services.dispatcher.settings import Settings
from shared.clients import ServiceClients


async def main(resource: str, ttl_seconds: float) -> None:
    clients = ServiceClients(Settings())
    async with holding(clients, exclusive=[resource], ttl_seconds=ttl_seconds):
        print("held", flush=True)
        await asyncio.sleep(60)


asyncio.run(main(sys.argv[1], float(sys.argv[2])))
