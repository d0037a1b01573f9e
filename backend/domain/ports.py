"""What a node may do to the world, as protocols: adapters and the engine implement them, graphs and roles use them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol
from uuid import UUID

from backend.domain.config import ChecksConfig, WorkspaceConfig
from backend.domain.finding import Severity
from backend.domain.model import ModelReply, ModelRequest, Opening
from backend.domain.question import Answer
from backend.domain.role import Role
from backend.domain.run import RunFacts


class Ask(Protocol):
    """The journalled model call of one node visit: a paid call is never paid twice."""

    async def __call__(self, request: ModelRequest) -> ModelReply:
        """Answer from the journal or from a model.

        Raises `LimitReached` (budget), `Unavailable` (no provider answered), `Held` (pause or stop was asked for).
        Roles let all of them pass.
        """
        ...


class Prompts(Protocol):
    """The prompts that a run is pinned to, from its first claim to its end, whatever is installed by then."""

    def opening(self, name: str, /, **facts: Any) -> Opening:
        """Render the prompt `name` with what it tells of.

        Raises `StepFailed`: `prompt_gone` for a prompt that the run is not pinned to, `prompt_unusable` for a text that
        uses a fact which is not given.
        """
        ...

    def text(self, name: str, /, **facts: Any) -> str:
        """Render a prompt that is a piece of text rather than a conversation; raises as `opening` does."""
        ...


# --- sandbox ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CommandResult:
    """How a sandboxed command ended; output is cut in the middle to the limit it was run with."""

    exit_code: int
    stdout: str
    stderr: str
    seconds: float
    timed_out: bool = False
    killed_by: str | None = None
    """What ended it before its own end: `time`, `memory`, `processes`, `output`, `disk`, `stop`, or None."""
    truncated: bool = False


# --- workspace -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Worktree:
    """A checked-out tree that one node visit works in; `path` is absolute and resolved."""

    path: str
    base: str


@dataclass(frozen=True, slots=True)
class DiffFile:
    """One file of a diff; `lines` are the line numbers in the new file that the change added or touched."""

    path: str
    status: str
    added: int
    removed: int
    lines: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Diff:
    """A change between two commits: unified text (cut to a limit) and its files."""

    text: str
    files: tuple[DiffFile, ...]
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Merge:
    """The end of a merge: the new commit, or the paths in conflict (then nothing changed)."""

    commit: str | None
    conflicts: tuple[str, ...] = ()


class Workspace(Protocol):
    """Git as the truth about files: state holds commit ids, git holds bodies. Every method may be called twice."""

    async def prepare(self, config: WorkspaceConfig) -> str:
        """Make the project's repository (scaffold or clone) if it is not there; return the commit runs begin from."""
        ...

    async def checkout(self, name: str, commit: str) -> Worktree:
        """Put the worktree `name` of this run at `commit`, clean, whatever was in it before."""
        ...

    async def commit(self, tree: Worktree, *, author: Role, message: str, trailers: Mapping[str, str]) -> str:
        """Commit all of the tree on top of its base; return the commit, or the base where nothing changed."""
        ...

    async def merge(self, onto: str, commit: str, *, author: Role, message: str, trailers: Mapping[str, str]) -> Merge:
        """Merge `commit` onto `onto` (both commits) and return the result; no branch is moved."""
        ...

    async def point(self, branch: str, commit: str) -> None:
        """Make a branch of the project's repository point at a commit."""
        ...

    async def push(self, config: WorkspaceConfig, branch: str, commit: str) -> str | None:
        """Push a commit to a branch of the configured remote, without force; a branch that holds it stays as it is.

        Return None, or the sentence why the remote did not take it. Raises `Forbidden` unless the settings say push.
        """
        ...

    async def diff(self, base: str, commit: str, *, limit: int = 60_000) -> Diff:
        """What changed between two commits."""
        ...

    async def files(self, commit: str) -> Sequence[str]:
        """The paths of a commit, sorted."""
        ...

    async def read(self, commit: str, path: str, *, limit: int = 1_000_000) -> str | None:
        """The text of a file at a commit; None where it is not there or is not text."""
        ...

    async def outline(self, commit: str, *, limit: int = 4_000) -> str:
        """A map of the repository (files with their top-level names) of about `limit` characters, for prompts."""
        ...

    async def release(self, name: str) -> None:
        """Remove the worktree `name`; it need not exist."""
        ...


@dataclass(frozen=True, slots=True)
class Observation:
    """What a tool call showed: text for the model, already cut; `ok` is False for an error the model can mend."""

    text: str
    ok: bool = True
    malformed: bool = False
    """The call itself was wrong (unknown tool, arguments that do not fit): three in a row end the loop."""


class Toolbox(Protocol):
    """The tools of one role in one worktree."""

    async def call(self, name: str, arguments: Mapping[str, Any]) -> Observation:
        """Run a tool by name; a tool the role does not have, or arguments that do not fit, is a malformed call."""
        ...

    async def pending_diff(self) -> str:
        """The diff of the worktree against its base, for `submit`."""
        ...


# --- checks ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TestCase:
    """One test as the runner's JUnit report lists it."""

    __test__: ClassVar[bool] = False

    id: str
    outcome: str
    """`passed`, `failed`, `error`, `skipped` or `missing` (expected, but not in the report)."""
    seconds: float = 0.0
    message: str = ""


