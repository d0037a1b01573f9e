"""Tasks over HTTP."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from backend.adapters.db.tables import Task
from backend.api.comments import CommentView
from backend.api.dependencies import Changing, IfMatch, Posting, Reading, StrictRoute, Wanted, listing, shown
from backend.api.problems import documented
from backend.api.views import PageOf, view_model
from backend.domain.role import Role
from backend.domain.task import TaskKind, TaskStatus
from backend.operations import comments, tasks

router = APIRouter(prefix="/api/tasks", tags=["tasks"], route_class=StrictRoute)

_WORDS = {"status": TaskStatus, "kind": TaskKind, "assigned_role": Role, "acceptance_criteria": list[str]}
TaskView = view_model("TaskView", tasks.VIEW, depends_on=list[str], **_WORDS)
TaskListed = view_model("TaskListed", tasks.LISTED, **_WORDS)

Key = Annotated[str, Field(min_length=1, max_length=60, pattern=r"^[A-Za-z0-9][\w.-]*$", examples=["T-1"])]
Title = Annotated[str, Field(min_length=1, max_length=300, examples=["Say what the report leaves out"])]
Text = Annotated[str, Field(max_length=50_000)]
Criteria = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=2_000)]],
    Field(max_length=100, examples=[["The report lists the months without entries."]]),
]
Priority = Annotated[int, Field(ge=-1_000, le=1_000)]


class TaskCreate(BaseModel):
    """A task that a person adds to a run; it is theirs to move."""

    model_config = ConfigDict(extra="forbid")
    run_id: UUID
    title: Title
    kind: TaskKind = TaskKind.FEATURE
    role: Role = Role.DEVELOPER
    key: Key | None = Field(default=None, description="Unique in the run; the next H-number where none is given")
    description: Text = ""
    acceptance_criteria: Criteria = Field(default_factory=list)
    depends_on: list[Key] = Field(default_factory=list, max_length=100)
    parent: Key | None = None
    priority: Priority = 0


class TaskPatch(BaseModel):
    """What is to change of a task; what is left out stays."""

    model_config = ConfigDict(extra="forbid")
    title: Title | None = None
    description: Text | None = None
    acceptance_criteria: Criteria | None = None
    priority: Priority | None = None
    status: TaskStatus | None = Field(default=None, description="Only of a task that people made")


class TaskTree(BaseModel):
    """A task with the tasks that are part of it."""

    model_config = ConfigDict(extra="allow")
    id: UUID
    key: str
    title: str
    status: TaskStatus
    children: list[TaskTree]


@router.get("", response_model=PageOf[TaskListed], summary="List tasks", responses=documented(422))  # type: ignore[valid-type]  # made from the table
async def list_tasks(
    session: Reading,
    wanted: Wanted,
    run_id: UUID | None = None,
    status: TaskStatus | None = None,
    role: Role | None = None,
) -> Response:
    """Tasks, newest first."""
    return listing(await tasks.page(session, wanted, run_id=run_id, status=status, role=role))


@router.get(
    "/tree", response_model=list[TaskTree], summary="Read a run's tasks as a tree", responses=documented(404, 422)
)
async def read_tree(run_id: UUID, session: Reading) -> list[dict[str, Any]]:
    """All tasks of a run, each with its children and the keys it depends on."""
    return await tasks.tree(session, run_id)


@router.get("/{task_id}", response_model=TaskView, summary="Read a task", responses=documented(404, 422))
async def read_task(task_id: UUID, session: Reading) -> Response:
    """One task; its ETag is what an edit sends back as If-Match."""
    task = await tasks.get(session, task_id)
    return shown(await tasks.VIEW.one(session, Task.id == task_id), ETag=f'"{task.version}"')


@router.post("", status_code=201, response_model=TaskView, summary="Add a task", responses=documented(404, 409, 422))
async def create_task(body: TaskCreate, command: Posting) -> Response:
    """Add a task to a run that has not ended. The graph does not take it up by itself; people move it."""
    new = tasks.NewTask(**body.model_dump(exclude={"run_id"}))
    task = await tasks.create(command.session, body.run_id, new, by=command.by)
    row = await tasks.VIEW.one(command.session, Task.id == task.id)
    return await command.answer(row, 201, Location=f"/api/tasks/{task.id}", ETag='"1"')


@router.patch(
    "/{task_id}", response_model=TaskView, summary="Edit a task", responses=documented(404, 409, 412, 422, 428)
)
async def edit_task(task_id: UUID, body: TaskPatch, version: IfMatch, command: Changing) -> Response:
    """Change a task's words, or move one that people made along its life cycle."""
    changes = tasks.Edit(**body.model_dump())
    task = await tasks.edit(command.session, task_id, changes, expected_version=version, by=command.by)
    return shown(await tasks.VIEW.one(command.session, Task.id == task_id), ETag=f'"{task.version}"')


@router.get(
    "/{task_id}/comments",
    response_model=PageOf[CommentView],  # type: ignore[valid-type]  # made from the table
    summary="List a task's comments",
    responses=documented(404, 422),
)
async def list_task_comments(task_id: UUID, session: Reading, wanted: Wanted) -> Response:
    """What roles and people said about a task, newest first."""
    await tasks.get(session, task_id)
    return listing(await comments.page(session, wanted, task_id=task_id))
