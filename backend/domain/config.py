"""What a run is configured by: `RunConfig`, merged from defaults < template < project < run, then never changed.

Unknown keys, wrong units and absurd numbers are refused with the path of the key and what would be right. A setting
that came after the first release is left out of snapshots while it has its default (`exclude_if`): a worker of the
release before can drive runs that do without it.
Durations are in seconds, sizes in MB, money in USD.
"""

from __future__ import annotations

import operator
from decimal import Decimal
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from backend.domain.role import Role

OPENAI_URL = "https://api.openai.com/v1"

Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[\w./:@+-]+$")]
Seconds = Annotated[int, Field(ge=1, le=30 * 24 * 3600)]
Tokens = Annotated[int, Field(ge=1, le=10_000_000_000)]
PerMillion = Annotated[Decimal, Field(ge=0, le=100_000, max_digits=16, decimal_places=8)]
Usd = Annotated[Decimal, Field(gt=0, le=Decimal(1_000_000), max_digits=14, decimal_places=6)]


class Section(BaseModel):
    """The shape of every section: frozen, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class OnExceed(StrEnum):
    """What the budget gate does at a breach."""

    STOP = "stop"
    PAUSE = "pause"
    DEGRADE = "degrade"


class SecurityGate(StrEnum):
    """From which severity on findings block."""

    OFF = "off"
    WARN = "warn"
    BLOCK_CRITICAL = "block_critical"
    BLOCK_HIGH = "block_high"
    BLOCK_ANY = "block_any"


class RoleConfig(Section):
    """The seat of one role; None means: as chosen by task type, provider or globally."""

    enabled: bool = True
    model: Name | None = None
    provider: Name | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    max_output_tokens: Annotated[int, Field(ge=16, le=200_000)] = 8_000
    prompt_version: Name | None = None
    edit_format: Literal["tools", "fenced"] = "tools"
    context_tokens: Annotated[int, Field(ge=4_000, le=10_000_000)] = 128_000
    """The model's window; the history of tool calls is compacted at 60 % of it."""


class ProviderConfig(Section):
    """An endpoint that speaks the OpenAI protocol, or the replay of a recording (`kind: replay`)."""

    kind: Literal["openai", "replay"] = "openai"
    base_url: Annotated[str, Field(pattern=r"^https?://[^\s]+$", max_length=500)] | None = None
    key_variable: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*_(KEY|TOKEN)$", max_length=100)] | None = None
    """The environment variable that holds the key; None for endpoints without keys.

    Only names that end so can be sent to an endpoint, so that no setting can give away a database address or the like.
    """
    default_model: Name | None = None
    """The model of roles that name none, and of this provider when it stands in for another."""
    timeout_seconds: Annotated[float, Field(gt=0, le=3600)] = 120.0
    stream: Annotated[bool, Field(exclude_if=operator.not_)] = False
    """Let live followers read replies while models write them; replies are the same and are metered the same."""
    requests_per_minute: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    tokens_per_minute: Annotated[int | None, Field(ge=1, le=10_000_000_000, exclude_if=lambda value: value is None)] = (
        None
    )
    """Input and output ceiling of each call together, as it is reserved."""
    retries: Annotated[int, Field(ge=0, le=10)] = 4
    fallbacks: tuple[Name, ...] = ()
    """Names of providers that are tried next, in order."""
    recording: Annotated[str, Field(max_length=500)] | None = None
    """For `kind: replay`: a recording's name in `templates/showcases` (without `.yaml`)."""


class ModelPrice(Section):
    """USD for a million tokens; an explicit 0 for local models."""

    input: PerMillion
    output: PerMillion
    cached_input: PerMillion | None = None


class ModelsConfig(Section):
    """Model choice by agent > task type > provider > global."""

    provider: Name = "openai"
    default: Name | None = None
    by_task_type: dict[str, Name] = Field(default_factory=dict)
    """Keys are task kinds: feature, bug, security, conflict, test, docs, devops."""
    prices: dict[str, ModelPrice] = Field(default_factory=dict)
    providers: dict[str, ProviderConfig] = Field(
        default_factory=lambda: {"openai": ProviderConfig(base_url=OPENAI_URL, key_variable="OPENAI_API_KEY")}
    )


class Cap(Section):
    """A limit of one role within the run's."""

    tokens: Tokens | None = None
    usd: Usd | None = None
    seconds: Annotated[Seconds | None, Field(exclude_if=lambda value: value is None)] = None
    """Of its model calls, added up: calls at the same time each count."""


