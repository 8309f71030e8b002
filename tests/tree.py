"""The tree that docs/architecture.md prints: each room and module with the first line of its docstring.

`python -m tests.tree` writes it into the page; a test checks that the page has it.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/architecture.md"
PACKAGES = ("lake", "embeddings", "training", "search_app")
START, END = "<!-- tree -->\n```text\n", "```\n<!-- /tree -->"


def purpose(module: Path) -> str:
    """The first line of the module's docstring, without its full stop."""
    docstring = ast.get_docstring(ast.parse(module.read_text())) or ""
    return docstring.partition("\n")[0].rstrip(".")


def lines(folder: Path, depth: int = 0) -> list[str]:
    """The folder's line, then its modules and rooms in alphabetical order, indented."""
    indent = "  " * depth
    text = [f"{indent + folder.name + '/':<29} {purpose(folder / '__init__.py')}"]
    for path in sorted(folder.iterdir()):
        if path.suffix == ".py" and path.name != "__init__.py":
            text.append(f"{indent + '  ' + path.name:<29} {purpose(path)}")
        elif (path / "__init__.py").exists():
            text += lines(path, depth + 1)
    return text


def tree() -> str:
    """The text between the page's two marks."""
    return "\n".join(line for package in PACKAGES for line in lines(ROOT / package)) + "\n"


if __name__ == "__main__":
    page = PAGE.read_text()
    before, _, rest = page.partition(START)
    PAGE.write_text(before + START + tree() + END + rest.partition(END)[2])
