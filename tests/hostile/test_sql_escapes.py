"""User SQL stays inside the sandbox: it reaches no file, network, setting or path, and writes nothing."""

from __future__ import annotations

import random
import re
import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from lake import open_lake
from lake.errors import BadInput, LakeloopError, QueryStopped
from lake.open_lake import OpenLake
from lake.sql import columnar
from lake.sql.sandbox import functions
from lake.sql.sandbox.pool import Pool
from tests.conftest import Say
from tests.crash.service import ROOT
from tests.hostile import sql_attempts
from tests.lake import prediction_rows

SECRET = "the-canary-sings-4711"


class Room:
    """A lake, the pool over it, a file that must not be read and a port that must hear nothing."""

    def __init__(self, lake: OpenLake, folder: Path) -> None:
        self.lake = lake
        self.pool = Pool(lake, slots=1, memory_bytes=1 << 30)
        self.folder = folder / "canary"
        self.folder.mkdir()
        for name in ("secret.csv", "secret.json", "secret.parquet"):
            (self.folder / name).write_text(f"name\n{SECRET}\n")
        self.file = self.folder / "secret.csv"
        self.heard = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._listen, daemon=True).start()
        columnar.pin(lake)  # all there is to be copied
        self.pool.run("SELECT count(*) FROM samples, labels, keys, audit")
        self.before = self.files()
        # No output may contain one of these, unless the query did.
        places = {
            str(folder),
            lake.uri,
            str(columnar.folder(lake)),
            str(ROOT),
            sys.prefix,
            str(Path.home()),
            "/usr/lib",
        }
        self.secrets = [SECRET, *places, *self.settings()]

    def _listen(self) -> None:
        while True:
            try:
                self._listener.accept()[0].close()
            except OSError:
                return
            self.heard += 1

    def settings(self) -> list[str]:
        """Names of settings, too long to occur by chance."""
        with duckdb.connect() as connection:
            rows = connection.execute("SELECT name FROM duckdb_settings() WHERE length(name) > 16").fetchall()
        return [name for (name,) in rows]

    def files(self) -> dict[str, tuple[int, int]]:
        """Everything beside the lake and in it, with sizes and times."""
        files = [p for p in self.folder.parent.rglob("*") if p.is_file()]
        return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in files}

    def text(self, attempt: str) -> str:
        new = self.folder / "new"
        return attempt.format(file=self.file, folder=self.folder, new=new, port=self.port)

    def ask(self, text: str) -> tuple[bool, str]:
        """Whether it returned rows, and its whole output."""
        try:
            result = self.pool.run(text, timeout=10, max_rows=100)
        except LakeloopError as error:
            return False, str(error)
        return True, repr(result.columns) + repr(result.table.to_pylist())

    def leaked(self, text: str, output: str) -> str | None:
        """The secret that the output contains, or None."""
        return next((secret for secret in self.secrets if secret in output and secret not in text), None)

    def check(self) -> None:
        now = self.files()
        assert sorted(now.items() ^ self.before.items()) == []
        assert self.file.read_text() == f"name\n{SECRET}\n"
        assert self.heard == 0

    def close(self) -> None:
        self.pool.close()
        self._listener.close()


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    folder = tmp_path_factory.mktemp("room")
    lake = open_lake.create(str(folder / "asked"))
    rows = [{"label": "abc"[i % 3], "confidence": i / 40, "latency_ms": float(i)} for i in range(40)]
    prediction_rows.add(
        lake, [row | {"scores": [{"label": "a", "score": 0.5}], "metadata": '{"camera": 7}'} for row in rows]
    )
    opened = Room(lake, folder)
    yield opened
    opened.close()


def test_no_attempt_escapes(room: Room, say: Say) -> None:
    attempts = sql_attempts.REFUSED
    assert len(attempts) == len(set(attempts)) >= 150
    for attempt in attempts:
        text = room.text(attempt)
        answered, output = room.ask(text)
        assert not answered, f"{text} -> {output[:300]}"
        assert room.leaked(text, output) is None, f"{text} -> {output[:500]}"
    for text in sql_attempts.HARMLESS:
        answered, output = room.ask(text)
        assert answered, f"{text} -> {output}"
        assert room.leaked(text, output) is None, f"{text} -> {output[:500]}"
    room.check()
    say(f"SQL: {len(attempts)} attempts to escape, 0 escaped, 0 writes, 0 paths or settings revealed")


