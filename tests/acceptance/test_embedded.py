"""The embedded stack, with real servers that are killed, crowded out, moved and given hostile state directories."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import redis

from backend.engine.embedded import Children, Stack, attach, broker, database, place, state
from backend.engine.embedded.processes import heads, running_in
from backend.errors import Unavailable
from tests.conftest import embedded_settings
from tests.patience import PATIENCE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

COMPANY = """
import json, sys
from pathlib import Path
from backend.engine.embedded import Stack
from backend.settings import Settings
with Stack.start(Settings(home=Path(sys.argv[1]), database_url=None, redis_url=None)) as stack:
    pids = [stack.postgres.child.process.pid, stack.broker.child.process.pid]
    print(json.dumps([stack.database_url, stack.redis_url, *pids]), flush=True)
    sys.stdin.read()
"""


@contextmanager
def company(home: Path) -> Iterator[tuple[subprocess.Popen[str], list[Any]]]:
    """A company in a process of its own, with its addresses and the process ids of its servers."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMPANY, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def eventually(condition: Callable[[], bool]) -> bool:
    until = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


async def query(url: str, statement: str) -> Any:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "company"


async def test_the_servers_listen_on_loopback_and_want_the_password(home: Path) -> None:
    with Stack.start(embedded_settings(home), durable=False) as stack:
        assert await query(stack.database_url, "SELECT current_setting('listen_addresses')") == "127.0.0.1"
        assert await query(stack.database_url, "SELECT current_setting('unix_socket_directories')") == ""
        assert stack.postgres is not None and stack.broker is not None
        wrong = stack.database_url.replace(stack.postgres.password, "guess")
        with pytest.raises(asyncpg.InvalidPasswordError):
            await query(wrong, "SELECT 1")
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=stack.broker.port).ping()
        client = redis.Redis.from_url(stack.redis_url)
        assert client.ping()
        assert client.config_get("bind") == {"bind": "127.0.0.1"}
        client.close()
        secrets = [path for path in home.rglob("*") if path.is_file() and holds(path, stack.postgres.password)]
        assert {path.name for path in secrets} == {"password", "stack.json"}
        assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}
        assert all(stack.postgres.password not in line for line in command_lines())


def holds(path: Path, secret: str) -> bool:
    return path.stat().st_size < 1_000_000 and secret.encode() in path.read_bytes()


def command_lines() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().decode(errors="replace"))
        except OSError:
            continue
    return found


async def test_data_and_ports_stay_over_a_restart(home: Path) -> None:
    with Stack.start(embedded_settings(home)) as stack:
        before = stack.addresses
        assert await query(stack.database_url, "SELECT current_setting('fsync')") == "on"
        await query(stack.database_url, "CREATE TABLE kept AS SELECT 42 AS answer")
    with Stack.start(embedded_settings(home)) as stack:
        assert stack.addresses == before
        assert await query(stack.database_url, "SELECT answer FROM kept") == 42


async def test_only_what_is_not_named_is_started(home: Path) -> None:
    settings = embedded_settings(home, database_url="postgresql://elsewhere/company")
    with Stack.start(settings, durable=False) as stack:
        assert stack.postgres is None
        assert stack.database_url == "postgresql://elsewhere/company"
        assert redis.Redis.from_url(stack.redis_url).ping()


async def test_a_killed_company_takes_its_servers_along_and_loses_nothing_it_acknowledged(home: Path) -> None:
    for cycle in range(4):
        with company(home) as (process, [url, _, postgres, valkey]):
            await query(url, "CREATE TABLE IF NOT EXISTS kept (cycle int)")
            await query(url, f"INSERT INTO kept VALUES ({cycle})")
            assert await query(url, "SELECT count(*) FROM kept") == cycle + 1
            process.kill()
            process.wait()
            if cycle % 2:  # Half of the time the next company meets servers that are still on their way out.
                assert eventually(lambda: gone(postgres) and gone(valkey))  # noqa: B023 - called at once


async def test_servers_that_are_killed_come_back_where_they_were(home: Path) -> None:
    with Stack.start(embedded_settings(home)) as stack:
        before = stack.addresses
        await query(stack.database_url, "CREATE TABLE kept AS SELECT 42 AS answer")
        for server in (stack.postgres, stack.broker):
            assert server is not None
            os.kill(server.child.process.pid, signal.SIGKILL)
            server.child.process.wait()
        assert await soon(lambda: query(before.database_url, "SELECT answer FROM kept")) == 42
        assert await soon(lambda: asyncio.to_thread(redis.Redis.from_url(before.redis_url).ping))
        assert stack.addresses == before


