"""Run the benchmarks, a file for each claim, and write what they said to `RESULTS.md`.

`python -m benchmarks` runs all; `python -m benchmarks lists growth` runs two and leaves the results of the others. What
stands behind `--` is handed to each: `python -m benchmarks lists -- --rows 10000`.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from backend.engine.embedded import binaries
from benchmarks.rig.work import load

HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"
CLAIMS = ("engine", "sizes", "throughput", "waiting", "lists", "followers", "resume", "growth", "soak")
SHOWN = ("langgraph", "langgraph-checkpoint-postgres", "asyncpg", "sqlalchemy", "celery", "redis", "fastapi", "uvicorn")
HEAD = """# What the benchmarks said

Written by `make bench`; each section by the file of its name, with `--help` for its options. Ratios are of contenders
that took turns in one run on one machine. Where other programs shared the processors the section says how many waited
for them (load): times are longer then, ratios wider, and processor time is the steadier figure.

"""


def machine() -> str:
    """What it ran on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "processor")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = ", ".join(f"{name} {version(name)}" for name in SHOWN)
    postgres = binaries.major_of(Path(binaries.postgres().program("postgres")))
    return (
        f"{os.cpu_count()} x {model}, {memory:.0f} GiB, {platform.system()} {platform.release()};"
        f" Python {platform.python_version()}, PostgreSQL {postgres}, {packages}."
    )


def sections(text: str) -> dict[str, str]:
    """The results that are there, by claim."""
    parts = re.split(r"^## (\w+)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def run(claim: str, options: list[str]) -> str:
    """One benchmark's section, or why it gave none."""
    began, before = time.monotonic(), load()
    command = [sys.executable, str(HERE / f"{claim}.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HERE.parent)
    said = done.stdout.strip() or "It said nothing."
    if done.returncode != 0:
        said += "\n\nIt failed: " + " ".join(done.stderr.strip().splitlines()[-1:])[:500]
    when = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {time.monotonic() - began:.0f} s"
    shown = " ".join(options) or "none"
    about = f"{when}; options: {shown}; load before: {before}; {machine()}"
    print(f"## {claim}\n\n{said}\n", flush=True)
    return f"\n{about}\n\n```\n{said}\n```\n\n"


def main() -> int:
    words = sys.argv[1:]
    options = words[words.index("--") + 1 :] if "--" in words else []
    asked = [word for word in words[: len(words) - len(options)] if word != "--"] or list(CLAIMS)
    if unknown := [word for word in asked if word not in CLAIMS]:
        print(f"There is no benchmark {', '.join(unknown)}; there are {', '.join(CLAIMS)}.", file=sys.stderr)
        return 2
    failed = False
    for claim in asked:
        section = run(claim, options)
        failed = failed or "\nIt failed: " in section
        known = sections(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        known[claim] = section
        body = "".join(f"## {name}\n{known[name]}" for name in CLAIMS if name in known)
        RESULTS.write_text(HEAD + body.rstrip() + "\n", encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