def test_secrets_cannot_be_selected(room: Room) -> None:
    with pytest.raises(BadInput, match="secret_sha256"):
        room.pool.run("SELECT secret_sha256 FROM keys")
    assert "secret_sha256" not in room.pool.run("SELECT * FROM keys").table.column_names


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("SELECT * FROM duckdb_settings()", "duckdb_settings"),
        ("SELECT current_setting('x')", "current_setting"),
        ("SELECT 1,\n  getenv('HOME')", "getenv"),
        ("SELECT * FROM query('SELECT 1')", "query"),
    ],
)
def test_a_refusal_names_the_function_and_its_position(room: Room, text: str, name: str) -> None:
    with pytest.raises(BadInput, match=re.escape(f"the function {name}() cannot be used here")) as refused:
        room.pool.run(text)
    _, _, shown = str(refused.value).partition("\n\n")
    line, mark = shown.split("\n")
    assert line.startswith(f"LINE {text.count(chr(10)) + 1}: ")
    assert line[mark.index("^") :].lower().startswith((name, "from " if name == "query" else name))


def test_every_allowed_function_exists_and_the_dangerous_ones_are_not_allowed() -> None:
    with duckdb.connect() as connection:
        rows = connection.execute("SELECT lower(function_name), function_type FROM duckdb_functions()").fetchall()
    known = {name for name, _ in rows}
    assert not functions.ALLOWED - known
    tables = {name for name, kind in rows if kind in ("table", "table_macro", "pragma")}
    computing = {"range", "generate_series", "unnest", "json_each", "json_tree", "histogram", "repeat"}
    assert tables & functions.ALLOWED == computing
    assert computing > functions.TABLE_FUNCTIONS


# Mutation ------------------------------------------------------------------------------------------------

SEEDS = """
SELECT label, count(*) AS n FROM samples GROUP BY label ORDER BY n DESC LIMIT 5
SELECT p.image_id, l.label FROM predictions p LEFT JOIN labels_current l USING (image_id) WHERE p.confidence < 0.5
SELECT label, avg(confidence), quantile_cont(latency_ms, 0.9) FROM predictions GROUP BY ALL HAVING count(*) > 2
SELECT *, row_number() OVER (PARTITION BY label ORDER BY confidence DESC) AS r FROM predictions QUALIFY r < 3
SELECT s.label, max(s.score) FROM (SELECT unnest(scores) AS s FROM predictions) GROUP BY 1
SELECT json_extract_string(metadata, '$.camera') AS camera, count(*) FROM predictions GROUP BY camera
SELECT list_transform(scores, x -> x.score * 2) AS doubled FROM predictions WHERE len(scores) > 0
WITH low AS (SELECT * FROM predictions WHERE confidence < 0.3) SELECT label, count(*) FROM low GROUP BY label
WITH RECURSIVE t AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM t WHERE i < 9) SELECT sum(i) FROM t
SELECT CASE WHEN confidence BETWEEN 0.1 AND 0.5 THEN 'low' ELSE 'high' END AS band, count(*) FROM predictions GROUP BY 1
SELECT label FROM predictions WHERE image_id IN (SELECT image_id FROM labels) UNION SELECT label FROM labels
SELECT date_trunc('day', ingested_at) AS day, count(*) FILTER (WHERE label = 'a') FROM predictions GROUP BY day
SELECT * EXCLUDE (boxes) REPLACE (upper(label) AS label) FROM samples WHERE label LIKE 'a%' LIMIT 3
SELECT * FROM (PIVOT (SELECT label, confidence FROM predictions) ON label IN ('a', 'b') USING avg(confidence))
SELECT a.label, b.label FROM predictions a, LATERAL (SELECT label FROM predictions c WHERE c.image_id = a.image_id) b
SELECT COLUMNS('lab.*') FROM samples WHERE EXISTS (FROM keys) OR NOT label ~ 'x+' LIMIT 2
""".strip().splitlines()
SPLICES = """
duckdb_settings() current_setting('temp_directory') read_text('{file}') '{file}' query('SELECT 1') glob('{folder}/*')
duckdb_databases pragma_database_list information_schema.tables sqlite_master pg_settings predictions_0.rows
(SELECT max(value) FROM duckdb_settings()) (SELECT content FROM read_text('{file}')) getenv('HOME') sys.path
query_table('duckdb_databases') (FROM '{folder}/*') "read_csv"('{file}') system.main.read_blob('{file}') ; -- /* */
(DELETE FROM predictions_0.rows RETURNING *) (SHOW DATABASES) 'http://127.0.0.1:{port}/x' COPY ATTACH SET INSTALL INTO
arrow_scan(1,2,3) json_execute_serialized_sql('x') $x ? #1 \\ ` \x00 é U&'\\0041' E'\\x' $$a$$ [ ] {{ }} ( )
""".split(" ")  # noqa: SIM905 - they hold quotes
WORD = re.compile(r"\s+|[A-Za-z_]\w*|'[^']*'|[0-9.]+|.", re.DOTALL)


