"""The command line's contract: the words, the JSON, the exit codes. One lake goes through the whole job."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lake import ids
from lake.errors import BadInput
from lake.open_lake import OpenLake
from lake.storage.vectors import full_id
from search_app.cli.main import main
from tests import pictures
from tests.lake import prediction_rows


@dataclass
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Any


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.delenv("LAKELOOP_LAKE", raising=False)

    def run_(*words: object) -> Ran:
        capsys.readouterr()
        try:
            code = main([str(w) for w in words])
        except SystemExit as end:  # argparse
            code = int(end.code or 0)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        if code:
            assert captured.out == "", "on failure stdout is empty"
        return Ran(code, captured.out, captured.err)

    return run_


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of four pictures, and a log with a prediction for each, and three for one of them."""
    root = tmp_path_factory.mktemp("photos")
    for i in range(8):
        path = root / "images" / ("cat" if i < 4 else "dog") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pictures.encoded(pictures.scene(i)))
    with (root / "log.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["image", "label", "confidence", "timestamp", "model", "camera", "shift"])
        for i in range(8):
            folder = "cat" if i < 4 else "dog"
            out.writerow([f"images/{folder}/{i}.png", "cat", i / 10, f"2026-01-0{i + 1}", "m", i % 2, "night"])
        for day in (11, 12):
            out.writerow(["images/cat/0.png", "dog", 0.9, f"2026-01-{day}", "m", 7, "day"])
    return root


@pytest.fixture(scope="session")
def lake_path(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lake after init, two ingests and embed; each step's JSON is checked here, once."""
    lake = tmp_path_factory.mktemp("commands") / "my.lake"
    init = _apart("init", "--lake", lake, "--column", "camera:int")
    assert init["embedders"] == [{"name": "efficientnet-lite0", "column": "emb_efficientnet_lite0"}]
    first = _json("ingest", photos / "images", "--lake", lake)
    assert set(first) == {
        "images_new", "images_known", "predictions_new", "predictions_known", "labels_new", "labels_known", "rejected",
        "converted", "incomplete", "passed_over", "notes", "seconds",
    }  # fmt: skip
    assert (first["images_new"], first["predictions_new"], first["labels_new"], first["rejected"]) == (8, 8, 8, [])
    second = _json("ingest", photos / "log.csv", "--lake", lake, "--layout", "table")
    assert (second["images_new"], second["images_known"], second["predictions_new"]) == (0, 10, 10)
    done = _json("embed", "--lake", lake)
    counts = {"embedded", "failed", "failed_before", "by_others", "without_bytes", "unreadable"}
    assert set(done) == {"embedder", "images_per_second", "seconds"} | counts
    assert (done["embedder"], done["embedded"], done["failed"]) == ("efficientnet-lite0", 8, 0)
    return lake


def _json(*words: object) -> Any:
    """The output of a command, run in this process."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main([*map(str, words), "--json"]) == 0
    return json.loads(out.getvalue())


def _apart(*words: object) -> Any:
    """The output of a command, run in a process of its own."""
    command = [sys.executable, "-m", "search_app.cli.main", *map(str, words), "--json"]
    out = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout)


def test_running_again_adds_nothing(run: Run, lake_path: Path, photos: Path) -> None:
    again = run("ingest", photos / "log.csv", "--lake", lake_path, "--json").json
    assert (again["images_new"], again["predictions_new"], again["predictions_known"]) == (0, 0, 10)
    embedded = run("embed", "--lake", lake_path, "--json").json
    assert (embedded["embedded"], embedded["failed"]) == (0, 0)


def test_a_search_by_image_returns_that_image_first(run: Run, lake_path: Path, photos: Path) -> None:
    output = run("search", "--lake", lake_path, "--image", photos / "images/dog/5.png", "-k", 3, "--json").json
    first = output["results"][0]
    assert list(first)[:6] == ["prediction_id", "image_id", "similarity", "label", "confidence", "source"]
    assert first["image_id"] == ids.image_id((photos / "images/dog/5.png").read_bytes())
    assert first["similarity"] == pytest.approx(1.0, abs=1e-5)
    assert len(output["results"]) == 3


def test_an_image_with_three_predictions_is_one_result_with_the_newest(run: Run, lake_path: Path, photos: Path) -> None:
    image = ids.image_id((photos / "images/cat/0.png").read_bytes())
    output = run("search", "--lake", lake_path, "--id", image, "-k", 20, "--json", "--column", "timestamp").json
    assert len(output["results"]) == 8
    assert len({r["image_id"] for r in output["results"]}) == 8
    assert (output["results"][0]["label"], output["results"][0]["timestamp"]) == ("dog", "2026-01-12T00:00:00Z")


def test_search_by_prediction_id_and_filter(run: Run, lake_path: Path) -> None:
    answer = run("sql", "SELECT prediction_id FROM predictions WHERE camera = 7 LIMIT 1", "--lake", lake_path, "--json")
    prediction_id = answer.json[0]["prediction_id"]
    output = run(
        "search", "--lake", lake_path, "--id", prediction_id, "--where", "camera = 1 AND label = 'cat'", "--json"
    ).json
    assert len(output["results"]) == 4
    output = run(
        "search", "--lake", lake_path, "--id", prediction_id, "--where", "metadata->>'shift' = 'day'", "--json"
    ).json
    assert len(output["results"]) == 1


def test_sql_gives_a_list_of_objects(run: Run, lake_path: Path) -> None:
    query = "SELECT label, count(*) AS n, max(timestamp) AS last FROM predictions GROUP BY label ORDER BY n DESC"
    assert run("sql", query, "--lake", lake_path, "--json").json == [
        {"label": "cat", "n": 8, "last": "2026-01-08T00:00:00Z"},
        {"label": "dog", "n": 2, "last": "2026-01-12T00:00:00Z"},
    ]
    query = "SELECT 'nan'::DOUBLE AS a, 'inf'::DOUBLE AS b, DATE '2026-01-01' AS c"
    odd = run("sql", query, "--lake", lake_path, "--json")
    assert odd.json == [{"a": None, "b": None, "c": "2026-01-01"}]


def test_sql_formats(run: Run, lake_path: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    query = "SELECT label, confidence FROM predictions ORDER BY timestamp LIMIT 2"
    assert run("sql", query, "--lake", lake_path, "--format", "csv").out.splitlines() == [
        "label,confidence", "cat,0.0", "cat,0.1"
    ]  # fmt: skip
    assert "(2 rows)" in run("sql", query, "--lake", lake_path).out
    out = tmp_path / "rows.parquet"
    done = run("sql", query, "--lake", lake_path, "--format", "parquet", "--out", out)
    assert done.out == ""
    assert pq.read_table(out).num_rows == 2
    assert run("sql", query, "--lake", lake_path, "--format", "parquet").code == 2


def test_cluster_open_a_node_slice_and_export(run: Run, lake_path: Path, tmp_path: Path) -> None:
    tree = run("cluster", "--lake", lake_path, "--method", "kmeans", "-k", 2, "--json").json
    assert [n["path"] for n in tree["nodes"]] == ["0", "1"]
    assert sum(n["size"] for n in tree["nodes"]) == 8
    node = f"{tree['tree']}/0"
    slice_ = run("slice", "create", "odd", "--cluster", node, "--lake", lake_path, "--json").json
    assert (slice_["name"], slice_["version"], slice_["size"]) == ("odd", 1, tree["nodes"][0]["size"])
    assert run("slice", "create", "odd", "--where", "camera = 7", "--lake", lake_path, "--json").json["version"] == 2
    shown = run("slice", "show", "odd@1", "--lake", lake_path, "--json").json
    assert len(shown["image_ids"]) == slice_["size"]
    assert [s["version"] for s in run("slice", "list", "--lake", lake_path, "--json").json] == [2, 1]
    done = run("slice", "export", "odd@1", "--out", tmp_path / "out", "--lake", lake_path, "--json").json
    files = [*(tmp_path / "out").glob("*/*")]
    assert len(files) == done["images"] == slice_["size"]
    assert {p.parent.name for p in files} <= {"cat", "dog"}
    assert (tmp_path / "out" / "lakeloop-export.json").exists()


def test_slice_from_ids_on_standard_input(lake_path: Path, photos: Path) -> None:
    image = ids.image_id((photos / "images/dog/6.png").read_bytes())
    command = [sys.executable, "-m", "search_app.cli.main", "slice", "create", "one", "--ids", "-", "--json"]
    environment = os.environ | {"LAKELOOP_LAKE": str(lake_path)}
    out = subprocess.run(command, input=image + "\n", capture_output=True, text=True, env=environment)
    assert json.loads(out.stdout)["size"] == 1


def test_an_error_of_a_command_with_json_is_json_on_stderr(run: Run, lake_path: Path) -> None:
    for words, code, reason, detail in (
        (["slice", "show", "none", "--lake", lake_path], 2, "invalid", "no slice"),
        (["slice", "shwo"], 2, "usage", "did you mean 'show'?"),
        (["sql", "SELECT * FROM range(9999999999)", "--timeout", "0.2", "--lake", lake_path], 3, "timeout", "0.2 s"),
    ):
        ended = run(*words, "--json")
        problem = json.loads(ended.err)
        assert (ended.code, problem["exit_code"], problem["reason"]) == (code, code, reason)
        assert detail in problem["detail"]


def test_a_missing_file_of_a_table_is_named(run: Run, lake_path: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.lake"
    shutil.copytree(lake_path, broken)
    shutil.rmtree(broken / "columnar", ignore_errors=True)
    for file in (broken / "samples.lance" / "data").iterdir():
        file.unlink()
    for words in (
        ["sql", "SELECT label FROM samples"],
        ["status"],
        ["slice", "create", "x", "--where", "label = 'cat'"],
    ):
        ended = run(*words, "--lake", broken)
        assert ended.code == 3
        assert "of table samples is missing, so the lake cannot be read; run: lakeloop doctor" in ended.err, words


def test_the_beginning_of_an_id_is_enough(run: Run, lake_path: Path) -> None:
    ids_ = [row["image_id"] for row in run("sql", "SELECT image_id FROM images", "--lake", lake_path, "--json").json]
    at = ["--lake", lake_path, "--json"]
    found = run("search", "--id", ids_[0][:8].upper(), "-k", "1", *at).json["results"]
    assert [row["image_id"] for row in found] == [ids_[0]]
    sliced = run("slice", "create", "start", "--like", ids_[1][:6], "--radius", "0", *at).json
    assert run("slice", "show", sliced["id"], *at).json["image_ids"] == [ids_[1]]
    assert "no image_id or prediction_id begins with 'abcdef0123'" in run("search", "--id", "abcdef0123", *at).err
    assert "at least the first 6 digits" in run("search", "--id", ids_[0][:5], *at).err


def test_a_beginning_of_several_ids_names_them(lk: OpenLake) -> None:
    names = ["abcdef" + digit * 58 for digit in "0123456"]
    prediction_rows.add(lk, [{"image_id": name} for name in names])
    with pytest.raises(BadInput, match=f"7 ids begin with 'abcdef': {', '.join(names[:4])}, ...; give more digits"):
        full_id(lk, "abcdef")
    assert full_id(lk, "abcdef3") == names[3]


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff{0}\n{1}",
        "image_id\n{0}\n{1}\n",
        "\ufeffpath;Image_ID\r\na;{0}\r\nb;{1}\r\n",
        '"n","image_id"\n1,"{0}"\n2,"{1}"\n',
    ],
)
def test_a_list_of_ids_may_be_a_csv(run: Run, lake_path: Path, tmp_path: Path, text: str) -> None:
    ids_ = [row["image_id"] for row in run("sql", "SELECT image_id FROM images", "--lake", lake_path, "--json").json]
    (tmp_path / "ids.csv").write_bytes(text.format(*ids_).encode())
    made = run("slice", "create", "listed", "--ids", tmp_path / "ids.csv", "--lake", lake_path, "--json").json
    shown = run("slice", "show", made["id"], "--lake", lake_path, "--json").json
    assert shown["image_ids"] == sorted(ids_[:2])


def test_a_query_makes_a_slice(run: Run, lake_path: Path) -> None:
    query = "SELECT image_id, count(*) AS n FROM predictions GROUP BY 1 HAVING n > 1"
    made = run("slice", "create", "asked", "--sql", query, "--lake", lake_path, "--json").json
    assert (made["size"], made["kind"]) == (1, "ids")
    ended = run("slice", "create", "asked", "--sql", "SELECT label FROM predictions", "--lake", lake_path)
    assert (ended.code, "needs a result with one column image_id; its columns are label" in ended.err) == (2, True)


def test_a_search_by_a_pipe_ends(run: Run, lake_path: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    ended = run("search", "--image", tmp_path / "pipe", "--lake", lake_path)
    assert (ended.code, "is not a regular file" in ended.err) == (2, True)


def test_status(run: Run, lake_path: Path) -> None:
    facts = run("status", "--lake", lake_path, "--json").json
    assert (facts["images"], facts["samples"], facts["predictions"], facts["labels"]) == (8, 18, 10, 8)
    assert facts["embedders"][0]["missing"] == 0
    assert "efficientnet-lite0: 8 images embedded" in run("status", "--lake", lake_path).out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["nonsense"], 2, "no command 'nonsense'"),
        (["serch"], 2, "no command 'serch'; did you mean 'search'?\nTry: lakeloop --help"),
        (
            ["slice", "shwo", "x"],
            2,
            "lakeloop slice: no command 'shwo'; did you mean 'show'?\nTry: lakeloop slice --help",
        ),
        (["status", "--jsn"], 2, "--jsn; did you mean '--json'?\nTry: lakeloop status --help"),
        (["serve", "--port", "99999"], 2, "99999 is no port: choose one from 1 to 65535"),
        (["serve", "--port", "-1"], 2, "-1 is no port"),
        ([], 2, "COMMAND"),
        (["status"], 2, "no lake: give --lake URI"),
        (["status", "--lake", "nowhere.lake"], 2, "no lake at nowhere.lake"),
        (["init", "--lake", "LAKE"], 2, "is a lake already"),
        (["init", "--lake", "new.lake", "--embedder", "resnet19"], 2, "known: efficientnet-lite0, resnet18"),
        (["init", "--lake", "new.lake", "--column", "camera"], 2, "NAME:TYPE"),
        (["init", "--lake", "new.lake", "--column", "camera:colour"], 2, "is not one of string, int"),
        (["init", "--lake", "new.lake", "--column", "label:string"], 2, "is taken"),
        (["ingest", "nowhere", "--lake", "LAKE"], 2, "nowhere does not exist"),
        (["ingest", "empty", "--lake", "LAKE"], 2, "nothing readable"),
        (["search", "--lake", "LAKE"], 2, "one of the arguments"),
        (["search", "--lake", "LAKE", "--id", "12"], 2, "is not an id"),
        (["search", "--lake", "LAKE", "--id", "0" * 64], 2, "no image_id"),
        (["search", "--lake", "LAKE", "--id", "0" * 64, "-k", "0"], 2, "at least 1"),
        (["search", "--lake", "LAKE", "--image", "nowhere.jpg"], 2, "No such file"),
        (["search", "--lake", "LAKE", "--text", "a dog"], 2, "embeds images only"),
        (["search", "--lake", "LAKE", "--id", "0" * 64, "--embedder", "resnet18"], 2, "no embedder 'resnet18'"),
        (["sql", "SELEC 1", "--lake", "LAKE"], 2, "Parser Error"),
        (["sql", "SELECT colour FROM samples", "--lake", "LAKE"], 2, "Candidate bindings"),
        (["sql", "DROP TABLE predictions", "--lake", "LAKE"], 2, "one SELECT"),
        (["sql", "SELECT * FROM read_csv('x.csv')", "--lake", "LAKE"], 2, "read_csv() cannot be used here"),
        (["cluster", "--lake", "LAKE", "--node", "abc/0"], 2, "no node"),
        (["slice", "show", "none", "--lake", "LAKE"], 2, "no slice"),
        (["slice", "create", "../x", "--where", "true", "--lake", "LAKE"], 2, "slice name"),
        (["slice", "create", "x", "--where", "label = 'unicorn'", "--lake", "LAKE"], 2, "would be empty"),
        (
            ["slice", "create", "x", "--where", "label_true = 'cat'", "--lake", "LAKE"],
            2,
            "the true label is true_label",
        ),
        (["serve", "--lake", "LAKE", "--host", "0.0.0.0"], 2, "0.0.0.0"),
    ],
)
def test_bad_input_has_a_message_and_an_exit_code(
    run: Run,
    lake_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    ended = run(*[str(lake_path) if w == "LAKE" else w for w in words])
    assert ended.code == code
    assert message in ended.err


def test_some_rejects_are_no_failure(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    pictures.folder(folder, 2)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 not much of a picture")
    (folder / "phone.heic").write_bytes(b"x")
    assert run("init", "--lake", tmp_path / "l").code == 0
    done = run("ingest", folder, "--lake", tmp_path / "l", "--json")
    assert done.code == 0
    assert done.json["images_new"] == 2
    assert {Path(r["source"]).name for r in done.json["rejected"]} == {"broken.jpg", "phone.heic"}
    assert all(r["reason"] for r in done.json["rejected"])


def test_help_names_every_command(run: Run) -> None:
    out = run("--help").out
    for command in ["init", "ingest", "embed", "search", "sql", "status", "cluster", "slice", "serve", "quickstart"]:
        assert f"    {command} " in out or f"    {command}\n" in out


def test_interrupting_an_ingest_is_safe(run: Run, tmp_path: Path) -> None:
    """Ctrl-C: no traceback, and the same command again finishes the work."""
    count = 600
    folder, lake = tmp_path / "many", tmp_path / "l"
    pictures.folder(folder, count)
    run("init", "--lake", lake)
    command = [sys.executable, "-m", "search_app.cli.main", "ingest", str(folder), "--lake", str(lake)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (0, 130)  # 0: it was done before the signal came
    assert "Traceback" not in err
    done = run("ingest", folder, "--lake", lake, "--json").json
    assert done["images_new"] + done["images_known"] == count
    counts = run("sql", "SELECT (SELECT count(*) FROM images) i, (SELECT count(*) FROM samples) p, "
                 "(SELECT count(*) FROM thumbnails) t", "--lake", lake, "--json").json  # fmt: skip
    assert counts == [{"i": count, "p": count, "t": count}]


def test_a_terminal_obeys_no_text_of_others(capsys: pytest.CaptureFixture[str]) -> None:
    from argparse import Namespace

    from search_app.cli.terminal import output

    output(Namespace(json=False), {}, "model  evil\x1b]0;owned\x07\x1b[2J 3\nnext \u202e line")
    assert capsys.readouterr().out == "model  evil\ufffd]0;owned\ufffd\ufffd[2J 3\nnext \ufffd line\n"


READ_ONLY = """
mount --bind "$1" "$2" && mount -o remount,bind,ro "$2" || exit 77
exec "$3" -c '
import json, sys
from search_app.cli.main import main
print(json.dumps([main(words) for words in json.loads(sys.argv[1])]))
' "$4"
"""


def test_a_lake_on_a_read_only_disk_can_be_searched_exported_and_backed_up(lake_path: Path, tmp_path: Path) -> None:
    """A mount of its own: the tests may run as root, whom permissions do not stop."""
    own, seen = tmp_path / "own.lake", tmp_path / "seen.lake"
    shutil.copytree(lake_path, own)
    seen.mkdir()
    _json("slice", "create", "cats", "--where", "label = 'cat'", "--lake", own)
    image_id = _json("sql", "SELECT image_id FROM images", "--lake", own)[0]["image_id"]
    commands = [
        ["sql", "SELECT 1"],
        ["search", "--id", image_id],
        ["slice", "show", "cats"],
        ["slice", "export", "cats", "--format", "coco", "--out", str(tmp_path / "out")],
        ["backup", str(tmp_path / "saved.tar")],
        ["slice", "create", "x", "--where", "true"],
    ]
    words = json.dumps([[*command, "--lake", str(seen)] for command in commands])
    shell = ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c", READ_ONLY, "-"]
    ended = subprocess.run([*shell, own, seen, sys.executable, words], capture_output=True, text=True, timeout=300)
    if ended.returncode in (1, 77) and "Traceback" not in ended.stderr:
        pytest.skip(f"this machine does not let a test mount: {ended.stderr[-200:]}")
    assert json.loads(ended.stdout.splitlines()[-1]) == [0, 0, 0, 0, 0, 3], ended.stderr
    assert (tmp_path / "out" / "annotations.json").exists()
    assert "the lake can only be read, and this command writes" in ended.stderr
    assert main(["backup", str(tmp_path / "saved.tar"), "--verify"]) == 0
