"""Rules between settings, each a function from the whole configuration to what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from backend.domain.config import OnExceed, RunConfig
from backend.domain.config_faults import path_of, suggestion
from backend.domain.role import Role
from backend.domain.task import TaskKind
from backend.errors import Fault

_REMOTE = re.compile(r"^(https://|ssh://|git://|/)\S+$|^[\w.-]+@[\w.-]+:[^\s:]\S*$")
NEEDED = (Role.PM, Role.DEVELOPER)
"""Roles without which there is no company."""


def broken_rules(config: RunConfig) -> Iterator[Fault]:
    """Yield every rule between settings that the configuration breaks."""
    for rule in (_providers_exist, _fallbacks, _endpoints, _task_types, _roles, _budget, _warnings, _workspace):
        yield from rule(config)


def _fault(path: tuple[str | int, ...], sentence: str) -> Fault:
    name, pointer = path_of(path)
    return Fault(pointer, f"{name} {sentence}")


def _providers_exist(config: RunConfig) -> Iterator[Fault]:
    known = sorted(config.models.providers)
    named: list[tuple[tuple[str, ...], str]] = [(("models", "provider"), config.models.provider)]
    named += [
        (("roles", role.value, "provider"), seat.provider) for role, seat in config.roles.items() if seat.provider
    ]
    for path, name in named:
        if name not in known:
            yield _fault(path, f"names the provider {name}, which models.providers has not; {suggestion(name, known)}")


def _fallbacks(config: RunConfig) -> Iterator[Fault]:
    providers = config.models.providers
    for name, endpoint in providers.items():
        for index, other in enumerate(endpoint.fallbacks):
            path = ("models", "providers", name, "fallbacks", index)
            if other not in providers:
                yield _fault(path, f"names an unknown provider; {suggestion(other, sorted(providers))}")
            elif _reaches(config, other, name):
                yield _fault(path, f"leads back to {name}; fallbacks must not go in a circle.")


def _reaches(config: RunConfig, start: str, goal: str) -> bool:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name == goal:
            return True
        if name not in seen and name in config.models.providers:
            seen.add(name)
            waiting.extend(config.models.providers[name].fallbacks)
    return False


def _endpoints(config: RunConfig) -> Iterator[Fault]:
    for name, endpoint in config.models.providers.items():
        path = ("models", "providers", name)
        if endpoint.kind == "replay":
            if endpoint.base_url or endpoint.key_variable:
                yield _fault(path, "replays a recording: it takes neither base_url nor key_variable.")
            continue
        if endpoint.recording is not None:
            yield _fault((*path, "recording"), "is only for kind: replay; set kind, or take it away.")
        if endpoint.base_url is None:
            yield _fault((*path, "base_url"), "is missing; set it, such as http://127.0.0.1:11434/v1 for Ollama.")
        elif not _plain_address(endpoint.base_url):
            yield _fault(
                (*path, "base_url"), "must hold no user, password, query or fragment; keys go by key_variable."
            )


def _plain_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and "@" not in parts.netloc and not parts.query and not parts.fragment
    except ValueError:
        return False


def _task_types(config: RunConfig) -> Iterator[Fault]:
    kinds = [kind.value for kind in TaskKind]
    for kind in config.models.by_task_type:
        if kind not in kinds:
            yield _fault(("models", "by_task_type", kind), f"is no kind of task; {suggestion(kind, kinds)}")


def _roles(config: RunConfig) -> Iterator[Fault]:
    for role in NEEDED:
        if not config.role(role).enabled:
            yield _fault(("roles", role.value, "enabled"), "cannot be false; no run goes without this role.")


def _budget(config: RunConfig) -> Iterator[Fault]:
    budget = config.budget
    if budget.on_exceed is OnExceed.DEGRADE and budget.degrade_to is None:
        yield _fault(("budget", "degrade_to"), "must name the cheaper model, since budget.on_exceed is degrade.")
    for role, cap in budget.roles.items():
        path = ("budget", "roles", role.value)
        if cap.tokens is not None and budget.tokens is not None and cap.tokens > budget.tokens:
            yield _fault((*path, "tokens"), f"must be at most budget.tokens ({budget.tokens}).")
        if cap.usd is not None and budget.usd is not None and cap.usd > budget.usd:
            yield _fault((*path, "usd"), f"must be at most budget.usd ({budget.usd}).")


def _warnings(config: RunConfig) -> Iterator[Fault]:
    shares = config.budget.warn_at
    if list(shares) != sorted(set(shares)):
        yield _fault(("budget", "warn_at"), "must rise, each share once, such as [0.5, 0.8, 0.95].")


def _workspace(config: RunConfig) -> Iterator[Fault]:
    place = config.workspace
    if place.remote is None:
        for key, wanted in (("source", place.source == "remote"), ("push", place.push)):
            if wanted:
                yield _fault(("workspace", "remote"), f"is missing; workspace.{key} needs the repository's address.")
    elif not _REMOTE.match(place.remote) or "::" in place.remote or "/../" in place.remote:
        yield _fault(("workspace", "remote"), "must be an https, ssh or git address, or an absolute path.")
    elif ":" in urlsplit(place.remote).netloc.rpartition("@")[0]:
        yield _fault(
            ("workspace", "remote"), "must hold no password; give git its credentials outside of the settings."
        )
    if ".." in place.branch or place.branch.endswith((".lock", "/", ".")):
        yield _fault(("workspace", "branch"), "must be the name of a git branch, such as main.")