async def soon(ask: Callable[[], Awaitable[Any]]) -> Any:
    """The first answer that is no refusal."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                return await ask()
            except (OSError, asyncpg.PostgresError, redis.RedisError):
                await asyncio.sleep(0.05)


async def test_a_killed_database_server_is_recovered_from_its_log(home: Path) -> None:
    with company(home) as (process, [url, _, postgres, _valkey]):
        await query(url, "CREATE TABLE kept AS SELECT 1 AS answer")
        os.kill(postgres, signal.SIGKILL)
        process.kill()
    with Stack.start(embedded_settings(home)) as stack:
        assert await query(stack.database_url, "SELECT answer FROM kept") == 1


def test_a_second_company_is_refused_and_named_and_can_attach(home: Path) -> None:
    with company(home) as (process, [database_url, redis_url, *_]):
        with pytest.raises(Unavailable, match=rf"Another company \(process {process.pid}\) holds .*COMPANY_HOME"):
            Stack.start(embedded_settings(home))
        found = attach(embedded_settings(home))
        assert found is not None
        assert (found.database_url, found.redis_url) == (database_url, redis_url)
        process.kill()
        process.wait()
        assert (home / "stack.json").exists()
        assert attach(embedded_settings(home)) is None


def test_nothing_is_attached_to_where_no_company_runs(home: Path) -> None:
    assert attach(embedded_settings(home)) is None
    with Stack.start(embedded_settings(home), durable=False):
        pass
    assert attach(embedded_settings(home)) is None
    assert not (home / "stack.json").exists()


def test_addresses_in_the_settings_need_no_company_here(home: Path) -> None:
    found = attach(embedded_settings(home, database_url="postgresql://a/b", redis_url="redis://c"))
    assert found is not None
    assert (found.database_url, found.redis_url) == ("postgresql://a/b", "redis://c")


def test_of_companies_that_start_at_once_one_runs_and_the_others_say_so(home: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", COMPANY, str(home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    assert eventually(lambda: sum(process.poll() is not None for process in processes) == 3)
    outcomes = [process.communicate() for process in processes]
    assert sorted(process.returncode for process in processes) == [0, 1, 1, 1]
    assert sum("Another company" in error for _, error in outcomes) == 3


def test_a_state_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for impossible in (file / "company", Path("/proc/company")):
        with pytest.raises(Unavailable, match=f"{impossible} cannot be written .*COMPANY_HOME"):
            Stack.start(embedded_settings(impossible))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_state_directory_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(Unavailable, match="cannot be written"):
        Stack.start(embedded_settings(tmp_path))


def test_data_of_another_major_version_is_refused(home: Path) -> None:
    with Stack.start(embedded_settings(home), durable=False):
        pass
    version = home / "embedded" / "postgres" / "PG_VERSION"
    version.write_text("17\n")
    with pytest.raises(Unavailable, match="was written by PostgreSQL 17, but this installation brings PostgreSQL 18"):
        Stack.start(embedded_settings(home))
    version.write_text("18\n")
    with Stack.start(embedded_settings(home), durable=False) as stack:
        assert stack.postgres is not None


async def test_ports_that_were_taken_meanwhile_are_replaced(home: Path) -> None:
    with Stack.start(embedded_settings(home), durable=False) as stack:
        assert stack.postgres is not None and stack.broker is not None
        ports = stack.postgres.port, stack.broker.port
    with (
        socket.create_server(("127.0.0.1", ports[0])),
        socket.create_server(("127.0.0.1", ports[1])),
        Stack.start(embedded_settings(home), durable=False) as stack,
    ):
        assert await query(stack.database_url, "SELECT 1") == 1
        assert redis.Redis.from_url(stack.redis_url).ping()


def test_a_port_that_is_taken_between_the_look_and_the_start_is_replaced(home: Path) -> None:
    spot = place.find(state.prepare(home))
    spot.prepare()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = [database.free_port(), taken.getsockname()[1]]
        server = database.start(spot, home / "logs", durable=False, pick=lambda wanted: ports.pop())
        assert server.port != taken.getsockname()[1]
        assert ports == []
        server.stop()


async def test_a_stale_pid_file_with_the_number_of_a_living_process_is_seen_through(home: Path) -> None:
    with Stack.start(embedded_settings(home), durable=False):
        pass
    data = home / "embedded" / "postgres"
    (data / "postmaster.pid").write_text(f"{os.getpid()}\n{data}\n1\n5432\n\n127.0.0.1\n  1 1\nready\n")
    with Stack.start(embedded_settings(home), durable=False) as stack:
        assert await query(stack.database_url, "SELECT 1") == 1


async def test_data_that_were_half_made_are_made_again(home: Path) -> None:
    half = home / "embedded" / "postgres.new-1"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    with Stack.start(embedded_settings(home), durable=False) as stack:
        assert await query(stack.database_url, "SELECT 1") == 1
        assert not half.exists()


async def test_a_deep_state_directory_with_odd_characters_works(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / "with space and 'quotes' and ünïcode" / ("e" * 60)
    with Stack.start(embedded_settings(deep), durable=False) as stack:
        assert await query(stack.database_url, "SELECT 1") == 1
        assert redis.Redis.from_url(stack.redis_url).ping()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else")
@pytest.mark.parametrize("kind", ["userns", "setuid"])
async def test_root_runs_the_servers_as_somebody_else_even_in_a_closed_directory(tmp_path: Path, kind: str) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with tempfile.TemporaryDirectory() as reachable:
        Path(reachable).chmod(0o755)
        for _ in range(2):  # The second time over data that are there.
            spot = place.find(closed, kinds=(kind,), elsewhere=Path(reachable))
            spot.prepare()
            server = database.start(spot, closed / "logs", durable=False)
            valkey = broker.start(spot, closed / "logs")
            assert await query(server.url, "SELECT 1") == 1
            for child in (server.child, valkey.child):
                inside = Path(f"/proc/{child.process.pid}")
                same_namespace = (inside / "ns/user").readlink() == Path("/proc/self/ns/user").readlink()
                assert same_namespace == (kind == "setuid")
                assert (inside.stat().st_uid != 0) == (kind == "setuid")
            valkey.stop()
            server.stop()


def crash_and_count(logs: Path) -> str:
    return f"open({str(logs / 'count')!r}, 'a').write('x'); raise SystemExit(1)"


def test_a_child_that_crashes_is_started_again_and_the_others_go_on(tmp_path: Path) -> None:
    tmp_path.joinpath("logs").mkdir()
    commands = {
        "crashing": [sys.executable, "-c", crash_and_count(tmp_path)],
        "steady": [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"],
    }
    with Children(commands, os.environ, tmp_path / "logs") as children:
        steady = children.pids()["steady"]
        assert eventually(lambda: (tmp_path / "count").exists() and (tmp_path / "count").stat().st_size >= 3)
        assert children.pids()["steady"] == steady
        assert children.restarts()["steady"] == 0
    assert gone(steady)
    assert (tmp_path / "logs" / "steady.log").read_text() == "up\n"


def test_children_are_asked_before_they_are_ended(tmp_path: Path) -> None:
    program = f"""
