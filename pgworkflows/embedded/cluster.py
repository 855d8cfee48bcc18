"""What a keeper does to a place: make it a PostgreSQL data directory, start its server, stop it.

Everything here is called with the gate of the place held, as the user that the server runs as.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from pgworkflows.embedded.place import Place, Postmaster, locked

START_TIMEOUT_SECONDS = 300.0  # recovery after a crash may take long
GENTLY = ((signal.SIGINT, 60.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0))  # with seconds to wait after each
AT_ONCE = GENTLY[1:]
MAX_LOG_BYTES = 10_000_000
POLL_SECONDS = 0.01


class RefusedError(Exception):
    """A sentence for the owner, who raises it as ConfigurationError."""


def check_version(bin_dir: Path, place: Place) -> None:
    """Refuse a data directory of another major version than the binaries'."""
    try:
        made_by = (place.data_dir / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        return
    said = subprocess.run(
        [str(bin_dir / "postgres"), "--version"], stdin=subprocess.DEVNULL, capture_output=True, check=True
    ).stdout.decode()
    number = re.search(r"\d+", said)
    if number is None or number[0] != made_by:
        raise RefusedError(
            f"the data directory {place.name} was made by PostgreSQL {made_by}, and the binaries in {bin_dir} are "
            f"PostgreSQL {number[0] if number else said.strip()}; name binaries of version {made_by} in "
            "PGWORKFLOWS_POSTGRES_BIN, move the data with pg_dump or pg_upgrade, or choose another data_dir"
        )


def initialise(bin_dir: Path, place: Place) -> None:
    """Make the place a PostgreSQL data directory unless it is one.

    initdb works in the control folder, then its files move in, PG_VERSION last: killed at any point, it leaves a
    whole data directory or one that is begun afresh.
    """
    for left in place.control.glob("initdb-*"):
        shutil.rmtree(left)
    if "PG_VERSION" not in place.contents():
        if place.moving_in.exists():
            for name in place.contents():
                _remove(place.data_dir / name)
        if place.contents():
            raise RefusedError(f"{place.name} is not empty and not a PostgreSQL data directory; choose another one")
        made = place.control / f"initdb-{os.getpid()}"
        _run_initdb(bin_dir, place, made)
        place.moving_in.touch()
        for entry in sorted(made.iterdir(), key=lambda entry: entry.name == "PG_VERSION"):
            entry.rename(place.data_dir / entry.name)
        made.rmdir()
        _sync_directory(place.data_dir)
    place.moving_in.unlink(missing_ok=True)


def _run_initdb(bin_dir: Path, place: Place, target: Path) -> None:
    place.password.write_text(secrets.token_hex(16))
    command = [str(bin_dir / "initdb"), "-D", str(target), "-U", "postgres", "--no-locale", "--encoding=UTF8"]
    # Whoever reaches the socket is trusted: its directory is closed to other users. TCP asks for the password.
    command += ["--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={place.password}"]
    if place.temporary.exists():
        command.append("--no-sync")
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, cwd=place.data_dir, pass_fds=place.handles, check=False
    )
    if done.returncode != 0:
        shutil.rmtree(target, ignore_errors=True)
        said = (done.stdout + done.stderr).decode("utf-8", "replace").strip().splitlines()
        raise RefusedError(
            f"initdb could not make a PostgreSQL data directory in {place.name} (exit status {done.returncode}); "
            "it said:\n" + "\n".join(said[-15:])
        )


def start_server(bin_dir: Path, place: Place, settings: Mapping[str, str]) -> Postmaster:
    """Start the server unless it runs; returns once it accepts connections."""
    running = place.open("running")
    try:
        found = _wait_for_running(place, running)
        if found is not None:
            return found
        _clear_traces(place, running)
        os.ftruncate(running, 0)
        if place.log.exists() and place.log.stat().st_size > MAX_LOG_BYTES:
            place.log.replace(place.log.with_suffix(".log.old"))
        command = [str(bin_dir / "postgres"), "-D", str(place.data_dir)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with place.log.open("ab") as log:
            since = log.tell()
            server = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=place.data_dir,
                pass_fds=(running, *place.handles),
            )
        os.pwrite(running, str(server.pid).encode(), 0)
    finally:
        os.close(running)
    return _wait_until_ready(place, server, since)


def _wait_for_running(place: Place, running: int) -> Postmaster | None:
    """The server that is up, once it is ready; None, with `running` locked, when there is none."""
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while not locked(running, fcntl.LOCK_EX):
        found = place.postmaster()
        if found is not None and found.ready:
            return found
        if time.monotonic() > deadline:
            raise RefusedError(
                f"the server of {place.name} neither becomes ready nor ends; its log says:\n{place.log_tail()}"
            )
        time.sleep(POLL_SECONDS)
    return None


def _clear_traces(place: Place, running: int) -> None:
    """Remove what a server of ours left when it crashed. Another's postmaster.pid is PostgreSQL's to judge."""
    left = place.postmaster()
    if left is not None and str(left.pid).encode() == os.pread(running, 32, 0):
        # PostgreSQL would take a recycled process id, or a zombie, for the server; the free lock says it is gone.
        (place.data_dir / "postmaster.pid").unlink()
        for trace in Path(left.socket_dir).glob(".s.PGSQL.*"):
            trace.unlink(missing_ok=True)


def _wait_until_ready(place: Place, server: subprocess.Popen[bytes], since: int) -> Postmaster:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        found = place.postmaster()
        if found is not None and found.ready and found.pid == server.pid:
            return found
        time.sleep(POLL_SECONDS)
    status = server.poll()
    stop_server(place, AT_ONCE)
    fate = "gave up waiting for it" if status is None else f"exit status {status}"
    raise RefusedError(f"PostgreSQL did not start in {place.name} ({fate}); its log says:\n{place.log_tail(since)}")


def stop_server(place: Place, how: Sequence[tuple[signal.Signals, float]] = GENTLY) -> None:
    """Stop the server if it runs, ever less gently, and wait until its last process is gone."""
    running = place.open("running")
    try:
        for signal_, patience_seconds in how:
            if locked(running, fcntl.LOCK_EX):
                return
            _send(place, running, signal_)
            deadline = time.monotonic() + patience_seconds
            while not locked(running, fcntl.LOCK_EX) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
    finally:
        os.close(running)


def _send(place: Place, running: int, signal_: signal.Signals) -> None:
    recorded = os.pread(running, 32, 0)
    said = place.postmaster()
    pid = int(recorded) if recorded else said.pid if said else None
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal_)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
