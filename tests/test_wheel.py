"""The built wheel, installed where the source tree is not."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "tests" / "programs" / "first_workflow.py"


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command away from the source tree; what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command} said:\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheel in it. Its dependencies are lent by this environment, whose
    own link to the source tree (a .pth file) is not followed from there."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home)
    python = home / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-deps", wheel, cwd=home)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home).strip())
    lent = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "lent.pth").write_text("".join(f"{path}\n" for path in sorted(lent)))
    return python


def test_the_wheel_holds_all_that_the_package_reads(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    files = [path for path in (ROOT / "pgworkflows").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    wanted = {str(path.relative_to(ROOT)) for path in files}
    wanted |= {f"pgworkflows/{path.relative_to(ROOT)}" for path in (ROOT / "migrations").glob("*.sql")}
    wanted |= {"pgworkflows/py.typed", "pytest_pgworkflows.py"}
    assert wanted <= names, f"missing: {sorted(wanted - names)}"
    others = {name for name in names if not name.startswith(("pgworkflows/", "pgworkflows-"))}
    assert others == {"pytest_pgworkflows.py"}


def test_an_installed_wheel_brings_the_command(installed: Path, empty_database_url: str, tmp_path: Path) -> None:
    said = run(installed.with_name("pgworkflows"), "--url", empty_database_url, "migrate", cwd=tmp_path)
    assert said.startswith("applied 0001_initial\n")


def test_an_installed_wheel_migrates_and_runs_a_workflow(
    installed: Path, empty_database_url: str, tmp_path: Path
) -> None:
    assert run(installed, PROGRAM, empty_database_url, cwd=tmp_path) == "12 100\n"


def test_an_installed_wheel_brings_its_own_server_where_none_is_named(
    installed: Path, make_directory: Callable[[], Path]
) -> None:
    here = make_directory()
    assert run(installed, PROGRAM, cwd=here) == "12 100\n"
    assert (here / ".pgworkflows" / "postgres" / "PG_VERSION").exists()
