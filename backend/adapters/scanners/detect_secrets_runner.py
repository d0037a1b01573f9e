"""Runs detect-secrets inside the sandbox over a list of files and writes what it found; stands alone."""

from __future__ import annotations

import json
import sys

from detect_secrets.core.scan import scan_file
from detect_secrets.settings import default_settings, get_settings

_WAIVING = (
    "detect_secrets.filters.allowlist.is_line_allowlisted",
    "detect_secrets.filters.heuristic.is_lock_file",
    "detect_secrets.filters.heuristic.is_non_text_file",
    "detect_secrets.filters.heuristic.is_swagger_file",
)


def main(listing: str, out: str) -> None:
    """Scan every file of the listing."""
    with open(listing, encoding="utf-8") as file:  # noqa: PTH123  (strings only)
        paths = json.load(file)
    found, scanned = [], 0
    with default_settings():
        get_settings().disable_filters(*_WAIVING)
        for path in paths:
            for secret in scan_file(path):
                found.append({"type": secret.type, "path": path, "line": secret.line_number})
            scanned += 1
    with open(out, "w", encoding="utf-8") as file:  # noqa: PTH123  (strings only)
        json.dump({"scanned": scanned, "found": found}, file)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
