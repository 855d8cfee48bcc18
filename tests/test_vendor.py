"""The files of others that lie here are those that their tables name, byte for byte."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = [ROOT / "pgworkflows" / "ui" / "static" / "vendor", ROOT / "tests" / "vendor"]


def listed(folder: Path) -> dict[str, str]:
    """The hashes in a folder's table, by file."""
    lines = (line.split() for line in (folder / "VERSIONS").read_text().splitlines() if not line.startswith("#"))
    return {file: sha256 for file, _version, sha256, _package, _place in lines}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_files_of_others_are_as_their_authors_published_them(folder: Path) -> None:
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "VERSIONS"}
    assert {name: hashlib.sha256(content).hexdigest() for name, content in files.items()} == listed(folder)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_each_of_them_has_its_licence_beside_it(folder: Path) -> None:
    named = {name.split(".")[0] for name in listed(folder)}
    assert named == {name.split(".")[0] for name in listed(folder) if ".LICENSE" in name}


def test_styles_and_scripts_of_others_load_nothing_from_elsewhere() -> None:
    for path in FOLDERS[0].glob("*.css"):
        assert set(re.findall(r"url\(['\"]?(\w+):", path.read_text())) <= {"data"}, path.name
        assert "@import" not in path.read_text()
