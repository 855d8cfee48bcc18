"""The pages of the documentation, and the fenced blocks on them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [README, ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]


def page_id(page: Path) -> str:
    """The page as a test's name shows it."""
    return str(page.relative_to(ROOT))


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, the line of its first line, and its text."""

    page: Path
    language: str
    line: int
    text: str

    @property
    def name(self) -> str | None:
        """The file that the block is, if its first line is a comment with a file's name."""
        found = re.match(r"# (\w+\.py)\n", self.text)
        return found[1] if found else None

    @property
    def end(self) -> int:
        return self.line + self.text.count("\n")


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    found = re.finditer(r"^```(\w+)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [Block(page, each[1], page.read_text()[: each.start(2)].count("\n") + 1, each[2]) for each in found]


def python_of(page: Path) -> list[Block]:
    """The blocks that are the page's script."""
    return [block for block in blocks(page) if block.language == "python" and block.name is None]


def named(page: Path, name: str) -> str:
    """The text of the file that a page shows."""
    [text] = [block.text for block in blocks(page) if block.name == name]
    return text


def without_code(page: Path) -> str:
    """The page's words, on the lines where they are."""
    return re.sub(
        r"^```.*?^```$", lambda code: "\n" * code[0].count("\n"), page.read_text(), flags=re.MULTILINE | re.DOTALL
    )


def titled_sql(page: Path) -> dict[str, str]:
    """The SQL blocks of a page by the bold words, or else the heading, above them."""
    text = without_code(page)
    found: dict[str, str] = {}
    for block in blocks(page):
        if block.language == "sql":
            above = "\n".join(text.splitlines()[: block.line - 2])
            *_, title = re.findall(r"^\*\*(.+?)\.?\*\*|^#+ (.+)$", above, re.MULTILINE)
            name = "".join(title)
            while name in found:
                name += " (2)"
            found[name] = block.text
    return found
