"""The words that docs/concepts.md tells you not to write stand in no page, message or doc."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("lake", "embeddings", "training", "search_app")
GLOSSARY = ROOT / "docs/concepts.md"
# Tells of what was tried, in the words of that day.
HISTORY = {"log.md"}
SQL = re.compile(r"\b(SELECT|FROM|WHERE|JOIN|GROUP BY|ORDER BY)\b")


def avoided() -> list[str]:
    """The phrases of the glossary's last column, and of the line below the table."""
    page = GLOSSARY.read_text()
    cells = [line.split("|")[-2].strip() for line in page.splitlines() if line.count("|") >= 4]
    below = page.partition("Also avoid:")[2].partition("\n\n")[0]
    phrases = [phrase.strip(' ".\n') for text in [*cells[2:], below] for phrase in text.split(",")]
    return [phrase for phrase in phrases if phrase]


def prose(page: Path) -> str:
    """The text of a Markdown page without code."""
    return re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)


def messages(module: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of the module's strings of several words that are neither docstrings nor SQL."""
    tree = ast.parse(module.read_text())
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or id(node) in docstrings:
            continue
        if " " in node.value.strip() and not SQL.search(node.value):
            yield node.lineno, node.value


@functools.cache
def texts() -> list[tuple[str, str]]:
    """(place, text) of everything that a user reads."""
    return list(_texts())


def _texts() -> Iterator[tuple[str, str]]:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]:
        if page.name not in HISTORY and page != GLOSSARY:
            yield str(page.relative_to(ROOT)), prose(page)
    for package in PACKAGES:
        for module in sorted((ROOT / package).rglob("*.py")):
            for line, text in messages(module):
                yield f"{module.relative_to(ROOT)}:{line}", text
    for suffix in ("js", "html"):
        for file in sorted((ROOT / "search_app").rglob(f"*.{suffix}")):
            yield str(file.relative_to(ROOT)), file.read_text()


def test_the_glossary_lists_words_to_avoid() -> None:
    assert len(avoided()) >= 15


@pytest.mark.parametrize("phrase", avoided())
def test_no_text_uses_a_word_to_avoid(phrase: str) -> None:
    pattern = re.compile(rf"(?<![\w-]){re.escape(phrase)}(?![\w-])", re.IGNORECASE)
    places = [
        f"{source}: ...{text[max(0, m.start() - 40) : m.end() + 40]!r}"
        for source, text in texts()
        for m in pattern.finditer(text)
    ]
    assert not places, "\n".join(places)
