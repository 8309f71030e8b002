"""The promises of the project as a whole: imports point one way, the light door is light, the docs are true."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from lake.storage import schema, views
from tests import access_table, imports, tree

ROOT = Path(__file__).parent.parent
PACKAGES = imports.PACKAGES
HEAVY = ["torch", "lancedb", "lance", "streamlit", "pyarrow", "duckdb", "polars"]


def _modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_downwards(package: str) -> None:
    above = set(PACKAGES[PACKAGES.index(package) + 1 :]) | {"tests", "benchmarks"}
    for path in _modules(package):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            upward = [n for n in names if n.partition(".")[0] in above]
            assert not upward, f"{path.relative_to(ROOT)} imports {upward}"


def test_no_import_runs_in_a_circle() -> None:
    """Neither between modules nor, in any package, between its modules and rooms."""
    circles = imports.circles(imports.imports())
    assert not circles, "\n" + "\n".join(circles)


def test_a_circle_is_seen_and_told_line_by_line(tmp_path: Path) -> None:
    for path, code in {
        "lake/__init__.py": "",
        "lake/a/__init__.py": "",
        "lake/a/high.py": "from lake.b import low\n",
        "lake/a/deep.py": "if TYPE_CHECKING:\n    import lake.c\n",
        "lake/b/__init__.py": "",
        "lake/b/low.py": "",
        "lake/b/late.py": "def run():\n    from lake.a.deep import name\n",
        "lake/c.py": "import lake.a.deep\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(code)
    assert imports.circles(imports.imports(tmp_path), tmp_path) == [
        """children of lake: lake.a -> lake.b -> lake.a
    lake/a/high.py:1 imports lake.b.low
    lake/b/late.py:2 imports lake.a.deep"""
    ]


def test_no_module_and_no_room_is_too_large() -> None:
    """At most 400 lines a module, and 15 modules side by side in a room."""
    for package in [*PACKAGES, "benchmarks"]:
        paths = _modules(package)
        lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in paths}
        assert not {path: count for path, count in lines.items() if count > 400}
        rooms = Counter(str(path.parent.relative_to(ROOT)) for path in paths if path.name != "__init__.py")
        assert not {room: count for room, count in rooms.items() if count > 15}


@pytest.mark.parametrize(
    "code", ["import lake", "import lake.errors, lake.ids", "import lake.client", "import search_app.cli"]
)
def test_light_modules_import_nothing_heavy(code: str) -> None:
    script = f"import sys; {code}; print(*[m for m in {HEAVY} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.split() == []


def test_modules_have_domain_names_and_say_what_they_do() -> None:
    banned = {"utils", "util", "helpers", "common", "manager", "base", "misc"}
    for package in [*PACKAGES, "benchmarks"]:
        for path in _modules(package):
            assert path.stem not in banned, path
            assert ast.get_docstring(ast.parse(path.read_text())), f"{path.relative_to(ROOT)} has no docstring"


def test_the_access_page_has_the_table_of_scopes() -> None:
    page = access_table.PAGE.read_text()
    section = page.partition(access_table.START)[2].partition(access_table.END)[0]
    assert section == access_table.tables(), "write it with: python -m tests.access_table"


def test_storage_page_lists_every_table_and_column_as_declared() -> None:
    page = (ROOT / "docs/storage.md").read_text()
    for table in schema.TABLES.values():
        section = page.split(f"## {table.name}\n", 1)[1].split("\n## ", 1)[0]
        listed = re.findall(r"^\| `(\w+)` \|", section, re.M)
        assert [n for n in listed if n != "emb_"] == [c.name for c in table.columns], table.name
        for column in table.columns:
            assert column.doc in section, f"{table.name}.{column.name}"
    for name, (meaning, _) in views.VIEWS.items():
        assert f"| `{name}` | {meaning} |" in page


def _commands(page: str) -> list[list[str]]:
    """The arguments of every `lakeloop` command in the page's shell blocks; quotes may span lines."""
    commands = []
    for block in re.findall(r"```(?:sh|console)\n(.*?)```", page, re.S):
        lines = iter(block.replace("\\\n", " ").splitlines())
        for line in lines:
            command = line.removeprefix("$ ")
            if not command.startswith("lakeloop "):
                continue
            while command.count('"') % 2:
                command += "\n" + next(lines)
            commands.append(shlex.split(command, comments=True)[1:])
    return commands


def test_every_command_of_the_readme_parses() -> None:
    """Each `lakeloop ...` line in a code block of README.md and docs/ is one the parser accepts."""
    from search_app.cli.main import _parser

    seen = 0
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for words in _commands(page.read_text()):
            seen += 1
            assert isinstance(_parser().parse_args(words), argparse.Namespace)
    assert seen >= 8


def test_the_architecture_page_prints_the_tree_as_it_is() -> None:
    """Every room and module, with the first line of its docstring: `python -m tests.tree` writes it."""
    page = tree.PAGE.read_text()
    assert page.partition(tree.START)[2].partition(tree.END)[0] == tree.tree()


def test_links_between_docs_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_tests_that_the_docs_name_exist() -> None:
    """As `tests/room/test_module.py::test_name`; each line of docs/threats.md that says what holds names one."""
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text()):
            assert (ROOT / path).exists(), f"{page.name} names {path}"
            assert re.search(rf"^(?:async )?def {name}\(", (ROOT / path).read_text(), re.M), (
                f"{page.name}: {path}::{name}"
            )
    doors = (ROOT / "docs/threats.md").read_text().partition("## Every door")[2].partition("## What is not")[0]
    rows = [row for row in re.findall(r"^\|.*", doors, re.M) if not row.startswith(("| threat", "|---"))]
    assert len(rows) > 20
    assert [row for row in rows if "::test_" not in row] == []


def test_no_page_has_the_marks_of_an_unfinished_merge() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        assert not re.findall(r"^(?:<{7}|>{7}) .*", page.read_text(), re.M), page.name


def test_files_that_the_docs_name_exist() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    for page in pages:
        if page.name == "log.md":  # tells of files as they were
            continue
        for path in re.findall(
            r"`((?:lake|embeddings|training|search_app|tests|benchmarks|examples)/[\w/.]+)`", page.read_text()
        ):
            assert (ROOT / path).exists(), f"{page.name} names {path}"
