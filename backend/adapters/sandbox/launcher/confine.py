"""The ways into confinement, each run in a forked child that ends in `exec`: bubblewrap, namespaces, Landlock, none."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import os
import resource
import socket
import stat
import struct
from typing import Any, NoReturn

from backend.adapters.sandbox.launcher import kernel

Spec = dict[str, Any]
_STAGE = "/tmp"  # noqa: S108  (a fresh tmpfs over it, in a mount namespace of our own)
_SHARED = "/dev/shm"  # noqa: S108  (a tmpfs of the sandbox's own)
_MB = 1024 * 1024


def limits(spec: Spec) -> None:
    """Set the limits that hold for each process; the number of processes is set apart (see `process_limit`)."""
    memory, files = spec["memory_mb"] * _MB, spec["disk_mb"] * _MB
    for what, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_DATA, memory),  # what is really writable; runtimes reserve far more address space
        (resource.RLIMIT_AS, 4 * memory + 64 * 1024 * _MB),
        (resource.RLIMIT_FSIZE, files),
        (resource.RLIMIT_NOFILE, 1024),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        _lower(what, value)
    cpu = spec["cpu_seconds"]
    _lower(resource.RLIMIT_CPU, cpu, cpu + 2)


def _lower(what: int, soft: int, hard: int | None = None) -> None:
    most = resource.getrlimit(what)[1]
    wanted = soft if hard is None else hard
    if most != resource.RLIM_INFINITY:
        wanted = min(wanted, most)
    resource.setrlimit(what, (min(soft, wanted), wanted))


def process_limit(pid: int, most: int) -> None:
    """Limit how many processes and threads the user of process `pid` (0: this one) may have in its user namespace."""
    hard = resource.prlimit(pid, resource.RLIMIT_NPROC)[1]
    value = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.prlimit(pid, resource.RLIMIT_NPROC, (value, value))


def become_nobody(spec: Spec) -> None:
    """Give up root for the unprivileged user that sandboxed commands run as; nothing for ordinary users."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(spec["gid"], spec["gid"], spec["gid"])
        os.setresuid(spec["uid"], spec["uid"], spec["uid"])


def start(spec: Spec) -> NoReturn:
    """Execute the command in the spec without leaving a way back to root or to other system calls."""
    kernel.no_new_privileges()
    if spec["level"] != "unsafe":
        kernel.load_seccomp(base64.b64decode(spec["seccomp"]))
    os.chdir(spec["cwd"])
    os.execve(spec["argv"][0], spec["argv"], spec["env"])  # noqa: S606  (argv, no shell)


# --- bubblewrap ------------------------------------------------------------------------------------------------------


