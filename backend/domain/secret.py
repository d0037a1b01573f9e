"""What a secret looks like in a text, and texts without it: findings speak of secrets and never repeat them."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

HARD_CODED = "hard-coded-secret"
"""The rule of a random string that is given to a telling name."""
MASK = "***"
_SHORTEST = 4
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
_CREDENTIALS = re.compile(r"(\w+://)[^/@\s]{1,200}@")
_LITERAL = re.compile(r"'([^'\n]{4,400})'|\"([^\"\n]{4,400})\"|[=:]\s{0,5}([^\s'\"#,;]{4,400})\s*$")
_TELLS_NOTHING = re.compile(
    r"[A-Z][A-Z_]+|(?i:passwo?r?d|passwd|secret|token|(?:api|access|private)_?key|credentials?|user(?:name)?)"
)


@dataclass(frozen=True, slots=True)
class Occurrence:
    """A secret in a line: which rule knows it, and the secret itself."""

    rule: str
    value: str


def occurrences(line: str) -> Iterator[Occurrence]:
    """Yield the secrets of a line: well-known tokens, or where there are none, random strings with telling names."""
    known = False
    for rule, pattern in _RULES.items():
        match = pattern.search(line)
        if match and not _PLACEHOLDERS.match(match[0]):
            known = True
            yield Occurrence(rule, match[0])
    if known:
        return
    for match in _NAMED.finditer(line):
        if not _PLACEHOLDERS.match(match[1]) and _is_random(match[1]):
            yield Occurrence(HARD_CODED, match[1])


def literals(line: str) -> frozenset[str]:
    """Return what may be the secret of a line in which a scanner saw one: its quoted strings and its last value."""
    found = {next(filter(None, match.groups())) for match in _LITERAL.finditer(line)}
    found |= {occurrence.value for occurrence in occurrences(line)}
    return frozenset(value for value in found if not _TELLS_NOTHING.fullmatch(value))


def masked(text: str, values: Iterable[str] = ()) -> str:
    """Return a text without these values, without well-known tokens and without the credentials of addresses."""
    for value in sorted(values, key=len, reverse=True):
        if len(value) >= _SHORTEST:
            text = text.replace(value, MASK)
    for pattern in _RULES.values():
        text = pattern.sub(MASK, text)
    text = _NAMED.sub(lambda match: match[0].replace(match[1], MASK) if _is_random(match[1]) else match[0], text)
    return _CREDENTIALS.sub(rf"\1{MASK}@", text)


def _is_random(value: str) -> bool:
    """Whether a string holds at least 2.5 bits a character and is no plain word or path."""
    counts = Counter(value)
    entropy = -sum(count / len(value) * math.log2(count / len(value)) for count in counts.values())
    plain = re.fullmatch(r"[a-z_.:/-]+|[A-Z_.:/-]+", value) is not None
    return entropy >= 2.5 and not plain