class BudgetConfig(Section):
    """Limits of the run; None is no limit of that kind."""

    tokens: Tokens | None = None
    usd: Usd | None = None
    seconds: Seconds | None = None
    on_exceed: OnExceed = OnExceed.STOP
    degrade_to: Name | None = None
    warn_at: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.5, 0.8, 0.95)
    roles: dict[Role, Cap] = Field(default_factory=dict)


class ReviewConfig(Section):
    """The review gate: rounds of fixing a change before `on_exhausted` decides."""

    max_iterations: Annotated[int, Field(ge=0, le=20)] = 3
    on_exhausted: Literal["accept", "fail"] = "fail"


class QaConfig(Section):
    """The QA gate."""

    max_iterations: Annotated[int, Field(ge=0, le=20)] = 3
    on_exhausted: Literal["accept", "fail"] = "fail"


class SecurityConfig(Section):
    """The security gate."""

    gate: SecurityGate = SecurityGate.BLOCK_HIGH
    max_iterations: Annotated[int, Field(ge=0, le=20)] = 3


class PeopleConfig(Section):
    """When people are asked, and what happens when they do not answer."""

    may_ask: bool = False
    approve_plan: bool = False
    approve_release: bool = False
    due_seconds: Seconds | None = None
    on_expiry: Literal["default", "stop"] = "stop"


class WorkspaceConfig(Section):
    """Where the repository comes from and goes to; URLs are https, ssh, git or an absolute local path."""

    source: Literal["scaffold", "remote"] = "scaffold"
    remote: Annotated[str, Field(max_length=1000)] | None = None
    branch: Annotated[str, Field(max_length=200, pattern=r"^[A-Za-z0-9][\w./-]*$")] = "main"
    push: bool = False


class SandboxConfig(Section):
    """Limits of every command; network is never given by default."""

    level: Literal["auto", "bubblewrap", "namespaces", "landlock", "unsafe"] = "auto"
    network: bool = False
    memory_mb: Annotated[int, Field(ge=64, le=262_144)] = 1024
    cpu_seconds: Annotated[int, Field(ge=1, le=86_400)] = 300
    seconds: Annotated[int, Field(ge=1, le=86_400)] = 300
    processes: Annotated[int, Field(ge=4, le=10_000)] = 128
    disk_mb: Annotated[int, Field(ge=1, le=262_144)] = 512
    output_bytes: Annotated[int, Field(ge=1_000, le=100_000_000)] = 1_000_000


class ChecksConfig(Section):
    """What QA and security run; None finds the test command by the repository's files."""

    test_command: Annotated[str, Field(min_length=1, max_length=2000)] | None = None
    coverage_floor: Annotated[float, Field(ge=0, le=100)] | None = None
    scanners: tuple[Literal["bandit", "detect-secrets", "secret-rules", "dependencies", "semgrep"], ...] = (
        "bandit",
        "detect-secrets",
        "secret-rules",
        "dependencies",
    )
    linters: tuple[Literal["hadolint", "actionlint", "yamllint", "compose"], ...] = (
        "hadolint",
        "actionlint",
        "yamllint",
        "compose",
    )


class LimitsConfig(Section):
    """Time limits of the engine for this run."""

    node_seconds: Seconds = 3600
    agent_steps: Annotated[int, Field(ge=1, le=500)] = 40


class RetentionConfig(Section):
    """What is kept after the end."""

    checkpoints: Literal["all", "thin"] = "thin"


class RunConfig(Section):
    """Everything that decides how a run goes; its JSON form is the run's immutable `config_snapshot`."""

    graph: Name = "software_company"
    parallelism: Annotated[int, Field(ge=1, le=32)] = 2
    roles: dict[Role, RoleConfig] = Field(default_factory=lambda: {role: RoleConfig() for role in Role})
    models: ModelsConfig = ModelsConfig()
    budget: BudgetConfig = BudgetConfig()
    review: ReviewConfig = ReviewConfig()
    qa: QaConfig = QaConfig()
    security: SecurityConfig = SecurityConfig()
    people: PeopleConfig = PeopleConfig()
    workspace: WorkspaceConfig = WorkspaceConfig()
    sandbox: SandboxConfig = SandboxConfig()
    checks: ChecksConfig = ChecksConfig()
    limits: LimitsConfig = LimitsConfig()
    retention: RetentionConfig = RetentionConfig()

    @cached_property
    def json_text(self) -> str:
        """The JSON that a run keeps; money is text, so that not a digit is lost."""
        return self.model_dump_json()

    def role(self, role: Role) -> RoleConfig:
        """The seat of `role`, with defaults where the configuration names none."""
        return self.roles.get(role, RoleConfig())


Patch = dict[str, Any]
"""A partial `RunConfig` as nested JSON; an explicit null takes the field back to its default."""
