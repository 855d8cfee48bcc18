"""The embedded server: its life, its death, its sharing, what it refuses."""

from __future__ import annotations

import json
import os
import pwd
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy

from pgworkflows.embedded import EmbeddedPostgres, account, binaries, default, embedded_available
from pgworkflows.embedded.account import Account, account_for
from pgworkflows.embedded.place import CONTROL
from pgworkflows.errors import ConfigurationError

ROOT = Path(__file__).parents[1]
OWNER = ROOT / "tests" / "programs" / "embedded_owner.py"
AS_ROOT = os.geteuid() == 0
as_root = pytest.mark.skipif(not AS_ROOT, reason="only root can become another user")
as_ordinary_user = pytest.mark.skipif(AS_ROOT, reason="root may write everywhere")

MakeDirectory = Callable[[], Path]


class Owner:
    """A process that holds an embedded server, to be killed."""

    def __init__(
        self, where: str | Path, *, cwd: Path | None = None, python: str = sys.executable, user: Account | None = None
    ) -> None:
        paths = [str(ROOT), str(Path(psycopg.__file__).parents[1])]
        self.process = subprocess.Popen(
            [python, str(OWNER), str(where)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=False,
            cwd=cwd,
            start_new_session=True,
            user=user.uid if user else None,
            group=user.gid if user else None,
            extra_groups=[] if user else None,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)} if user else None,
        )

    def hear(self) -> dict[str, Any]:
        """What it tells of its server and its keeper, once they are up."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1].decode()
        answer: dict[str, Any] = json.loads(line)
        return answer

    @property
    def said(self) -> Mapping[str, Any]:
        """What it tells of its server, once that is up."""
        answer: dict[str, Any] = self.hear()["server"]
        return answer

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> str:
        """Let it end by itself; what it wrote to stderr."""
        _, errors = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, errors.decode()
        return errors.decode()


@pytest.fixture
def start_owner(make_directory: MakeDirectory) -> Iterator[Callable[..., Owner]]:
    owners: list[Owner] = []

    def start(*args: Any, **options: Any) -> Owner:
        owners.append(Owner(*args, **options))
        return owners[-1]

    yield start
    for owner in owners:
        owner.kill()
        owner.process.communicate()


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Return as soon as the condition holds; fail when it has not within a minute."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"not within a minute: {what}"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    """In a container whose first process buries nobody, the dead stay on the list."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return False


def has(directory: Path, pattern: str) -> bool:
    return any(directory.glob(pattern))


def ask(url: str, question: str) -> Any:
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(question.encode()).fetchone()
        return row[0] if row else None


def tell(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.encode())


# Life


def test_a_temporary_server_answers_and_leaves_nothing() -> None:
    with EmbeddedPostgres() as server:
        assert ask(server.url, "SELECT current_user || '@' || current_database()") == "postgres@postgres"
        assert ask(server.url, "SHOW server_encoding") == "UTF8"
        assert ask(server.url, "SHOW listen_addresses") == ""
        pid, data_dir = server.pid, server.data_dir
        assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
    assert not data_dir.exists()
    assert not alive(pid)


def test_data_in_a_directory_outlives_the_server(make_directory: MakeDirectory) -> None:
    data_dir = make_directory() / "data"
    with EmbeddedPostgres(data_dir) as server:
        first_url = server.url
        assert ask(server.url, "SHOW fsync") == "on"
        tell(server.url, "CREATE TABLE kept AS SELECT 42 AS answer")
    with EmbeddedPostgres(str(data_dir)) as server:
        assert ask(server.url, "SELECT answer FROM kept") == 42
        assert server.url == first_url


def test_the_first_answer_comes_soon() -> None:
    """In about a second on a quiet machine; this catches what waits for something."""
    began = time.monotonic()
    with EmbeddedPostgres() as server:
        ask(server.url, "SELECT 1")
        assert time.monotonic() - began < 15


def test_start_and_stop_may_be_repeated() -> None:
    server = EmbeddedPostgres()
    server.stop()
    with server:
        pid = server.start().pid
        assert server.start().pid == pid
    server.stop()
    with pytest.raises(ConfigurationError, match="not started"):
        _ = server.url
    with pytest.raises(ConfigurationError, match="not started"):
        server.restart()
    with server:
        assert ask(server.url, "SELECT 1") == 1


