"""The second secret rule set, our own: the shapes of well-known tokens, and random strings given to telling names."""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from backend.adapters.scanners.found import Outcome, Raw
from backend.adapters.scanners.prepared import is_test
from backend.domain.finding import Severity
from backend.domain.ports import ScannerRun

NAME = "secret-rules"
VERSION = "1"
_LONGEST_LINE = 4000
_TOKENS = {
    "aws-access-key": r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}\b",
    "github-token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{60,})",
    "gitlab-token": r"\bgl(?:pat|ptt|dt|rt|soat)-[A-Za-z0-9_-]{20,}",
    "openai-key": r"\bsk-(?:proj-|svcacct-)?[A-Za-z0-9_-]{20,}T3BlbkFJ[A-Za-z0-9_-]{20,}|\bsk-[A-Za-z0-9]{48}\b",
    "anthropic-key": r"\bsk-ant-[A-Za-z0-9_-]{32,}",
    "slack-token": r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}",
    "slack-webhook": r"hooks\.slack\.com/services/T[A-Z0-9]{6,}/B[A-Z0-9]{6,}/[A-Za-z0-9]{20,}",
    "stripe-key": r"\b(?:sk|rk)_(?:live|test)_[A-Za-z0-9]{20,}",
    "google-api-key": r"\bAIza[A-Za-z0-9_-]{35}\b",
    "google-oauth": r"\bGOCSPX-[A-Za-z0-9_-]{28}\b",
    "twilio-key": r"\bSK[0-9a-f]{32}\b",
    "sendgrid-key": r"\bSG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}",
    "npm-token": r"\bnpm_[A-Za-z0-9]{36}\b",
    "package-upload-token": r"\bpypi-AgEIcHlwaS5vcmc[A-Za-z0-9_-]{50,}",
    "telegram-token": r"\b\d{8,10}:AA[A-Za-z0-9_-]{33}\b",
    "huggingface-token": r"\bhf_[A-Za-z0-9]{34}\b",
    "digitalocean-token": r"\bdo[opr]_v1_[a-f0-9]{64}\b",
    "azure-storage-key": r"AccountKey=[A-Za-z0-9+/]{86}==",
    "private-key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----",
    "json-web-token": r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}",
    "address-with-password": r"\b[a-z][a-z0-9+.-]{1,20}://[^\s:/@'\"{}$<>]{1,64}:[^\s:/@'\"{}$<>*]{6,64}@[\w.-]{3,}",
}
_RULES = {name: re.compile(pattern) for name, pattern in _TOKENS.items()}
_NAMED = re.compile(
    r"(?i)[\w.-]{0,40}(?:passw(?:or)?d|passwd|secret|token|api_?key|access_?key|private_?key|credential)[\w.-]{0,40}"
    r"['\"]?\s{0,5}(?::\s{0,5}\w{1,20}\s{0,5}=|[:=]{1,2}|=>)\s{0,5}['\"]([^'\"\s]{8,200})['\"]"
)
_PLACEHOLDERS = re.compile(
    r"(?i)^(?:[x*.<>_-]+|.*(?:example|changeme|change-me|placeholder|your[_-]|dummy|redacted|not[_-]?a[_-]?secret).*"
    r"|\$\{?.*|\{\{?.*|%\(.*|<.*>)$"
)


def scan(root: Path, texts: Sequence[str]) -> Outcome:
    """Look at every line of every text file."""
    started = time.monotonic()
    found = [raw for path in texts for raw in _in_file(path, (root / path).read_text("utf-8", "replace"))]
    run = ScannerRun(NAME, VERSION, len(texts), len(texts), time.monotonic() - started)
    return Outcome(run, tuple(found))


def _in_file(path: str, body: str) -> Iterator[Raw]:
    for number, line in enumerate(body.splitlines(), start=1):
        for start in range(0, max(1, len(line)), _LONGEST_LINE - 200):
            yield from _in_line(path, number, line[start : start + _LONGEST_LINE])


def _in_line(path: str, number: int, line: str) -> Iterator[Raw]:
    known = False
    for rule, pattern in _RULES.items():
        match = pattern.search(line)
        if match and not _PLACEHOLDERS.match(match[0]):
            known = True
            yield Raw(rule, Severity.CRITICAL, path, number, f"This looks like a real {rule.replace('-', ' ')}.")
    if known:
        return
    for match in _NAMED.finditer(line):
        value = match[1]
        if not _PLACEHOLDERS.match(value) and _is_random(value):
            severity = Severity.MEDIUM if is_test(path) else Severity.HIGH
            yield Raw("hard-coded-secret", severity, path, number, "A secret is written into the source.")


def _is_random(value: str) -> bool:
    """Whether a string holds at least 2.5 bits a character and is no plain word or path."""
    counts = Counter(value)
    entropy = -sum(count / len(value) * math.log2(count / len(value)) for count in counts.values())
    plain = re.fullmatch(r"[a-z_.:/-]+|[A-Z_.:/-]+", value) is not None
    return entropy >= 2.5 and not plain
