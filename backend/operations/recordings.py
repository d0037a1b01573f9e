"""Writing a run out as a recording that the replay provider plays again at no cost."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import yaml
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.ext.asyncio import AsyncSession

from backend.adapters.db.tables import ModelCall, Project, ProjectRun
from backend.domain.ids import DEFAULT_TENANT
from backend.domain.record import Kept, recording_of
from backend.domain.recording import Recording
from backend.errors import Conflict
from backend.operations import runs


async def record(session: AsyncSession, run_id: UUID, *, tenant_id: UUID = DEFAULT_TENANT) -> str:
    """Return the recording of a run as YAML: the answered calls in the order they were made.

    Calls that failed, and replies that their node could not use, are left out. Raises `NotFound` for a run that is not
    there and `Conflict` for one in which no model was called yet.
    """
    run = await runs.get(session, run_id, tenant_id=tenant_id)
    title = await session.scalar(select(Project.name).where(Project.id == run.project_id))
    calls = await _calls(session, run)
    if not calls:
        raise Conflict(f"Run {run.id} has called no model yet, so there is nothing to record.")
    return written(recording_of(title or "", run.brief, calls))


def written(recording: Recording) -> str:
    """Return a recording as YAML that people can read and edit; texts of several lines stand as blocks."""
    content = recording.model_dump(mode="json", exclude_defaults=True)
    return yaml.dump({"recording": 1, **content}, Dumper=_BlockDumper, sort_keys=False, allow_unicode=True, width=120)


async def _calls(session: AsyncSession, run: ProjectRun) -> list[Kept]:
    place = (ModelCall.node, ModelCall.visit, ModelCall.ordinal)
    latest = (
        select(ModelCall)
        .where(ModelCall.run_id == run.id, ModelCall.status == "done", ModelCall.replayable)
        .ext(distinct_on(*place))
        .order_by(*place, ModelCall.attempt.desc())
    )
    rows = sorted(await session.scalars(latest), key=lambda row: (row.created_at, row.id))
    return [
        Kept(
            role=row.role,
            node=row.node,
            visit=row.visit,
            ordinal=row.ordinal,
            task_key=row.task_key,
            model=(row.response or {}).get("model") or row.model,
            request=row.request,
            response=row.response or {},
        )
        for row in rows
    ]


class _BlockDumper(yaml.SafeDumper):
    """Writes texts of several lines as literal blocks, and never an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_BlockDumper.add_representer(str, _text)