def test_a_restart_keeps_url_and_data() -> None:
    with EmbeddedPostgres() as server:
        url, pid = server.url, server.pid
        tell(url, "CREATE TABLE kept AS SELECT 42 AS answer")
        server.restart()
        assert server.url == url
        assert server.pid != pid
        assert ask(url, "SELECT answer FROM kept") == 42


def test_the_url_is_understood_by_sqlalchemy_and_names_other_databases() -> None:
    with EmbeddedPostgres() as server:
        tell(server.url, 'CREATE DATABASE "odd name/ü"')
        url = server.url_for("odd name/ü")
        assert ask(url, "SELECT current_database()") == "odd name/ü"
        engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
        with engine.connect() as connection:
            assert connection.scalar(sqlalchemy.text("SELECT current_database()")) == "odd name/ü"
        engine.dispose()


def test_settings_reach_the_server() -> None:
    with EmbeddedPostgres(settings={"max_connections": "17", "fsync": "on"}) as server:
        assert ask(server.url, "SHOW max_connections") == "17"
        assert ask(server.url, "SHOW fsync") == "on"


def test_a_port_is_served_on_loopback_with_a_password() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with EmbeddedPostgres(port=port) as server:
        assert f"@127.0.0.1:{port}/" in server.url
        assert ask(server.url, "SELECT inet_server_port()") == port
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(f"postgresql://postgres:wrong@127.0.0.1:{port}/postgres")


@pytest.mark.parametrize("name", ["x" * 120, 'it is "odd", 100 % sure; ünlike others'])
def test_a_long_or_odd_path_will_do(make_directory: MakeDirectory, name: str) -> None:
    data_dir = make_directory() / name
    with EmbeddedPostgres(data_dir) as server:
        assert ask(server.url, "SELECT 1") == 1
        sockets = Path(ask(server.url, "SHOW unix_socket_directories").strip('"'))
        assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
    assert not sockets.exists() or sockets.is_relative_to(data_dir)


def test_the_servers_language_does_not_depend_on_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LANG", "LC_ALL", "LC_MESSAGES", "PGDATA", "PGHOST", "PGPORT", "PGUSER", "PGOPTIONS"):
        monkeypatch.setenv(name, "no_SUCH.thing")
    with EmbeddedPostgres() as server:
        for name in [name for name in os.environ if name.startswith("PG")]:
            monkeypatch.delenv(name)
        assert ask(server.url, "SHOW lc_messages") == "C"


# Death


def test_when_the_owner_is_killed_the_server_stops_and_a_temporary_directory_goes(
    start_owner: Callable[..., Owner],
) -> None:
    owner = start_owner("temporary")
    said = owner.said
    assert ask(said["url"], "SELECT 1") == 1
    owner.kill()
    eventually(lambda: not Path(said["data_dir"]).exists(), "the directory is removed")
    assert not alive(said["pid"])


def test_an_owner_killed_at_any_moment_of_the_start_leaves_a_directory_that_can_be_used(
    start_owner: Callable[..., Owner], make_directory: MakeDirectory
) -> None:
    data_dir = make_directory() / "data"
    control = data_dir / CONTROL
    for seen in ("gate", "initdb-*", "server.log"):
        owner = start_owner(data_dir)
        eventually(partial(has, control, seen), f"{seen} appears")
        owner.kill()
    with EmbeddedPostgres(data_dir) as server:
        assert ask(server.url, "SELECT 1") == 1
        assert not list(control.glob("initdb-*"))


def test_an_interrupted_move_into_the_directory_is_begun_afresh(make_directory: MakeDirectory) -> None:
    data_dir = make_directory() / "data"
    with EmbeddedPostgres(data_dir):
        pass
    (data_dir / "PG_VERSION").unlink()
    (data_dir / CONTROL / "password").rename(data_dir / CONTROL / "moving-in")
    with EmbeddedPostgres(data_dir) as server:
        assert ask(server.url, "SELECT 1") == 1


