"""The wheel with the core dependencies alone, in an empty environment."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

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


def test_it_holds_code_and_the_app_s_files_and_no_pictures(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.partition("/")[0] for n in names if ".dist-info" not in n} == {
        "lake", "embeddings", "training", "search_app"
    }  # fmt: skip
    assert any(n.endswith("grid.js") for n in names)
    assert not [n for n in names if n.lower().endswith((".png", ".jpg", ".jpeg", ".webp", ".gif", ".npy"))]


def test_core_alone_runs_help_init_ingest_sql_and_status(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python, lakeloop = tmp_path / "env/bin/python", tmp_path / "env/bin/lakeloop"
    install = _run(python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel, cwd=tmp_path)
    if install.returncode and "No matching distribution" not in install.stderr:
        assert "conflict" not in install.stderr
        pytest.skip(f"the package registry cannot be reached: {install.stderr.splitlines()[-1]}")
    assert install.returncode == 0, install.stderr
    present = json.loads(_run(python, "-m", "pip", "list", "--format", "json", cwd=tmp_path).stdout)
    assert not {p["name"] for p in present} & {"torch", "streamlit", "hdbscan"}
    pictures.folder(tmp_path / "photos", 3)
    assert _run(lakeloop, "--help", cwd=tmp_path).returncode == 0
    steps = [("init",), ("ingest", "photos"), ("sql", "SELECT count(*) AS n FROM images"), ("status",)]
    outs = []
    for words in steps:
        done = _run(lakeloop, *words, "--lake", "l", "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        outs.append(json.loads(done.stdout))
    assert outs[1]["images_new"] == 3
    assert outs[2] == [{"n": 3}]
    assert outs[3]["images"] == 3
    missing = _run(lakeloop, "embed", "--lake", "l", cwd=tmp_path)
    assert missing.returncode == 3
    assert "pip install 'lakeloop[embed]'" in missing.stderr
    missing = _run(lakeloop, "serve", "--lake", "l", cwd=tmp_path)
    assert missing.returncode == 3
    assert "pip install 'lakeloop[app]'" in missing.stderr
