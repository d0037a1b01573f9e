"""What is needed to run the company elsewhere is valid by the programs that judge it, and fits together."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from backend.adapters.db import migrate

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent
COMPOSE = "docker-compose.yml"


def judged_by(*argv: str, **environment: str) -> str:
    """The complaints of a program; empty when it has none."""
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, env=environment or None)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def compose() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((ROOT / COMPOSE).read_text())
    return read


def test_the_dockerfile_passes_hadolint_and_ends_as_an_ordinary_user() -> None:
    assert judged_by(str(PROGRAMS / "hadolint"), "deploy/Dockerfile") == ""
    users = re.findall(r"^USER (\d+)$", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE)
    assert users
    assert int(users[-1]) > 0


def test_the_compose_file_passes_yamllint_and_the_compose_schema() -> None:
    assert judged_by(str(PROGRAMS / "yamllint"), "--strict", COMPOSE) == ""
    assert judged_by(str(PROGRAMS / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec", COMPOSE) == ""


@pytest.mark.skipif(
    shutil.which("docker") is None or judged_by("docker", "compose", "version") != "", reason="needs docker compose"
)
def test_the_compose_file_is_understood_by_docker() -> None:
    secrets = {name: "secret" for name in variables() if name.endswith("PASSWORD")}
    assert judged_by("docker", "compose", "config", "--quiet", PATH="/usr/bin:/usr/local/bin:/bin", **secrets) == ""


def variables() -> set[str]:
    return set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", (ROOT / COMPOSE).read_text()))


def test_every_variable_of_the_compose_file_is_explained_in_the_example() -> None:
    explained = set(re.findall(r"^([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert variables() == explained


def test_the_programs_that_the_containers_run_are_there() -> None:
    commands = [
        service["command"] for service in compose()["services"].values() if service["image"] == "software-company"
    ]
    modules = [command[2] for command in commands if command[:2] == ["python", "-m"]]
    assert len(commands) == 3
    assert len(modules) == 2
    assert all((ROOT / f"{module.replace('.', '/')}.py").exists() for module in modules)
    assert ["company", "migrate"] in commands
    assert judged_by(str(PROGRAMS / "company"), "migrate", "--help", PATH="/usr/bin:/bin") == ""


def test_no_password_is_given_a_default() -> None:
    for name in ("POSTGRES_PASSWORD", "VALKEY_PASSWORD", "PGADMIN_PASSWORD"):
        assert re.search(rf"^{name}=$", (ROOT / ".env.example").read_text(), re.MULTILINE)
        assert f"${{{name}:-" not in (ROOT / COMPOSE).read_text()


def test_every_port_of_the_compose_file_is_published_on_loopback_only() -> None:
    ports = [port for service in compose()["services"].values() for port in service.get("ports", [])]
    assert len(ports) == 2
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_services_wait_only_for_what_is_there_and_says_how_it_is() -> None:
    file = compose()
    for name, service in file["services"].items():
        for needed, wanted in service.get("depends_on", {}).items():
            other = file["services"][needed]
            assert wanted["condition"] != "service_healthy" or "healthcheck" in other, (name, needed)
            assert wanted["condition"] != "service_completed_successfully" or other["restart"] == "no", (name, needed)
        mounted = {volume.split(":")[0] for volume in service.get("volumes", []) if not volume.startswith(".")}
        assert mounted <= file["volumes"].keys(), name
        assert {config["source"] for config in service.get("configs", [])} <= file["configs"].keys(), name


def test_pgadmin_is_told_of_the_server_that_is_there() -> None:
    [server] = json.loads((ROOT / "deploy" / "pgadmin" / "servers.json").read_text())["Servers"].values()
    database = compose()["services"][server["Host"]]["environment"]
    assert (server["Username"], server["MaintenanceDB"]) == (database["POSTGRES_USER"], database["POSTGRES_DB"])
    pgadmin = compose()["services"]["pgadmin"]
    assert server["ConnectionParameters"]["passfile"] in {config["target"] for config in pgadmin["configs"]}
    assert any(volume.startswith("./deploy/pgadmin/servers.json:") for volume in pgadmin["volumes"])


def test_locks_pin_every_package_by_hash_and_name_no_address() -> None:
    for lock in sorted((ROOT / "requirements").glob("*.lock")):
        text = lock.read_text()
        entries = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE | re.IGNORECASE)[1:]
        assert entries
        assert all(re.match(r"[\w.\[\]-]+==\S+", entry) and "--hash=sha256:" in entry for entry in entries)
        assert not re.search(r"https?://|--(extra-)?index-url|--find-links", text)


async def test_a_wheel_holds_what_the_company_needs_and_can_migrate(
    tmp_path: Path, empty_database: Callable[[], Awaitable[str]]
) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    assert judged_by(*build, PATH="/usr/bin:/bin") == ""
    [wheel] = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    missing = [
        str(path.relative_to(ROOT))
        for folder in ("backend", "graphs", "migrations", "templates")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not (installed / path.relative_to(ROOT)).exists()
    ]
    assert missing == []

    url = await empty_database()
    program = f"""
import asyncio, sys
sys.path.insert(0, {str(installed)!r})
from backend.adapters.db import migrate
assert migrate.__file__.startswith({str(installed)!r}), migrate.__file__
asyncio.run(migrate.upgrade({url!r}))
print(migrate.head())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False, env={}
    )
    assert (done.stdout.strip(), done.stderr) == (migrate.head(), "")
