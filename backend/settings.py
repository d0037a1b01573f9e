"""Settings of the installation, read from the environment here and nowhere else, and passed down.

Nothing needs to be set: the defaults run the embedded company under `./.company`. What a *run* does is configured by
`backend.domain.config`, not here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class EngineSettings(BaseModel):
    """How this installation drives runs; seconds unless named otherwise."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lease_seconds: Annotated[float, Field(gt=0, le=600)] = 15.0
    heartbeat_seconds: Annotated[float, Field(gt=0, le=60)] = 3.0
    reaper_seconds: Annotated[float, Field(gt=0, le=60)] = 2.0
    slice_seconds: Annotated[float, Field(gt=0, le=3600)] = 300.0
    max_claims: Annotated[int, Field(ge=1, le=100)] = 5
    concurrency: Annotated[int, Field(ge=1, le=1000)] = 64
    """Runs that one worker process drives at once."""
    commands: Annotated[int, Field(ge=1, le=256)] = 2
    """Sandboxed commands at once on this machine."""
    pool_size: Annotated[int, Field(ge=1, le=500)] = 10
    shutdown_seconds: Annotated[float, Field(gt=0, le=300)] = 20.0
    """How long runs may take to a safe point when a worker is asked to leave."""
    stall_seconds: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """How long the event loop of a worker may stand still before the worker ends, so that others take its runs."""
    crash_at: str = ""
    """For tests of faults: points at which a worker kills itself, as `reserve` or `response:3`."""

    @property
    def trusted_claims(self) -> int:
        """How often a run may be claimed without getting on before it is driven beside no other such run."""
        return max(1, self.max_claims - 2)


class RetentionSettings(BaseModel):
    """What `company gc` may remove, in days; 0 keeps for ever.

    Events, comments, the ledger and the repository are what an auditor reads: they go only with a whole project that
    somebody archived, and only if `archived_days` says so.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint_days: Annotated[int, Field(ge=0, le=36_500)] = 30
    """After a run's end all but its newest checkpoint go: it can be read and retried, no longer forked from earlier."""
    archived_days: Annotated[int, Field(ge=0, le=36_500)] = 0
    """After it was archived a project goes, with everything that its runs made."""
    orphan_days: Annotated[int, Field(ge=0, le=36_500)] = 1
    """Files that no row names go when they are this old: a row may still be on its way to a younger one."""


class Settings(BaseSettings):
    """All settings; nested ones as `COMPANY_ENGINE__LEASE_SECONDS`."""

    model_config = SettingsConfigDict(
        env_prefix="COMPANY_", env_nested_delimiter="__", frozen=True, extra="ignore", populate_by_name=True
    )

    home: Path = Path(".company")
    """The state directory: embedded data, repositories, worktrees, artifacts (`COMPANY_HOME`)."""
    database_url: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("DATABASE_URL", "COMPANY_DATABASE_URL")
    )
    redis_url: SecretStr | None = Field(default=None, validation_alias=AliasChoices("REDIS_URL", "COMPANY_REDIS_URL"))
    environment: Literal["development", "production"] = "development"
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8000
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    engine: EngineSettings = EngineSettings()
    retention: RetentionSettings = RetentionSettings()

    def for_child(self, *, database_url: str, redis_url: str) -> dict[str, str]:
        """The environment of a child process that is to see these servers and this state directory."""
        return os.environ | {
            "COMPANY_HOME": str(self.home.resolve()),
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
        }


def provider_key(variable: str) -> SecretStr | None:
    """Read the key of a model provider from the environment variable that a run's configuration names.

    Read when it is needed, so that a key that is renewed needs no restart of runs. What may be named is decided by
    `domain.config` (only variables that end in `_KEY` or `_TOKEN`, none of our own).
    """
    value = os.environ.get(variable, "").strip()
    return SecretStr(value) if value else None