import signal, sys, time
def drain(*_):
    open({str(tmp_path / "drained")!r}, "w").write("drained")
    sys.exit(0)
signal.signal(signal.SIGTERM, drain)
print("ready", flush=True)
time.sleep(600)
"""
    with Children({"worker": [sys.executable, "-c", program]}, os.environ, tmp_path):
        assert eventually(lambda: (tmp_path / "worker.log").read_text() == "ready\n")
    assert (tmp_path / "drained").read_text() == "drained"


def test_children_end_when_their_company_is_killed(tmp_path: Path) -> None:
    program = f"""
import os, sys, time
from pathlib import Path
from backend.engine.embedded import Children
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
with Children({{"worker": sleep}}, os.environ, Path({str(tmp_path)!r})) as children:
    print(children.pids()["worker"], flush=True)
    time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    process.kill()
    process.communicate()
    assert eventually(lambda: gone(worker))


async def test_a_server_that_was_left_behind_is_ended_before_the_next_start(home: Path) -> None:
    spot = place.find(state.prepare(home))
    spot.prepare()
    server = database.start(spot, home / "logs", durable=False)
    data = (home / "embedded" / "postgres").resolve()
    connection = await asyncpg.connect(server.url)
    assert len(running_in(data, "postgres")) > 1
    assert heads(running_in(data, "postgres")) == [server.child.process.pid]
    database.end_predecessor(data, grace=0.1)
    assert server.child.process.wait(10) == 0
    assert running_in(data, "postgres") == []
    connection.terminate()
