"""What may be recorded of a run, and how it is asked for. contract: dispatcher DI-34"""

import structlog

log = structlog.get_logger("diagnostics")

# Option → what is recorded for it.
NAMES = {
    "memory": "memory_profile",
    "pyinstrument": "pyinstrument_profile",
    "memray": "memray_profile",
    "logs": "task_logs",
    "debug-logs": "task_logs",
}


def requested(header: str | None) -> list[str]:
    """The options a request asked for; unknown ones are only warned about."""
    options = dict.fromkeys(part.strip() for part in (header or "").split(",") if part.strip())
    known = [option for option in options if option in NAMES]
    if len(known) < len(options):
        log.warning("diagnostics.unknown", count=len(options) - len(known))
    return known
