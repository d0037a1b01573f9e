"""Which model answers a request: agent > task type > provider > global, then the provider's fallbacks in order."""

from __future__ import annotations

from collections.abc import Iterator

from backend.domain.config import RunConfig
from backend.domain.model import Choice, ModelRequest
from backend.domain.role import Role
from backend.errors import Invalid

RECORDED = "recorded"
"""The model name of a replay provider where the configuration names none."""


def choices(config: RunConfig, request: ModelRequest, *, degraded_to: str | None = None) -> list[Choice]:
    """Return the models to try for a request, best first; never empty.

    `degraded_to` (the budget's cheaper model, as `model` or `provider:model`) stands in for the first choice's model.
    Raises `Invalid` where no model is named anywhere.
    """
    provider, model = _first(config, request, degraded_to)
    if model is None:
        raise Invalid(no_model(request.role, provider), code="no_model")
    pairs = [(provider, model)]
    for name in fallback_chain(config, provider):
        pairs.append((name, config.models.providers[name].default_model or model))
    return [_choice(config, request, name, chosen) for name, chosen in pairs]


def model_of(config: RunConfig, role: Role, task_type: str | None = None) -> tuple[str, str | None]:
    """Return (provider, model) of a role's first choice; the model is None where nothing names one."""
    seat = config.role(role)
    provider = seat.provider or config.models.provider
    by_type = config.models.by_task_type.get(task_type) if task_type else None
    named = seat.model or by_type
    if named is not None:
        return split(config, named, provider)
    endpoint = config.models.providers.get(provider)
    if endpoint is not None and endpoint.default_model is not None:
        return provider, endpoint.default_model
    if config.models.default is not None:
        return split(config, config.models.default, provider)
    return provider, RECORDED if endpoint is not None and endpoint.kind == "replay" else None


def split(config: RunConfig, name: str, provider: str) -> tuple[str, str]:
    """Read `provider:model`, where the prefix is a configured provider; else the whole name is `provider`'s model."""
    prefix, colon, rest = name.partition(":")
    return (prefix, rest) if colon and rest and prefix in config.models.providers else (provider, name)


def fallback_chain(config: RunConfig, provider: str) -> Iterator[str]:
    """Yield the providers that stand in for `provider`, nearest first, each once."""
    seen = {provider}
    waiting = [provider]
    while waiting:
        endpoint = config.models.providers.get(waiting.pop(0))
        for name in endpoint.fallbacks if endpoint is not None else ():
            if name not in seen and name in config.models.providers:
                seen.add(name)
                waiting.append(name)
                yield name


def no_model(role: Role, provider: str) -> str:
    """Say what to set where a role has no model."""
    return (
        f"No model is named for the role {role.value}: set roles.{role.value}.model, "
        f"models.providers.{provider}.default_model or models.default."
    )


def _first(config: RunConfig, request: ModelRequest, degraded_to: str | None) -> tuple[str, str | None]:
    provider, model = model_of(config, request.role, request.task_type)
    return (provider, model) if degraded_to is None else split(config, degraded_to, provider)


def _choice(config: RunConfig, request: ModelRequest, provider: str, model: str) -> Choice:
    seat = config.role(request.role)
    ceiling = min(seat.max_output_tokens, request.max_output_tokens or seat.max_output_tokens)
    return Choice(
        provider=provider,
        model=model,
        temperature=seat.temperature,
        max_output_tokens=ceiling,
        timeout_seconds=config.models.providers[provider].timeout_seconds,
    )
