"""How observations are shown: cut in the middle, numbered, in one voice."""

from __future__ import annotations

from collections.abc import Sequence

from backend.domain.ports import CommandResult, TestReport

LONGEST = 10_000


def cut(text: str, limit: int = LONGEST) -> str:
    """Keep the beginning and the end of a long text and say how much is missing between them."""
    text = text.replace("\0", "\\0")
    if len(text) <= limit:
        return text
    half = (limit - 80) // 2
    return f"{text[:half]}\n… {len(text) - 2 * half} characters left out; narrow it down …\n{text[-half:]}"


def numbered(lines: Sequence[str], start: int) -> str:
    """Return lines with their numbers."""
    return "\n".join(f"{number:>6}  {line}" for number, line in enumerate(lines, start))


def command(result: CommandResult) -> str:
    """Tell how a command ended and what it said."""
    ends = {
        "time": "It was killed: it ran out of time.",
        "memory": "It was killed: it used more memory than allowed.",
        "disk": "It was killed: it wrote more than allowed.",
        "processes": "It was killed: it started more processes than allowed.",
        "output": "It was killed: it printed more than allowed.",
        "stop": "It was stopped.",
    }
    rows = [f"exit code {result.exit_code}, {result.seconds:.1f} s"]
    if result.killed_by:
        rows.append(ends.get(result.killed_by, f"It was killed by {result.killed_by}."))
    parts = [("stdout", result.stdout), ("stderr", result.stderr)]
    shown = [f"--- {name}\n{cut(text.rstrip(), LONGEST // 2)}" for name, text in parts if text.strip()]
    return "\n".join([*rows, *(shown or ["(no output)"])])


def tests(report: TestReport) -> str:
    """Tell what the gate's runner saw."""
    counts: dict[str, int] = {}
    for case in report.cases:
        counts[case.outcome] = counts.get(case.outcome, 0) + 1
    rows = ["GREEN" if report.green else "NOT GREEN: " + " ".join(report.reasons)]
    rows.append(", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.items())) or "no tests ran")
    for case in report.cases:
        if case.outcome != "passed":
            rows.append(f"{case.outcome.upper()} {case.id}: {case.message[:1500]}")
    if not report.green:
        rows.append("--- output\n" + cut(report.output.rstrip(), 4000))
    return "\n".join(rows)
