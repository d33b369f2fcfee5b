"""docker-compose.yml is valid, and sets nothing that our settings do not know."""

import importlib
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import ValidationError

from deploy import paths
from shared.settings import ServiceSettings

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SCHEMA = json.loads(Path(__file__).with_name("compose_spec.json").read_text())
# The only variable of ours that no settings class reads: `python -m deploy.databases` does.
OWN = {"ADMIN_DATABASE_URL"}


def settings_of(service: str) -> type[ServiceSettings]:
    module = importlib.import_module(f"services.{service}.settings")
    settings: type[ServiceSettings] = module.Settings
    return settings


def ours() -> dict[str, Any]:
    return {name: service for name, service in COMPOSE["services"].items() if "build" in service}


def test_it_follows_the_compose_schema() -> None:
    jsonschema.Draft201909Validator(SCHEMA).validate(COMPOSE)


def test_there_is_a_web_process_and_a_worker_for_every_service() -> None:
    wanted = {name for service in paths.prefixes() for name in (service, f"{service}-worker")}

    assert wanted <= set(COMPOSE["services"])
    assert {"postgres", "redis", "migrate", "proxy"} <= set(COMPOSE["services"])


@pytest.mark.parametrize("name", sorted(ours()))
def test_every_variable_exists_in_the_settings(name: str) -> None:
    for variable in set(ours()[name]["environment"]) - OWN:
        assert known(variable), f"{variable} is in no settings class"


def known(variable: str) -> bool:
    if variable.startswith("LYCEUM_"):
        return variable.removeprefix("LYCEUM_").lower() in ServiceSettings.model_fields
    return any(
        variable.removeprefix(prefix).lower() in settings_of(service).model_fields
        for service in paths.prefixes()
        if variable.startswith(prefix := f"{service.upper()}_")
    )


def test_no_secret_has_a_default() -> None:
    text = (ROOT / "docker-compose.yml").read_text()

    for name in ("LYCEUM_TOKEN_SECRET", "POSTGRES_PASSWORD"):
        uses = re.findall(rf"\$\{{{name}([^}}]*)\}}", text)
        assert uses
        assert all(use.startswith(":?") for use in uses)


@pytest.mark.parametrize("service", sorted(paths.prefixes()))
def test_production_refuses_a_development_secret(service: str) -> None:
    values = {"environment": "production", "database_url": "postgresql://u@h/d"}

    with pytest.raises(ValidationError, match="LYCEUM_TOKEN_SECRET"):
        settings_of(service)(token_secret="development-" + "x" * 40, **values)
    settings_of(service)(token_secret="f" * 64, **values)


@pytest.mark.parametrize("name", sorted(COMPOSE["services"]))
def test_everything_is_checked_and_restarted(name: str) -> None:
    service = COMPOSE["services"][name]

    if name == "migrate":
        assert service["restart"] == "on-failure"
        return
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"]
