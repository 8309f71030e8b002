"""What analysts write from habit works, or its refusal says what to write instead."""

import datetime as dt
from collections.abc import Iterator

import pytest

from lake import open_lake
from lake.errors import BadInput
from lake.sql.sandbox.pool import Pool
from tests.lake import prediction_rows

# One query a line.
QUERIES = r"""
SELECT count(*) FROM predictions
SELECT label, count(*) AS n FROM predictions GROUP BY ALL ORDER BY ALL
SELECT label, round(avg(confidence), 3) FROM predictions GROUP BY 1 HAVING count(*) > 1
FROM predictions
FROM predictions SELECT label WHERE confidence < 0.5
SELECT * EXCLUDE (boxes, masks) FROM predictions LIMIT 3
SELECT * REPLACE (round(confidence, 1) AS confidence) FROM predictions
SELECT * RENAME (label AS class) FROM predictions
SELECT COLUMNS('.*_id') FROM predictions
SELECT max(COLUMNS(* EXCLUDE (scores, boxes, masks))) FROM predictions
SELECT DISTINCT ON (label) label, confidence FROM predictions ORDER BY label, confidence DESC
SELECT label, confidence, row_number() OVER (PARTITION BY label ORDER BY confidence) AS place FROM predictions
SELECT label FROM predictions QUALIFY row_number() OVER (PARTITION BY label ORDER BY confidence) = 1
SELECT avg(confidence) OVER w FROM predictions WINDOW w AS (ORDER BY timestamp ROWS BETWEEN 2 PRECEDING AND CURRENT ROW)
SELECT lag(label) OVER (ORDER BY timestamp), lead(label, 2, 'x') OVER (ORDER BY timestamp) FROM predictions
SELECT first_value(label IGNORE NULLS) OVER (ORDER BY timestamp) FROM predictions
WITH low AS (SELECT * FROM predictions WHERE confidence < 0.5) SELECT label, count(*) FROM low GROUP BY 1
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10) SELECT sum(i) FROM n
WITH a AS MATERIALIZED (FROM predictions) SELECT count(*) FROM a x JOIN a y USING (image_id)
SELECT image_id FROM predictions WHERE image_id IN (SELECT image_id FROM labels_current)
SELECT image_id FROM images ANTI JOIN labels_current USING (image_id)
SELECT image_id FROM images SEMI JOIN labels_current USING (image_id)
SELECT i.image_id, l.label FROM images i LEFT JOIN labels_current l ON i.image_id = l.image_id WHERE l.label IS NULL
SELECT * FROM images i, LATERAL (SELECT count(*) AS n FROM predictions p WHERE p.image_id = i.image_id)
SELECT p.label, l.label FROM predictions p ASOF JOIN labels l ON p.image_id = l.image_id AND p.timestamp >= l.timestamp
SELECT count(*) FROM predictions a CROSS JOIN predictions b
SELECT a.label FROM predictions a POSITIONAL JOIN labels b
SELECT prediction_id, unnest(boxes) FROM predictions
SELECT prediction_id, unnest(boxes, recursive := true) FROM predictions
SELECT p.prediction_id, b.label, b.width * b.height AS area FROM predictions p, unnest(p.boxes) AS t(b)
SELECT list_filter(boxes, lambda b: b.score > 0.5) FROM predictions
SELECT [b.label FOR b IN boxes IF b.score > 0.5] FROM predictions
SELECT list_transform(scores, lambda s: s.score), list_max(list_transform(scores, lambda s: s.score)) FROM predictions
SELECT len(boxes), boxes[1].label, boxes[1:2] FROM predictions
SELECT list_sort(list(label)), list_distinct(list(label)) FROM predictions
SELECT string_agg(label, ', ' ORDER BY label) FROM predictions
SELECT list(label ORDER BY confidence DESC)[1:3] FROM predictions
SELECT arg_max(label, confidence), max_by(label, confidence, 2) FROM predictions
SELECT approx_count_distinct(image_id), approx_quantile(confidence, 0.5) FROM predictions
SELECT corr(confidence, latency_ms), regr_slope(confidence, latency_ms) FROM predictions
SELECT count(*) FILTER (WHERE confidence < 0.5), count_if(confidence >= 0.5) FROM predictions
SELECT label, count(*) FROM predictions GROUP BY ROLLUP (label)
SELECT model, label, count(*), grouping(label) FROM predictions GROUP BY CUBE (model, label)
SELECT model, label, count(*) FROM predictions GROUP BY GROUPING SETS ((model), (label), ())
SELECT histogram(label) FROM predictions
SELECT map_keys(histogram(label)) FROM predictions
SELECT floor(confidence * 10) / 10 AS bin, count(*) FROM predictions GROUP BY bin ORDER BY bin
SELECT bar(count(*), 0, 10, 20) FROM predictions
SELECT date_trunc('day', timestamp) AS day, count(*) FROM predictions GROUP BY day ORDER BY day
SELECT timestamp::DATE, count(*) FROM predictions GROUP BY 1
SELECT time_bucket(INTERVAL '1 hour', timestamp), count(*) FROM predictions GROUP BY 1
SELECT extract(hour FROM timestamp), dayname(timestamp), strftime(timestamp, '%Y-%m') FROM predictions
SELECT * FROM predictions WHERE timestamp > now() - INTERVAL 7 DAY
SELECT * FROM predictions WHERE timestamp BETWEEN '2026-01-01' AND TIMESTAMP '2026-02-01'
SELECT current_date, current_timestamp, today()
SELECT current_localtimestamp(), current_time
SELECT timestamp AT TIME ZONE 'Europe/Berlin' FROM predictions
SELECT age(timestamp), date_diff('day', timestamp, now()) FROM predictions
SELECT make_date(2026, 1, 15), last_day(DATE '2026-02-01'), epoch(timestamp) FROM predictions
SELECT * FROM generate_series(DATE '2026-01-01', DATE '2026-01-05', INTERVAL 1 DAY)
SELECT * FROM range(5)
PIVOT predictions ON label IN ('cat', 'dog') USING count(*)
SELECT * FROM predictions PIVOT (count(*) FOR label IN ('cat', 'dog') GROUP BY model)
UNPIVOT (SELECT confidence, latency_ms FROM predictions) ON confidence, latency_ms INTO NAME kind VALUE value
SELECT * FROM (SELECT confidence, latency_ms FROM predictions) UNPIVOT (value FOR kind IN (confidence, latency_ms))
SUMMARIZE predictions
SUMMARIZE SELECT confidence FROM predictions
SELECT column_name, approx_unique FROM (SUMMARIZE predictions)
DESCRIBE predictions
DESCRIBE SELECT * FROM labels
SELECT column_name FROM (DESCRIBE predictions)
SHOW TABLES
SELECT name FROM (SHOW TABLES)
SELECT label FROM predictions USING SAMPLE 2
SELECT label FROM predictions USING SAMPLE 50 PERCENT (bernoulli, 42)
SELECT label FROM predictions TABLESAMPLE reservoir(2 ROWS) REPEATABLE (7)
SELECT label FROM predictions ORDER BY random() LIMIT 2
SELECT label FROM predictions LIMIT 10%
SELECT label FROM predictions ORDER BY confidence NULLS LAST OFFSET 1
SELECT regexp_extract(source, '([^/]+)$', 1), regexp_matches(source, 'png'), source SIMILAR TO '.*png' FROM predictions
SELECT * FROM predictions WHERE source ~ 'cat' OR label ILIKE 'c%' OR label LIKE 'c\_%' ESCAPE '\'
SELECT regexp_replace(source, '.*/', ''), split_part(source, '/', -1), parse_filename(source) FROM predictions
SELECT string_split(source, '/'), upper(label), concat_ws('-', label, model), label || '!' FROM predictions
SELECT format('{:.2f}', confidence), printf('%d', 7), lpad(label, 5, ' ') FROM predictions
SELECT metadata->>'camera', metadata->'$.camera', metadata->>'$.tags[0]' FROM predictions
SELECT json_extract_string(metadata, '$.camera'), json_keys(metadata) FROM predictions
SELECT (metadata->>'camera')::INT AS camera, count(*) FROM predictions GROUP BY 1
SELECT TRY_CAST(metadata->>'camera' AS INTEGER) FROM predictions
SELECT j.key, j.value FROM predictions p, json_each(p.metadata) j
SELECT metadata::JSON FROM predictions
SELECT from_json(metadata, '{"camera": "INTEGER"}').camera FROM predictions
SELECT label, true_label, count(*) FROM predictions_labelled GROUP BY ALL
SELECT avg(correct::INT), sum(CASE WHEN correct THEN 1 ELSE 0 END) FROM predictions_labelled
SELECT label FROM predictions UNION ALL BY NAME SELECT label FROM labels
SELECT image_id FROM predictions EXCEPT SELECT image_id FROM labels
SELECT image_id FROM predictions INTERSECT SELECT image_id FROM labels
VALUES (1, 'a'), (2, 'b')
TABLE predictions
SELECT struct_pack(a := 1), {'a': 1, 'b': 2}.a, MAP {'x': 1}['x'], [1, 2, 3][-1]
SELECT array_cosine_similarity([1.0, 2.0]::FLOAT[2], [2.0, 1.0]::FLOAT[2]), list_dot_product([1, 2], [3, 4])
SELECT try_strptime('2026-01', '%Y-%m'), TRY(1 / 0), isfinite(1.0)
SELECT hash(image_id) % 10, md5(image_id), gen_random_uuid() FROM predictions
SELECT greatest(1, 2), least(1, 2), sign(-3), power(2, 3), ln(2), 7 // 2, 7 % 2, 2 ** 3, 1e3, 0x1F, 1_000
SELECT label, rank() OVER (ORDER BY count(*) DESC) FROM predictions GROUP BY label
SELECT EXISTS (SELECT 1 FROM predictions WHERE confidence > 2), confidence > ALL (SELECT 0.5) FROM predictions
SELECT row(1, 2), (1, 2) IN ((1, 2)), typeof(confidence) FROM predictions
SELECT label AS class FROM predictions WHERE class = 'cat'
SELECT x: confidence FROM predictions
SELECT levenshtein(label, 'cat'), jaro_winkler_similarity(label, 'cat') FROM predictions
SELECT sum(size) FROM slices WHERE deleted_at IS NULL
"""
# With words of the refusal.
REFUSED = {
    "PIVOT predictions ON label USING count(*)": "PIVOT t ON label IN ('cat', 'dog') USING count(*)",
    "WITH p AS (PIVOT predictions ON label) SELECT * FROM p": "PIVOT needs its values here",
    "EXPLAIN SELECT 1": "the result of a query says how many seconds it took",
    "SHOW ALL TABLES": "SHOW TABLES is the only SHOW command here; DESCRIBE t shows a table",
    "SELECT table_name FROM information_schema.tables": "SHOW TABLES lists the tables, DESCRIBE t the columns of one",
    "SELECT * FROM pg_catalog.pg_tables": "SHOW TABLES lists the tables, DESCRIBE t the columns of one",
    "SELECT * FROM duckdb_columns()": "SHOW TABLES lists the tables, DESCRIBE t the columns of one",
    "SELECT * FROM pragma_table_info('predictions')": "DESCRIBE t the columns of one",
    "-- as in sqlite\nPRAGMA table_info('predictions')": "DESCRIBE t the columns of one",
    "SELECT version()": "lakeloop --version",
    "SELECT width_bucket(confidence, 0, 1, 10) FROM predictions": "use floor((x - low) / step)",
    "SELECT setseed(0.5)": "USING SAMPLE 10 (reservoir, 7)",
    "SET VARIABLE x = 1": "use a parameter instead: $name",
    "CREATE TABLE t AS SELECT 1": "name a step of the query with WITH step AS (SELECT ...)",
    "COPY predictions TO 'x.csv'": "lakeloop sql writes files with --format csv or parquet and --out FILE",
    "SELECT * FROM read_csv('x.csv')": "lakeloop ingest FILE brings data in",
    "SELECT * FROM 'x.parquet'": "lakeloop ingest FILE brings data in",
    "DELETE FROM predictions": "lakeloop forget and lakeloop retain remove data",
    "SELECT 1; SELECT 2": "send several one after the other",
    "SELECT * FROM answers": "view answers is named predictions now",
    "SELECT confidense FROM predictions": 'Candidate bindings: "confidence"',
    "SELECT * FROM prediction": 'Did you mean "predictions"',
    "/**/" * 500 + "1": "syntax error",
}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    lake = open_lake.create(str(tmp_path_factory.mktemp("analysts") / "lake"))
    box = {"x": 1.0, "y": 2.0, "width": 3.0, "height": 4.0, "label": "cat", "score": 0.9}
    common = {"metadata": '{"camera": 7, "tags": ["a"]}', "scores": [{"label": "cat", "score": 0.5}], "boxes": [box]}
    days = [dt.datetime(2026, 1, day, tzinfo=dt.UTC) for day in range(1, 9)]
    rows = [
        {"label": "cat" if i % 2 else "dog", "confidence": i / 10, "latency_ms": 1.0, "timestamp": day, "source": "a"}
        for i, day in enumerate(days)
    ]
    prediction_rows.add(lake, [row | common for row in rows])
    prediction_rows.label(lake, (prediction_rows.image(0), "cat", days[0]))
    opened = Pool(lake)
    yield opened
    opened.close()


def test_common_queries_work(pool: Pool) -> None:
    queries = QUERIES.strip().splitlines()
    assert len(queries) >= 110
    for query in queries:
        try:
            pool.run(query)
        except BadInput as error:
            pytest.fail(f"{query}: {error}")


@pytest.mark.parametrize("query", REFUSED)
def test_a_refusal_says_what_to_write_instead(pool: Pool, query: str) -> None:
    with pytest.raises(BadInput) as refused:
        pool.run(query)
    assert REFUSED[query] in str(refused.value)
