"""Becomes another program that cannot outlive its parent; run by path, so it imports nothing of the company.

Takes one JSON argument: `argv`, `parent` (process id), `signal` (sent by the kernel when the parent dies) and
`identity` (`kind` self, setuid or userns, with `uid` and `gid`). The order matters: a change of
user clears the death signal.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

CLONE_NEWUSER = 0x10000000
PR_SET_PDEATHSIG = 1


def become(identity: dict[str, Any]) -> None:
    """Take on the identity that servers run under when the company runs as root."""
    uid, gid = int(identity["uid"]), int(identity["gid"])
    if identity["kind"] == "setuid":
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    elif identity["kind"] == "userns":
        outside = os.geteuid(), os.getegid()
        if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"a user namespace was refused: {os.strerror(number)}")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {outside[0]} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {outside[1]} 1")


def main() -> None:
    """Take on the identity, tie the life to the parent's and become the program."""
    order = json.loads(sys.argv[1])
    try:
        become(order["identity"])
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(order["signal"]))
        if os.getppid() != order["parent"]:
            sys.exit("The parent is gone already.")
        os.execv(order["argv"][0], order["argv"])  # noqa: S606 - becoming the program is the purpose
    except OSError as error:
        sys.exit(f"{order['argv'][0]} could not be started: {error}")


if __name__ == "__main__":
    main()