def mutated(seed: str, dice: random.Random, names: list[str], splices: list[str]) -> str:
    """The seed with one to four of its words replaced, doubled, dropped, swapped or wrapped."""
    words = WORD.findall(seed)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(words))
        match dice.randrange(8):
            case 0:
                calls = [i for i, w in enumerate(words[:-1]) if w.isidentifier() and words[i + 1] == "("]
                words[dice.choice(calls) if calls else at] = dice.choice(names)
            case 1:
                words[at] = dice.choice(splices)
            case 2:
                words.insert(at, f" {dice.choice(splices)} ")
            case 3:
                sources = [
                    i for i, w in enumerate(words) if w in ("samples", "predictions", "labels", "keys", "low", "t")
                ]
                source = dice.choice([dice.choice(splices), dice.choice(names), f"{dice.choice(names)}()"])
                words[dice.choice(sources) if sources else at] = source
            case 4:
                words[at] = f"{dice.choice(names)}({words[at]})"
            case 5:
                words[at] = words[at].swapcase() + dice.choice(["", "/**/", "\n", "--\n"])
            case 6:
                del words[at : at + dice.randint(1, 3)]
                words = words or ["SELECT"]
            case _:
                other = dice.randrange(len(words))
                words[at], words[other] = words[other], words[at]
    return "".join(words)


def _mutate(room: Room, say: Say, count: int) -> None:
    dice = random.Random(5)
    with duckdb.connect() as connection:
        called = {n for (n,) in connection.execute("SELECT DISTINCT function_name FROM duckdb_functions()").fetchall()}
    names = sorted(name for name in called if re.fullmatch(r"\w+", name) and "collate" not in name)
    splices = [room.text(splice) for splice in SPLICES]
    outcomes: Counter[str] = Counter()
    for number in range(count):
        text = mutated(SEEDS[number % len(SEEDS)], dice, names, splices)
        try:
            result = room.pool.run(text, timeout=10, max_rows=50)
            output = repr(result.columns) + repr(result.table.to_pylist())
            outcomes["answered"] += 1
        except QueryStopped as error:
            output = str(error)
            outcomes[f"stopped: {error.reason}"] += 1
        except BadInput as error:
            output = str(error)
            outcomes["refused by us" if " here" in output.split("\n")[0] else "refused by DuckDB"] += 1
        given_away = room.leaked(text, output)
        assert given_away is None, f"{given_away!r} by {text} -> {output[:500]}"
    room.check()
    assert outcomes["answered"] > count // 50
    assert outcomes["stopped: died"] == 0
    say(f"SQL: {count:,} mutated queries, 0 escaped, 0 writes, nothing revealed; {dict(outcomes)}")


def test_no_mutation_escapes(room: Room, say: Say) -> None:
    _mutate(room, say, 600)


@pytest.mark.soak
def test_none_of_many_mutations_escapes(room: Room, say: Say) -> None:
    _mutate(room, say, 20_000)
