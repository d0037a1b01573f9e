"""What of a configuration cannot work on this installation, found before a run begins and costs anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from backend.domain.config import RunConfig
from backend.domain.model_choice import fallback_chain, model_of, no_model, split
from backend.domain.role import Role
from backend.errors import Fault

_OWN = (
    "take the template local and set models.providers.local.base_url and models.default to an endpoint of yours and a "
    "model that it serves (Ollama, vLLM, llama.cpp)"
)


def start_faults(
    config: RunConfig,
    brief: str,
    *,
    has_key: Callable[[str], bool],
    is_priced: Callable[[str, str], bool],
    recorded_brief: Callable[[str], str | None],
    roles: Iterable[Role] = tuple(Role),
) -> list[Fault]:
    """Return what keeps a run with this configuration and brief from beginning; empty when nothing does.

    `roles` are those that the run's graph seats. `has_key(variable)`, `is_priced(provider, model)` and
    `recorded_brief(provider)` (None: no such recording) tell of the installation. Every sentence says what to set.
    """
    used = list(models_used(config, roles))
    faults = [
        Fault(f"/roles/{role.value}/model", no_model(role, provider)) for role, provider, model in used if model is None
    ]
    pairs = list(dict.fromkeys((provider, model) for _, provider, model in used if model is not None))
    for provider in dict.fromkeys(provider for _, provider, _ in used):
        endpoint = config.models.providers[provider]
        if endpoint.kind == "replay":
            faults += _replay_faults(provider, brief, recorded_brief(provider))
        elif endpoint.key_variable is not None and not has_key(endpoint.key_variable):
            faults.append(_no_key(provider, endpoint.key_variable))
    if config.budget.usd is not None or any(cap.usd is not None for cap in config.budget.roles.values()):
        faults += [_unpriced(provider, model) for provider, model in pairs if not is_priced(provider, model)]
    return faults


def models_used(config: RunConfig, roles: Iterable[Role] = tuple(Role)) -> Iterator[tuple[Role, str, str | None]]:
    """Yield (role, provider, model) of every model that a run may come to call, fallbacks and degrading included."""
    for role in roles:
        if not config.role(role).enabled:
            continue
        named = [model_of(config, role, kind) for kind in (None, *sorted(config.models.by_task_type))]
        if config.budget.degrade_to is not None:
            named.append(split(config, config.budget.degrade_to, named[0][0]))
        for provider, model in dict.fromkeys(named):
            yield role, provider, model
            for other in fallback_chain(config, provider):
                yield role, other, config.models.providers[other].default_model or model


def _replay_faults(provider: str, brief: str, recorded: str | None) -> list[Fault]:
    pointer = f"/models/providers/{provider}/recording"
    if recorded is None:
        return [Fault(pointer, f"The provider {provider} replays a recording that is not there or not in order.")]
    if " ".join(recorded.split()) == " ".join(brief.split()):
        return []
    return [
        Fault(
            pointer,
            f"The provider {provider} only replays a recording of another brief. For a brief of your own use a model: "
            f"take the template standard and set OPENAI_API_KEY, or {_OWN}.",
        )
    ]


def _no_key(provider: str, variable: str) -> Fault:
    return Fault(
        f"/models/providers/{provider}/key_variable",
        f"The provider {provider} needs the key in {variable}, which is not set: set it where the company runs, or "
        f"{_OWN}.",
    )


def _unpriced(provider: str, model: str) -> Fault:
    return Fault(
        "/models/prices",
        f"Nothing prices the model {model} of provider {provider}, so a limit in USD could not be kept: set "
        f"models.prices.{model} (input and output in USD for a million tokens; 0 for a local model), or set "
        "budget.usd to null.",
    )
