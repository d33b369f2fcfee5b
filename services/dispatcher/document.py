"""The API's description as clients written for Pulp look it up. contract: dispatcher §5

They name a thing by its address: where a path has an id, theirs begins with the whole address of
the thing (`{task_href}`). Lists of values are arrays joined by commas.
"""

import copy
import re
from typing import Any

from fastapi import FastAPI

PREFIX = "/pulp/api/v3/"
# The version of the API that is kept, by which clients decide what they may call.
API_VERSION = "3.117.0"
HREFS = {
    "tasks": "task_href",
    "task-groups": "task_group_href",
    "task-schedules": "task_schedule_href",
    "workers": "worker_href",
}
# Nobody has to say who they are: clients without credentials would not even ask otherwise.
OPEN = {"status_read", "tasks_profile_artifact_file"}
WITH_ID = re.compile(rf"{PREFIX}([a-z-]+)/\{{(\w+)\}}/(.*)")


def pulp_document(app: FastAPI) -> dict[str, Any]:
    """OpenAPI of the compatible routes only."""
    whole = app.openapi()
    return {
        "openapi": "3.0.3",
        "info": {
            "title": whole["info"]["title"],
            "version": "v3",
            "x-pulp-app-versions": {"core": API_VERSION},
            "x-pulp-domain-enabled": False,
        },
        "paths": dict(
            _renamed(path, item) for path, item in whole["paths"].items() if path.startswith(PREFIX)
        ),
        "components": whole["components"],
        "servers": [{"url": app.state.settings.origin_url}],
    }


def _renamed(path: str, item: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    item = copy.deepcopy(item)
    found = WITH_ID.fullmatch(path)
    for operation in item.values():
        if operation["operationId"] in OPEN:
            operation["security"] = [*operation["security"], {}]
        for parameter in operation.get("parameters", []):
            if parameter["in"] == "query":
                _as_array(parameter)
            elif found and parameter["name"] == found.group(2):
                parameter["name"] = HREFS[found.group(1)]
                parameter["schema"] = {"type": "string"}
    if found is None:
        return path, item
    return f"{{{HREFS[found.group(1)]}}}{found.group(3)}", item


def _as_array(parameter: dict[str, Any]) -> None:
    name = parameter["name"]
    if name in ("limit", "offset", "page_size"):
        parameter["schema"] = {"type": "integer"}
    elif name in ("ordering", "fields", "exclude_fields") or name.endswith(("__in", "__range")):
        parameter["schema"] = {"type": "array", "items": {"type": "string"}}
        parameter |= {"style": "form", "explode": False}
    elif name in ("minimal", "online", "missing") or name.endswith("__isnull"):
        parameter["schema"] = {"type": "boolean"}
    elif ("__" in name and name.partition("__")[0] in MOMENTS) or name in MOMENTS:
        parameter["schema"] = {"type": "string", "format": "date-time"}


MOMENTS = {"pulp_created", "started_at", "finished_at", "unblocked_at", "last_heartbeat"}