def bubblewrap(spec: Spec, info: int, block: int) -> NoReturn:
    """Become bubblewrap; it tells its child's pid on `info` and waits for a byte on `block`."""
    limits(spec)
    home, program, mounts = spec["bwrap_home"], spec["bwrap"], spec["mounts"]
    if os.geteuid() == 0:
        home, mounts = _staged(home, mounts)
    become_nobody(spec)
    code = os.memfd_create("filter", 0)
    os.write(code, base64.b64decode(spec["seccomp"]))
    os.lseek(code, 0, os.SEEK_SET)
    for inherited in (info, block, code):
        os.set_inheritable(inherited, True)
    argv = ["bwrap", "--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    argv += [] if spec["network"] else ["--unshare-net"]
    argv += ["--disable-userns", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--hostname", "sandbox"]
    argv += ["--uid", "1000", "--gid", "1000", "--clearenv"]
    for key, value in spec["env"].items():
        argv += ["--setenv", key, value]
    for operation in mounts:
        argv += _bubblewrap_words(operation)
    argv += ["--info-fd", str(info), "--block-fd", str(block), "--seccomp", str(code), "--chdir", spec["cwd"]]
    os.execve(f"{home}/{program}", [*argv, "--", *spec["argv"]], {})  # noqa: S606  (argv, no shell)


def _bubblewrap_words(operation: list[Any]) -> list[str]:
    kind, *rest = operation
    if kind == "tmpfs":
        return ["--size", str(rest[1] * _MB), "--perms", "0755" if rest[0] == "/" else "1777", "--tmpfs", rest[0]]
    if kind == "dev":
        return ["--dev", "/dev", "--size", str(64 * _MB), "--perms", "1777", "--tmpfs", _SHARED, "--remount-ro", "/dev"]
    words = {"ro": "--ro-bind", "rw": "--bind", "link": "--symlink", "proc": "--proc", "closed": "--remount-ro"}
    return [words[kind], *rest]


def _staged(home: str, mounts: list[list[Any]]) -> tuple[str, list[list[Any]]]:
    """Bind every source where an unprivileged user can reach it, in a mount namespace of our own.

    The interpreter may live below a home that only root can enter; the sandbox's user must still be able to bind it.
    """
    kernel.unshare(kernel.NEWNS)
    kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    sources = [home, *(operation[1] for operation in mounts if operation[0] in {"ro", "rw"})]
    opened = [os.open(source, os.O_PATH | os.O_CLOEXEC) for source in sources]
    kernel.mount("tmpfs", _STAGE, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=755,size=1m")
    places = [_bind_descriptor(number, handle) for number, handle in enumerate(opened)]
    fresh = iter(places[1:])
    return places[0], [
        [operation[0], next(fresh), operation[2]] if operation[0] in {"ro", "rw"} else operation for operation in mounts
    ]


def _bind_descriptor(number: int, handle: int) -> str:
    place = f"{_STAGE}/{number}"
    source = f"/proc/self/fd/{handle}"
    _point(place, is_directory=os.path.isdir(source))  # noqa: PTH112  (strings only)
    kernel.mount(source, place, None, kernel.MS_BIND | kernel.MS_REC)
    os.close(handle)
    return place


def _point(place: str, *, is_directory: bool) -> None:
    """Make what a mount needs to stand on."""
    os.makedirs(place if is_directory else os.path.dirname(place), exist_ok=True)  # noqa: PTH103, PTH120  (strings)
    if not is_directory:
        os.close(os.open(place, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))


# --- namespaces of our own -------------------------------------------------------------------------------------------


def namespaces(spec: Spec) -> NoReturn:
    """Build namespaces, become their first process, run the command as the second; end as the command ends."""
    kernel.die_with_parent()
    flags = kernel.NEWNS | kernel.NEWPID | kernel.NEWIPC | kernel.NEWUTS | (0 if spec["network"] else kernel.NEWNET)
    uid, gid = os.getuid(), os.getgid()
    root = uid == 0
    kernel.unshare(flags if root else flags | kernel.NEWUSER)
    if not root:
        for path, text in (("setgroups", "deny"), ("uid_map", f"1000 {uid} 1"), ("gid_map", f"1000 {gid} 1")):
            with open(f"/proc/self/{path}", "w") as file:  # noqa: PTH123  (strings only)
                file.write(text)
    socket.sethostname("sandbox")
    if not spec["network"]:
        _loopback_up()
    first = os.fork()
    if first:
        os._exit(_wait_for(first))
    kernel.die_with_parent()
    _build_root(spec["mounts"])
    second = os.fork()
    if second:
        os._exit(_wait_for(second))
    limits(spec)
    process_limit(0, spec["processes"])
    become_nobody(spec)
    kernel.drop_capabilities()
    kernel.no_new_privileges()
    os.setsid()
    if kernel.landlock_abi():
        kernel.landlock(["/"], [*spec["writable"], "/tmp", "/dev"], network=True, scoped=False)  # noqa: S108  (inside)
    start(spec)


def _wait_for(child: int) -> int:
    """Reap everything until `child` ends; return its end as a shell would."""
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        fcntl.ioctl(handle, 0x8914, struct.pack("16sH14s", b"lo", 0x1 | 0x40, b""))


def _build_root(mounts: list[list[Any]]) -> None:
    """Mount the plan on a fresh tmpfs and make it the root."""
    kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    sources = {
        operation[1]: os.open(operation[1], os.O_PATH | os.O_CLOEXEC)
        for operation in mounts
        if operation[0] in {"ro", "rw"}
    }
    devices = {name: os.open(f"/dev/{name}", os.O_PATH | os.O_CLOEXEC) for name in _DEVICES}
    kernel.mount("tmpfs", _STAGE, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=755,size=1m")
    for kind, *rest in mounts:
        place = _STAGE + rest[-1] if kind in {"ro", "rw", "link"} else _STAGE + rest[0]
        if kind in {"ro", "rw"}:
            _bind(sources[rest[0]], place, writable=kind == "rw")
        elif kind == "link":
            os.symlink(rest[0], place)  # noqa: PTH211  (strings only)
        elif kind == "tmpfs" and rest[0] != "/":
            _tmpfs(place, rest[1])
        elif kind == "proc":
            _point(place, is_directory=True)
            kernel.mount("proc", place, "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
        elif kind == "dev":
            _devices(place, devices)
    os.chdir(_STAGE)
    kernel.mount(None, ".", None, kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | kernel.MS_NOSUID | 4)
    kernel.pivot_root(".", ".")
    kernel.unmount(".")
    os.chdir("/")


_DEVICES = ("null", "zero", "full", "random", "urandom")


def _bind(handle: int, place: str, *, writable: bool) -> None:
    source = f"/proc/self/fd/{handle}"
    _point(place, is_directory=os.path.isdir(source))  # noqa: PTH112  (strings only)
    kernel.mount(source, place, None, kernel.MS_BIND | kernel.MS_REC)
    os.close(handle)
    kept = os.statvfs(place).f_flag & 0x40E  # flags that a user namespace may not take away: nosuid, nodev, noexec, …
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | (0 if writable else kernel.MS_RDONLY)
    kernel.mount(None, place, None, kernel.MS_REMOUNT | kernel.MS_BIND | flags | (kept & 0xE) | (kept & 0x400))


def _tmpfs(place: str, size_mb: int) -> None:
    _point(place, is_directory=True)
    kernel.mount("tmpfs", place, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, f"mode=1777,size={size_mb}m")


def _devices(place: str, devices: dict[str, int]) -> None:
    for name, handle in devices.items():
        _point(f"{place}/{name}", is_directory=False)
        kernel.mount(f"/proc/self/fd/{handle}", f"{place}/{name}", None, kernel.MS_BIND)
        os.close(handle)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"/proc/self/fd/{number}", f"{place}/{name}")  # noqa: PTH211  (strings only)
    os.symlink("/proc/self/fd", f"{place}/fd")  # noqa: PTH211  (strings only)
    _tmpfs(f"{place}/shm", 64)


# --- without namespaces ----------------------------------------------------------------------------------------------


def landlock(spec: Spec) -> NoReturn:
    """Run the command under Landlock and seccomp alone; root first opens the ways that its user could not go."""
    limits(spec)
    if os.geteuid() == 0:
        _open_ways(spec)
    become_nobody(spec)
    process_limit(0, spec["processes"] + _tasks_of(os.getuid()))
    with contextlib.suppress(OSError):  # refused in some user namespaces, where there is nothing to drop either
        kernel.drop_capabilities()
    kernel.no_new_privileges()
    os.setsid()
    kernel.landlock(spec["readable"], spec["writable"], network=False, scoped=True)
    start(spec)


def _open_ways(spec: Spec) -> None:
    """Show what the command needs and nothing else of directories that only root can enter, in a mount namespace.

    A home that is closed to others becomes an empty directory with the same paths bound into it, opened before. Where
    root may make no mount namespace all stays as it is, and the self-test finds out whether that is enough.
    """
    wanted = dict.fromkeys((*spec["readable"], *spec["writable"]))
    closed = {above for path in wanted for above in _closed_above(os.path.realpath(path))}
    hidden = {path for path in wanted if _is_below(os.path.realpath(path), closed)}
    if not hidden:
        return
    try:
        kernel.unshare(kernel.NEWNS)
        kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    except PermissionError:
        return
    opened = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in sorted(hidden, key=len) if os.path.exists(path)}  # noqa: PTH110  (strings only)
    for place in closed:
        if not _is_below(place, closed):
            kernel.mount("tmpfs", place, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=755,size=1m")
    before, shown = os.umask(0o022), set[str]()
    for path, handle in opened.items():
        writable = path in spec["writable"]
        if writable or not _is_below(path, shown):
            _bind(handle, path, writable=writable)
            shown.add(path)
    os.umask(before)


def _closed_above(path: str) -> list[str]:
    """Return the directories above a path that only their owner and group may enter."""
    above: list[str] = []
    while path != (path := os.path.dirname(path)):  # noqa: PTH120  (strings only)
        with contextlib.suppress(OSError):
            if not os.stat(path).st_mode & stat.S_IXOTH:  # noqa: PTH116  (strings only)
                above.append(path)
    return above


def _is_below(path: str, places: set[str]) -> bool:
    return any(path.startswith(f"{place}/") for place in places)


def unsafe(spec: Spec) -> NoReturn:
    """Run the command with limits and nothing else, as the configuration wrote out."""
    limits(spec)
    os.setsid()
    start(spec)


def _tasks_of(uid: int) -> int:
    """Count the threads a user has already: without a user namespace they count against its limit."""
    count = 0
    for name in os.listdir("/proc"):  # noqa: PTH208  (strings only)
        with contextlib.suppress(OSError):
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == uid:  # noqa: PTH116  (strings only)
                count += len(os.listdir(f"/proc/{name}/task"))  # noqa: PTH208  (strings only)
    return count