def test_a_signal_from_the_terminal_reaches_the_owner_alone(start_owner: Callable[..., Owner]) -> None:
    owner = start_owner("temporary")
    said = owner.said
    with psycopg.connect(said["url"]) as connection:
        os.killpg(owner.process.pid, signal.SIGSTOP)  # so that the owner cannot end before we have looked
        os.killpg(owner.process.pid, signal.SIGINT)
        assert connection.execute("SELECT 1").fetchone() == (1,)
    os.killpg(owner.process.pid, signal.SIGCONT)
    owner.process.communicate()
    eventually(lambda: not Path(said["data_dir"]).exists(), "the directory is removed")


def test_a_crashed_server_starts_again_with_its_data(make_directory: MakeDirectory) -> None:
    data_dir = make_directory() / "data"
    with EmbeddedPostgres(data_dir) as server:
        tell(server.url, "CREATE TABLE kept AS SELECT 42 AS answer")
        pid = server.pid
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: not alive(pid), "the server is dead")
        assert (data_dir / "postmaster.pid").exists()
        server.restart()
        assert ask(server.url, "SELECT answer FROM kept") == 42


def test_a_process_id_that_was_given_to_another_process_does_not_hinder_the_start(
    make_directory: MakeDirectory,
) -> None:
    data_dir = make_directory() / "data"
    with EmbeddedPostgres(data_dir) as server:
        tell(server.url, "CREATE TABLE kept AS SELECT 42 AS answer")
        left = (data_dir / "postmaster.pid").read_text().split("\n", 1)[1]
        pid = server.pid
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: not alive(pid), "the server is dead")
    owner = (data_dir / "PG_VERSION").stat()
    options: dict[str, Any] = {"user": owner.st_uid, "group": owner.st_gid} if AS_ROOT else {}
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, **options) as stranger:
        (data_dir / "postmaster.pid").write_text(f"{stranger.pid}\n{left}")
        (data_dir / CONTROL / "running").write_text(str(stranger.pid))
        with EmbeddedPostgres(data_dir) as server:
            assert ask(server.url, "SELECT answer FROM kept") == 42
        assert stranger.poll() is None
        stranger.communicate()


