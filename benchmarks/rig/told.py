"""How figures are told: tables in plain text, and ratios beside what is to be reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Ratio:
    """A figure, and what was promised of it: at least (`>=`) or at most (`<=`) a number; None promises nothing."""

    label: str
    value: float
    promised: str | None = None

    @property
    def kept(self) -> bool | None:
        if self.promised is None:
            return None
        sign, number = self.promised.split()
        return self.value >= float(number) if sign == ">=" else self.value <= float(number)

    def __str__(self) -> str:
        kept = {True: "reached", False: "MISSED", None: ""}[self.kept]
        return f"{self.label:58}{self.value:9.2f}   {f'promised {self.promised}' if self.promised else '':18}{kept}"


def table(heads: Sequence[str], rows: Sequence[Sequence[object]], *, first: int = 44) -> str:
    """Columns of figures; the first column is text."""
    wide = [max(len(head), 11) + 2 for head in heads[1:]]
    lines = [f"{heads[0]:{first}}" + "".join(f"{head:>{w}}" for head, w in zip(heads[1:], wide, strict=True))]
    for row in rows:
        shown = [f"{cell:,.2f}" if isinstance(cell, float) else str(cell) for cell in row[1:]]
        lines.append(f"{row[0]!s:{first}}" + "".join(f"{cell:>{w}}" for cell, w in zip(shown, wide, strict=True)))
    return "\n".join(line.rstrip() for line in lines)


def tell(title: str, *parts: str | Sequence[Ratio]) -> None:
    """Print a claim: its table, its ratios, its notes."""
    print(title)
    for part in parts:
        text = part if isinstance(part, str) else "\n".join(str(ratio).rstrip() for ratio in part)
        print(f"\n{text}")
    print(flush=True)
