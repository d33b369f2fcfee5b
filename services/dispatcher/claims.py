"""The dispatcher's lock.

Positions in the queues of resources are given and grants are decided by one transaction at a time.
That is what makes the rule simple enough to trust, and it is fast because each transaction handles
everything that arrived together. The steps themselves are in functions.sql.
"""

from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

LOCK = 7120042

# The statements below are made of index probes. The planner must neither prefer scans while
# the tables are small, and keep that plan when they have grown, nor plan anew each time.
TURN = text(f"""
    select pg_advisory_xact_lock({LOCK}),
           set_config('plan_cache_mode', 'force_generic_plan', true),
           set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true),
           set_config('enable_mergejoin', 'off', true), set_config('enable_material', 'off', true),
           set_config('enable_bitmapscan', 'off', true), set_config('jit', 'off', true)
""")


async def serialized(session: AsyncSession) -> None:
    """Wait for the turn of this transaction; it lasts until commit, and a crash ends it."""
    connection = await session.connection()
    await connection.execute(TURN)
