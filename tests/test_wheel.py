"""The wheel with the core dependencies alone: with nothing else to import, and (long form) in an empty environment."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import pictures

ROOT = Path(__file__).parent.parent


def _run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, cwd=cwd, timeout=500)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    built = _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    assert built.returncode == 0, built.stdout + built.stderr
    return next(folder.glob("lakeloop-*.whl"))


def test_the_wheel_has_code_and_the_files_of_the_app_and_no_pictures(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.partition("/")[0] for n in names if ".dist-info" not in n} == {
        "lake", "embeddings", "training", "search_app"
    }  # fmt: skip
    assert any(n.endswith("grid.js") for n in names)
    assert not [n for n in names if n.lower().endswith((".png", ".jpg", ".jpeg", ".webp", ".gif", ".npy"))]


STEPS = [("init",), ("ingest", "photos"), ("sql", "SELECT count(*) AS n FROM images"), ("status",)]

# Read by every Python started with it: what belongs to no core dependency cannot be imported.
ONLY = """
import importlib.metadata, json, sys
allowed = set(json.loads({allowed!r}))
owners = importlib.metadata.packages_distributions()

class Only:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in owners and not allowed & {{one.lower().replace("_", "-") for one in owners[top]}}:
            raise ModuleNotFoundError(f"No module named {{top!r}}", name=top)

sys.meta_path.insert(0, Only())
"""


def core(wheel: Path) -> set[str]:
    """Names of the distributions that installing the wheel without extras brings."""
    requirements = [
        line.partition(": ")[2]
        for name in zipfile.ZipFile(wheel).namelist()
        if name.endswith(".dist-info/METADATA")
        for line in zipfile.ZipFile(wheel).read(name).decode().splitlines()
        if line.startswith("Requires-Dist")
    ]
    names, waiting = {"lakeloop"}, requirements
    while waiting:
        wanted = Requirement(waiting.pop())
        name = canonicalize_name(wanted.name)
        if name not in names and (wanted.marker is None or wanted.marker.evaluate({"extra": ""})):
            names.add(name)
            waiting += importlib.metadata.requires(name) or []
    return names


def works(wheel: Path, run: Callable[..., subprocess.CompletedProcess[str]], folder: Path) -> None:
    """Help, init, ingest, sql and status; and what is missing is named."""
    pictures.folder(folder / "photos", 3)
    assert run("--help").returncode == 0
    outs = []
    for words in STEPS:
        done = run(*words, "--lake", "l", "--json")
        assert done.returncode == 0, done.stderr
        outs.append(json.loads(done.stdout))
    assert outs[1]["images_new"] == 3
    assert outs[2] == [{"n": 3}]
    assert outs[3]["images"] == 3
    for command, extra in (("embed", "embed"), ("serve", "app")):
        missing = run(command, "--lake", "l")
        assert missing.returncode == 3
        assert f"pip install 'lakeloop[{extra}]'" in missing.stderr


def test_core_alone_runs_help_init_ingest_sql_and_status(wheel: Path, tmp_path: Path) -> None:
    code = tmp_path / "code"
    zipfile.ZipFile(wheel).extractall(code)
    (code / "sitecustomize.py").write_text(ONLY.format(allowed=json.dumps(sorted(core(wheel)))))
    environment = os.environ | {"PYTHONPATH": str(code)}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from search_app.cli.main import entry; entry()", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120)

    where = "import lake, sys; print(lake.__file__); import torch"
    blocked = subprocess.run(
        [sys.executable, "-c", where], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert blocked.stdout.startswith(str(code))
    assert "No module named 'torch'" in blocked.stderr
    works(wheel, run, tmp_path)


@pytest.mark.soak
def test_core_alone_installs_into_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env/bin/python"
    install = _run(python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel, cwd=tmp_path)
    if install.returncode and "No matching distribution" not in install.stderr:
        assert "conflict" not in install.stderr
        pytest.skip(f"the package registry cannot be reached: {install.stderr.splitlines()[-1]}")
    assert install.returncode == 0, install.stderr
    present = json.loads(_run(python, "-m", "pip", "list", "--format", "json", cwd=tmp_path).stdout)
    assert {canonicalize_name(p["name"]) for p in present} - {"pip", "setuptools"} <= core(wheel)
    works(wheel, lambda *words: _run(tmp_path / "env/bin/lakeloop", *words, cwd=tmp_path), tmp_path)
