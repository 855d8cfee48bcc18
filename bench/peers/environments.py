"""An environment for each peer, in `.venv-peers` and in `node_modules` beside this file, made when it is first needed.

Nothing of the peers is a dependency of the project. What is pinned beside this file is installed with the pip of the
environment that runs this; Node.js comes from there too.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ENVIRONMENTS = ROOT / ".venv-peers"

INSTALL_WITHIN_S = 240


class NotInstalledError(Exception):
    """What a peer needs could not be had."""


def programs(peer: str) -> Path:
    """The folder of the programs of a peer's environment."""
    return ENVIRONMENTS / peer / "bin"


def install(peer: str) -> None:
    """Make the peer's environment, unless it is there as pinned. Raises NotInstalledError."""
    pins = "".join(path.read_text() for path in _pinned_in(peer))
    installed = ENVIRONMENTS / peer / "installed"
    if installed.exists() and installed.read_text() == pins:
        return
    print(f"installing what {peer} needs", file=sys.stderr, flush=True)
    python = programs(peer) / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-qq", "--disable-pip-version-check"]
    _run(sys.executable, "-m", "venv", "--clear", "--without-pip", str(ENVIRONMENTS / peer))
    _run(*pip, "--requirement", str(_requirements(peer)))
    if peer == "pg-workflows":
        _run(str(programs(peer) / "npm"), "ci", "--silent", "--no-audit", "--no-fund", path=programs(peer))
    installed.write_text(pins)


def version_of(peer: str, package: str) -> str:
    """The version of a package that is pinned for a peer."""
    for path in _pinned_in(peer):
        found = re.search(rf'^\s*"?{re.escape(package)}(?:==|": ")([\w.]+)', path.read_text(), re.MULTILINE)
        if found:
            return found[1]
    raise LookupError(f"{package} is not pinned for {peer}")


def _pinned_in(peer: str) -> list[Path]:
    npm = [HERE / "package.json", HERE / "package-lock.json"] if peer == "pg-workflows" else []
    return [_requirements(peer), *npm]


def _requirements(peer: str) -> Path:
    return HERE / f"requirements-{peer}.txt"


def _run(*command: str, path: Path | None = None) -> None:
    environment = {**os.environ, "PATH": f"{path}{os.pathsep}{os.environ['PATH']}"} if path else None
    try:
        subprocess.run(
            command, cwd=HERE, env=environment, capture_output=True, text=True, timeout=INSTALL_WITHIN_S, check=True
        )
    except subprocess.TimeoutExpired as error:
        raise NotInstalledError(f"not installed within {INSTALL_WITHIN_S} s") from error
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        print(said, file=sys.stderr)
        raise NotInstalledError(f"not installed: {Path(command[0]).name} has failed") from error