@dataclass(frozen=True, slots=True)
class TestReport:
    """What really happened when the tests ran; `green` follows from programs alone."""

    __test__: ClassVar[bool] = False

    green: bool
    reasons: tuple[str, ...]
    """Why it is not green, a sentence each; empty when it is."""
    cases: tuple[TestCase, ...]
    exit_code: int | None
    seconds: float
    coverage: float | None
    command: str
    output: str
    tampered: tuple[str, ...] = ()
    """Accepted test files that the commit changed; they ran from their pristine copy all the same."""


@dataclass(frozen=True, slots=True)
class ScanFinding:
    """One thing a scanner found; `fingerprint` survives line moves."""

    fingerprint: str
    scanner: str
    rule: str
    severity: Severity
    path: str | None
    line: int | None
    message: str


@dataclass(frozen=True, slots=True)
class ScannerRun:
    """How one scanner fared; `failed` says why its word cannot be trusted, None when it can."""

    scanner: str
    version: str
    files_expected: int
    files_scanned: int
    seconds: float
    failed: str | None = None


@dataclass(frozen=True, slots=True)
class ScanReport:
    """What the scanners found; a scanner that failed fails the gate.

    `secrets` are the values that findings are about, to be masked wherever findings are spoken of; they go nowhere.
    """

    findings: tuple[ScanFinding, ...]
    scanners: tuple[ScannerRun, ...]
    secrets: tuple[str, ...] = field(default=(), repr=False)


class Checks(Protocol):
    """Programs that decide: tests, scanners and linters over a commit, in the sandbox, failing closed.

    All raise `Unavailable(code="sandbox_unavailable")` where no sandbox passes its self-test.
    """

    async def test(
        self,
        commit: str,
        config: ChecksConfig,
        *,
        accepted_tests: Mapping[str, str],
        only: Sequence[str] = (),
    ) -> TestReport:
        """Run the project's tests at `commit`.

        `accepted_tests` maps a test file's path to the commit whose version counts (its pristine copy runs).
        """
        ...

    async def scan(self, commit: str, config: ChecksConfig) -> ScanReport:
        """Run every configured scanner over `commit`, without agent-written configuration or inline waivers."""
        ...

    async def lint_deploy(self, commit: str, config: ChecksConfig) -> ScanReport:
        """Validate Dockerfile, workflow and compose files with real linters; a missing kind of file is no finding."""
        ...


# --- a node's hands --------------------------------------------------------------------------------------------------


class Seat(Protocol):
    """What one visit of one node works with; model calls count their ordinals from 1 in the order they are made."""

    @property
    def ask(self) -> Ask:
        """The journalled model call of this visit. Calls of one seat are made one after another."""
        ...

    async def note(self, event_type: str, payload: Mapping[str, Any]) -> None:
        """Record an event now, in a fenced transaction of its own, so that followers see life inside a node.

        Recorded once a (visit, event type, ordinal): a node that runs again does not repeat it.
        """
        ...

    def toolbox(self, role: Role, tree: Worktree) -> Toolbox:
        """The role's tools in a worktree; commands run in the sandbox and are noted as events."""
        ...


@dataclass(frozen=True, slots=True)
class Visit:
    """Which visit of which node; `number` comes from the state, never from the attempt."""

    node: str
    number: int
    task_key: str | None = None


class Seats(Protocol):
    """Gives a node visit its seat."""

    def __call__(self, visit: Visit) -> Seat:
        """The seat of a visit; the same visit after a crash gets its journal back."""
        ...


async def _at_once() -> None:
    """Nothing was committed that has to be waited for."""


@dataclass(frozen=True)
class RunContext:
    """What every node finds in `runtime.context`; a graph never reaches around it.

    A node may begin while the commit of the nodes before it is on its way. Seats, workspace and checks wait for it by
    themselves.
    """

    run: RunFacts
    seat: Seats
    workspace: Workspace
    checks: Checks
    prompts: Prompts
    answers: Mapping[str, Answer] = field(default_factory=dict)
    waived: frozenset[str] = frozenset()
    """Fingerprints of findings that a named person waived or called false, valid when the run was claimed."""
    settled: Callable[[], Awaitable[None]] = _at_once
    """Waits until the nodes before are committed, for a node that does something to the world past this context."""


class Held(Exception):
    """A pause or stop was asked for, or the lease is gone: the node ends here and will run again from its journal."""


class StepFailed(Exception):
    """A node cannot do its work and says why in one sentence; the run becomes FAILED with `code` and can be retried.

    `replies_at_fault` is set when paid replies were unusable: the journal then asks again on a retry instead of
    replaying them.
    """

    def __init__(self, code: str, message: str, *, replies_at_fault: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.replies_at_fault = replies_at_fault


# --- telling others --------------------------------------------------------------------------------------------------


class Bell(Protocol):
    """Wake-ups after a commit. Losing one costs a delay and nothing else: none ever raises, nobody waits."""

    def ring(self, run_id: UUID) -> None:
        """Tell the workers that a run may be claimed."""
        ...

    def wake(self, run_id: UUID) -> None:
        """Tell the followers of a run that there are new events."""
        ...

    async def say(self, run_id: UUID, words: bytes) -> bool:
        """Tell live followers what a model says at this moment, which is kept nowhere; whether anybody heard it."""
        ...
