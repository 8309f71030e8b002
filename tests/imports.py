"""The graph of imports of the four packages, and the circles in it.

Imports inside functions count, those under `if TYPE_CHECKING` do not. Code outside the packages is not looked at.
"""

from __future__ import annotations

import ast
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("lake", "embeddings", "training", "search_app")  # each may import those before it


@dataclass(frozen=True)
class Import:
    """One import statement: `source` and `target` are dotted names of modules."""

    source: str
    target: str
    path: str
    line: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line} imports {self.target}"


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Dotted name -> file of every module; a package's name stands for its `__init__`."""
    names = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports(root: Path = ROOT) -> list[Import]:
    """Every import of one module by another, in the order of files and lines."""
    names = modules(root)
    edges = []
    for source, path in names.items():
        for line, target in _targets(ast.parse(path.read_text()), names):
            if target != source:
                edges.append(Import(source, target, str(path.relative_to(root)), line))
    return edges


def _targets(tree: ast.AST, names: dict[str, Path]) -> Iterator[tuple[int, str]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield from _targets(other, names)
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name in names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:  # `from a import b` is of the module a.b if there is one
                target = f"{node.module}.{alias.name}"
                target = target if target in names else node.module
                if target in names:
                    yield node.lineno, target
        else:
            yield from _targets(node, names)


def circles(edges: list[Import], root: Path = ROOT) -> list[str]:
    """A text for every shortest circle between modules, and between the direct children of each package.

    Each child of a package, a module or a package, is one node; the imports are named that close the circle.
    """
    by_module: dict[tuple[str, str], Import] = {}
    for edge in edges:
        by_module.setdefault((edge.source, edge.target), edge)
    texts = _texts("modules", by_module)
    packages = {name.rpartition(".")[0] for name in modules(root)}
    for package in sorted(packages):
        depth = package.count(".") + 2 if package else 1
        prefix = f"{package}." if package else ""
        by_child: dict[tuple[str, str], Import] = {}
        for edge in edges:
            if edge.source.startswith(prefix) and edge.target.startswith(prefix):
                ends = [".".join(name.split(".")[:depth]) for name in (edge.source, edge.target)]
                if ends[0] != ends[1]:
                    by_child.setdefault((ends[0], ends[1]), edge)
        texts += _texts(f"children of {package or 'the root'}", by_child)
    return texts


def _texts(where: str, edges: dict[tuple[str, str], Import]) -> list[str]:
    """Circles that share no node with one before: after each is broken, a next run shows what is left."""
    graph: dict[str, list[str]] = defaultdict(list)
    for source, target in edges:
        graph[source].append(target)
    texts, seen = [], set[str]()
    for start in sorted(graph):
        circle = [] if start in seen else _shortest(start, graph)
        if circle and not seen & set(circle):
            seen |= set(circle)
            steps = [str(edges[pair]) for pair in zip(circle, circle[1:] + circle[:1], strict=True)]
            texts.append(f"{where}: {' -> '.join([*circle, circle[0]])}\n    " + "\n    ".join(steps))
    return texts


def _shortest(start: str, graph: dict[str, list[str]]) -> list[str]:
    """The nodes of the shortest circle through `start`, from it on; empty if there is none."""
    came_from: dict[str, str] = {}
    waiting = deque([start])
    while waiting:
        node = waiting.popleft()
        for target in graph.get(node, []):
            if target == start:
                path = [node]
                while path[-1] != start:
                    path.append(came_from[path[-1]])
                return path[::-1]
            if target not in came_from:
                came_from[target] = node
                waiting.append(target)
    return []