def test_a_forked_child_that_ends_leaves_the_server_to_its_parent() -> None:
    program = """
import os, psycopg, sys
from pgworkflows.embedded import EmbeddedPostgres
with EmbeddedPostgres() as server:
    if os.fork() == 0:
        psycopg.connect(server.url).close()
        server.stop()
        sys.exit()
    assert os.wait()[1] == 0
    psycopg.connect(server.url).close()
    print("fine")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "fine\n", done.stderr


def test_a_server_whose_keeper_was_killed_too_is_removed_by_the_next(start_owner: Callable[..., Owner]) -> None:
    owner = start_owner("temporary")
    heard = owner.hear()
    said = heard["server"]
    os.kill(heard["keeper"], signal.SIGKILL)
    owner.kill()
    assert alive(said["pid"])
    with EmbeddedPostgres():
        assert not Path(said["data_dir"]).exists()
        assert not alive(said["pid"])


# Sharing


def test_two_processes_share_a_directory_and_the_last_one_ends_the_server(
    start_owner: Callable[..., Owner], make_directory: MakeDirectory
) -> None:
    data_dir = make_directory() / "data"
    first, second = start_owner(data_dir), start_owner(data_dir)
    said = first.said
    assert second.said == said
    with psycopg.connect(said["url"], autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        first.kill()
        # The server, which the first may have started, holds none of its pipes open.
        assert first.process.communicate(timeout=60) == (b"", b"")
        third = start_owner(data_dir)
        assert third.said == said
        third.end()
        assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)
        second.kill()
        eventually(lambda: not alive(said["pid"]), "the server is stopped")
    with EmbeddedPostgres(data_dir) as server:
        assert ask(server.url, "SELECT answer FROM kept") == 42


def test_many_processes_may_start_at_once(start_owner: Callable[..., Owner], make_directory: MakeDirectory) -> None:
    data_dir = make_directory() / "data"
    owners = [start_owner(data_dir) for _ in range(5)]
    assert len({owner.said["pid"] for owner in owners}) == 1


def test_a_port_that_the_shared_server_does_not_serve_is_refused(make_directory: MakeDirectory) -> None:
    data_dir = make_directory() / "data"
    with (
        EmbeddedPostgres(data_dir) as server,
        pytest.raises(ConfigurationError, match="already running and listens on its socket alone, not on port 54399"),
    ):
        EmbeddedPostgres(server.data_dir, port=54399).start()
    assert not (data_dir / "postmaster.pid").exists()


# What an engine without a URL uses


def test_the_default_server_is_announced_once_and_shared(
    start_owner: Callable[..., Owner], make_directory: MakeDirectory
) -> None:
    here = make_directory().resolve()
    first, second = start_owner("default", cwd=here), start_owner("default", cwd=here)
    assert first.said == second.said
    errors = first.end()
    assert errors.count("WARNING:pgworkflows:") == 1
    assert str(here / ".pgworkflows" / "postgres") in errors
    assert "DATABASE_URL" in errors


@as_ordinary_user
def test_where_the_current_directory_is_read_only_the_default_is_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    monkeypatch.chdir(closed)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    assert default.default_directory().parent == tmp_path / "share" / "pgworkflows"


@as_root
def test_where_the_servers_user_cannot_come_the_default_is_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(account, "HANDLES", tmp_path / "no such place")
    assert default.default_directory().parent == Path("/var/lib/pgworkflows")


# Refusals


def test_a_directory_with_something_else_in_it_is_refused_and_left_alone(make_directory: MakeDirectory) -> None:
    data_dir = make_directory()
    (data_dir / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(ConfigurationError, match="not empty"):
        EmbeddedPostgres(data_dir).start()
    assert [entry.name for entry in data_dir.iterdir()] == ["thesis.txt"]


def test_a_file_in_the_directorys_place_is_refused(make_directory: MakeDirectory) -> None:
    path = make_directory() / "file"
    path.touch()
    with pytest.raises(ConfigurationError, match="file"):
        EmbeddedPostgres(path).start()


def test_a_directory_of_another_postgresql_version_is_refused(make_directory: MakeDirectory) -> None:
    data_dir = make_directory() / "data"
    with EmbeddedPostgres(data_dir):
        pass
    (data_dir / "PG_VERSION").write_text("12\n")
    with pytest.raises(ConfigurationError, match=r"was made by PostgreSQL 12.*PGWORKFLOWS_POSTGRES_BIN"):
        EmbeddedPostgres(data_dir).start()


def test_a_setting_that_the_server_does_not_know_is_reported_with_its_log() -> None:
    with pytest.raises(ConfigurationError, match='unrecognized configuration parameter "no_such_setting"'):
        EmbeddedPostgres(settings={"no_such_setting": "1"}).start()


def test_a_failing_initdb_is_reported_with_what_it_said(
    make_directory: MakeDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_directory()
    for name, body in (
        ("postgres", "echo postgres 18"),
        ("initdb", 'test "$1" = --version || { echo No space; exit 3; }'),
    ):
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PGWORKFLOWS_POSTGRES_BIN", str(folder))
    with pytest.raises(ConfigurationError, match=r"exit status 3.*\n.*No space"):
        EmbeddedPostgres().start()


def test_a_folder_without_the_programs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGWORKFLOWS_POSTGRES_BIN", str(tmp_path))
    with pytest.raises(ConfigurationError, match="holds no programs postgres and initdb"):
        embedded_available()


def test_without_the_programs_the_message_says_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGWORKFLOWS_POSTGRES_BIN", raising=False)
    monkeypatch.setattr(binaries, "WHEEL_PACKAGE", "no_such_package")
    monkeypatch.setattr(binaries, "DEBIAN", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not embedded_available()
    with pytest.raises(ConfigurationError, match=r"pip install 'pgworkflows\[embedded\]'"):
        EmbeddedPostgres().start()


def test_arguments_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="port must be 1 to 65535, not 0"):
        EmbeddedPostgres(port=0)
    with pytest.raises(ValueError, match="data_dir is empty"):
        EmbeddedPostgres("")
    with pytest.raises(ValueError, match="sets listen_addresses itself; port= makes"):
        EmbeddedPostgres(settings={"listen_addresses": "*", "work_mem": "8MB"})


@as_ordinary_user
def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with pytest.raises(ConfigurationError, match=f"Permission denied.*{closed}"):
        EmbeddedPostgres(closed / "data").start()
    with pytest.raises(ConfigurationError, match="not writable"):
        EmbeddedPostgres(closed).start()


# Users


@as_root
def test_root_lends_the_server_another_user() -> None:
    with EmbeddedPostgres() as server:
        assert server.data_dir.stat().st_uid != 0
        assert Path(f"/proc/{server.pid}").stat().st_uid != 0


@as_root
def test_root_may_use_a_directory_that_only_root_may_enter(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    for _ in range(2):
        with EmbeddedPostgres(tmp_path / "data") as server:
            assert server.data_dir == tmp_path / "data"
            tell(server.url, "CREATE TABLE IF NOT EXISTS kept AS SELECT 42 AS answer")
            server.restart()
            assert ask(server.url, "SELECT answer FROM kept") == 42


@as_root
def test_where_no_descriptor_can_be_handed_down_the_closed_directory_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setattr(account, "HANDLES", tmp_path / "no such place")
    with pytest.raises(ConfigurationError, match=r"may not enter /.*chmod o\+x"):
        EmbeddedPostgres(tmp_path / "data").start()
    assert not (tmp_path / "data").exists()


@as_root
def test_a_data_directory_of_roots_own_is_refused(make_directory: MakeDirectory) -> None:
    data_dir = make_directory()
    (data_dir / "PG_VERSION").write_text("18\n")
    with pytest.raises(ConfigurationError, match=r"belongs to root.*chown -R"):
        EmbeddedPostgres(data_dir).start()


@as_root
def test_a_directorys_owner_runs_its_server_for_root(make_directory: MakeDirectory) -> None:
    data_dir = make_directory()
    daemon = pwd.getpwnam("daemon")
    os.chown(data_dir, daemon.pw_uid, daemon.pw_gid)
    with EmbeddedPostgres(data_dir) as server:
        assert Path(f"/proc/{server.pid}").stat().st_uid == daemon.pw_uid
        assert ask(server.url, "SELECT 1") == 1


@as_root
def test_programs_that_the_servers_user_cannot_run_are_copied_once(
    tmp_path: Path, make_directory: MakeDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGWORKFLOWS_POSTGRES_BIN", raising=False)
    found = binaries.find_binaries()
    if found is None or found.package is None:
        pytest.skip("the embedded extra is not installed")
    site = tmp_path / "site-packages"
    site.mkdir()
    for package in (found.package, found.package.with_name(f"{found.package.name}.libs")):
        if package.exists():
            subprocess.run(["cp", "-r", str(package), str(site)], check=True)
    tmp_path.chmod(0o700)
    closed = binaries.Binaries(site / found.package.name / "pginstall" / "bin", site / found.package.name)
    squatted, folder = make_directory(), make_directory()
    squatted.chmod(0o777)
    monkeypatch.setattr(binaries, "COPIES", (squatted, folder))
    server_user = account_for(None)
    assert server_user is not None
    copied = binaries.runnable_by(server_user, closed)
    assert copied.is_relative_to(folder)
    made_at = copied.stat().st_ctime_ns
    assert binaries.runnable_by(server_user, closed) == copied
    assert copied.stat().st_ctime_ns == made_at
    assert [entry.name for entry in folder.iterdir()] == [copied.relative_to(folder).parts[0]]


def test_programs_that_cannot_be_run_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "postgres").touch(mode=0o755)
    nobody = Account(os.geteuid(), os.getegid(), "someone")
    with pytest.raises(ConfigurationError, match=r"user someone.*cannot run the programs in"):
        binaries.runnable_by(nobody, binaries.Binaries(tmp_path))


@as_root
def test_an_ordinary_user_runs_a_server(start_owner: Callable[..., Owner], make_directory: MakeDirectory) -> None:
    nobody = Account(65534, 65534, "nobody")
    python = next(
        (p for p in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}") if nobody.succeeds(p, "--version")),
        None,
    )
    if python is None or not all(nobody.may_enter(path) for path in (ROOT, Path(psycopg.__file__).parents[1])):
        pytest.skip("another user cannot reach this Python or this directory")
    home = make_directory()
    os.chown(home, nobody.uid, nobody.gid)
    owner = start_owner(home / "data", cwd=home, python=python, user=nobody)
    said = owner.said
    assert said["uid"] == nobody.uid
    # Root and the directory's owner share its server.
    with EmbeddedPostgres(home / "data") as server:
        assert server.pid == said["pid"]
        owner.kill()
        assert ask(server.url, "SELECT 1") == 1
    assert not alive(said["pid"])
