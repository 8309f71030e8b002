"""SQL that tries to escape from the sandbox: known attacks on DuckDB, and what its documentation offers.

{file} is a file that must not be read, {folder} where it lies, {new} one that must not be made, {port} a port that
must hear nothing. None of them may give rows, but those of `HARMLESS`, which may and then tell nothing.
"""

from __future__ import annotations

_FILES = """
SELECT * FROM '{file}'
SELECT * FROM "{file}"
FROM '{file}'
TABLE "{file}"
SELECT * FROM '{folder}/*'
SELECT * FROM '{folder}/secret.csv'
SELECT * FROM read_csv('{file}')
SELECT * FROM read_csv_auto('{file}')
SELECT * FROM read_csv(['{file}', '{file}'])
SELECT * FROM read_text('{file}')
SELECT content FROM read_text('{folder}/*')
SELECT * FROM read_blob('{file}')
SELECT * FROM read_parquet('{file}')
SELECT * FROM parquet_scan('{file}')
SELECT * FROM parquet_metadata('{file}')
SELECT * FROM parquet_schema('{file}')
SELECT * FROM parquet_file_metadata('{file}')
SELECT * FROM parquet_full_metadata('{file}')
SELECT * FROM parquet_kv_metadata('{file}')
SELECT * FROM parquet_bloom_probe('{file}', 'a', 1)
SELECT * FROM read_json('{file}')
SELECT * FROM read_json_auto('{file}')
SELECT * FROM read_json_objects('{file}')
SELECT * FROM read_json_objects_auto('{file}')
SELECT * FROM read_ndjson('{file}')
SELECT * FROM read_ndjson_auto('{file}')
SELECT * FROM read_ndjson_objects('{file}')
SELECT * FROM read_duckdb('{file}')
SELECT * FROM read_single_csv_file('{file}')
SELECT * FROM read_single_json_file('{file}')
SELECT * FROM read_single_parquet_file('{file}')
SELECT * FROM sniff_csv('{file}')
SELECT * FROM glob('{folder}/*')
SELECT * FROM glob('/proc/self/*')
SELECT * FROM read_text('/proc/self/environ')
SELECT * FROM read_text('/proc/self/cmdline')
SELECT * FROM '/proc/self/maps'
SELECT * FROM 'file://{file}'
SELECT * FROM '{file}.gz'
SELECT * FROM "main"."{file}"
SELECT * FROM system.main.read_text('{file}')
SELECT * FROM "system"."main"."read_csv"('{file}')
SELECT * FROM READ_TEXT('{file}')
SELECT * FROM "ReAd_TeXt"('{file}')
SELECT * FROM/**/read_text/**/('{file}')
SELECT * FROM U&"read\\005ftext"('{file}')
SELECT * FROM (SELECT * FROM (SELECT * FROM read_text('{file}')))
SELECT (SELECT content FROM read_text('{file}'))
SELECT 1 WHERE EXISTS (FROM read_text('{file}'))
SELECT count(*) FROM samples, read_text('{file}')
SELECT * FROM samples p, LATERAL (SELECT * FROM read_text('{file}'))
WITH x AS (FROM read_text('{file}')) SELECT * FROM x
WITH x AS MATERIALIZED (FROM read_text('{file}')) SELECT * FROM x
WITH RECURSIVE x AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM x, read_text('{file}') WHERE i < 3) SELECT * FROM x
SELECT * FROM samples UNION ALL BY NAME SELECT * FROM read_text('{file}')
SELECT * FROM samples ORDER BY (SELECT content FROM read_text('{file}'))
SELECT * FROM samples LIMIT (SELECT size FROM read_text('{file}'))
SELECT * FROM samples OFFSET (SELECT size FROM read_blob('{file}'))
SELECT sum(1) FILTER (WHERE (SELECT true FROM read_text('{file}'))) FROM samples
SELECT row_number() OVER (ORDER BY (SELECT content FROM read_text('{file}'))) FROM samples
SELECT CASE WHEN true THEN (SELECT content FROM read_text('{file}')) END
SELECT list_transform([1], x -> (SELECT content FROM read_text('{file}')))
SELECT list_transform(['{file}'], lambda x: read_text(x))
SELECT [x FOR x IN (SELECT array_agg(content) FROM read_text('{file}'))]
SELECT * FROM (PIVOT (FROM read_text('{file}')) ON size USING count(*))
SELECT * FROM (UNPIVOT (FROM read_text('{file}')) ON size)
SELECT * FROM (DESCRIBE FROM read_text('{file}'))
SELECT * FROM (SUMMARIZE FROM read_csv('{file}'))
DESCRIBE SELECT * FROM read_csv('{file}')
SUMMARIZE SELECT * FROM read_csv('{file}')
DESCRIBE '{file}'
SUMMARIZE '{file}'
SELECT TRY(read_text('{file}'))
SELECT ('{file}').read_text()
VALUES ((SELECT content FROM read_text('{file}')))
SELECT * FROM samples TABLESAMPLE 10% , read_text('{file}')
SELECT * FROM samples ASOF JOIN read_text('{file}') t ON confidence >= t.size
SELECT * FROM samples POSITIONAL JOIN read_text('{file}')
SELECT COLUMNS(x -> (SELECT true FROM read_text('{file}'))) FROM samples
"""
_NETWORK = """
SELECT * FROM 'http://127.0.0.1:{port}/x.csv'
SELECT * FROM 'https://127.0.0.1:{port}/x.parquet'
SELECT * FROM read_csv('http://127.0.0.1:{port}/x.csv')
SELECT * FROM read_parquet('s3://127.0.0.1:{port}/x.parquet')
SELECT * FROM read_json('hf://datasets/x/y.json')
SELECT * FROM 'gcs://bucket/x.parquet'
SELECT * FROM postgres_scan('host=127.0.0.1 port={port}', 'public', 't')
SELECT * FROM mysql_query('x', 'select 1')
SELECT * FROM sqlite_scan('{file}', 't')
SELECT * FROM iceberg_scan('{folder}')
SELECT * FROM delta_scan('{folder}')
SELECT * FROM st_read('{file}')
SELECT * FROM read_xlsx('{file}')
SELECT http_get('http://127.0.0.1:{port}/')
SELECT * FROM which_secret('s3://x', 's3')
SELECT * FROM duckdb_secrets()
SELECT * FROM register_external_resource('x', 'http://127.0.0.1:{port}')
SELECT * FROM create_external_resource('x')
"""
_SETTINGS = """
SELECT * FROM duckdb_settings()
SELECT value FROM "duckdb_settings"() WHERE name = 'temp_directory'
SELECT current_setting('temp_directory')
SELECT current_setting('home_directory')
SELECT "current_setting"('allowed_directories')
SELECT system.main.current_setting('secret_directory')
SELECT main.current_setting('extension_directory')
SELECT 'temp_directory'.current_setting()
SELECT list_transform(['temp_directory'], x -> current_setting(x))
SELECT list_apply(['temp_directory'], lambda x: x.current_setting())
SELECT getenv('HOME')
SELECT getvariable('x')
SELECT * FROM duckdb_variables()
SELECT * FROM duckdb_logs
SELECT * FROM duckdb_logs()
SELECT * FROM duckdb_logs_parsed('QueryLog')
SELECT * FROM duckdb_log_contexts()
SELECT write_log('x')
SELECT * FROM enable_logging()
SELECT * FROM enable_logging('QueryLog', storage_path := '{new}')
SELECT * FROM enable_profiling()
SELECT * FROM truncate_duckdb_logs()
SELECT * FROM duckdb_databases()
SELECT path FROM duckdb_databases
SELECT * FROM main.duckdb_databases
SELECT * FROM system.main.duckdb_databases
SELECT * FROM pragma_database_list
SELECT * FROM pragma_database_size()
SELECT * FROM pragma_storage_info('predictions')
SELECT * FROM pragma_table_info('predictions')
SELECT * FROM pragma_metadata_info()
SELECT * FROM pragma_user_agent()
SELECT * FROM pragma_platform()
SELECT * FROM pragma_version()
SELECT version()
SELECT * FROM duckdb_tables()
SELECT * FROM duckdb_tables
SELECT * FROM duckdb_views()
SELECT * FROM duckdb_columns()
SELECT * FROM duckdb_functions()
SELECT * FROM duckdb_extensions()
SELECT * FROM duckdb_memory()
SELECT * FROM duckdb_temporary_files()
SELECT * FROM duckdb_external_file_cache()
SELECT * FROM duckdb_prepared_statements()
SELECT * FROM duckdb_connection_count()
SELECT * FROM duckdb_optimizers()
SELECT * FROM duckdb_secret_types()
SELECT * FROM information_schema.tables
SELECT * FROM information_schema.columns
SELECT * FROM information_schema.schemata
SELECT * FROM "information_schema"."views"
SELECT * FROM memory.information_schema.tables
SELECT * FROM system.information_schema.tables
SELECT * FROM pg_catalog.pg_settings
SELECT * FROM pg_settings
SELECT * FROM pg_catalog.pg_database
SELECT * FROM pg_class
SELECT * FROM sqlite_master
SELECT * FROM sqlite_schema
SELECT * FROM predictions_0.duckdb_databases
SELECT * FROM predictions_0.main.rows
SELECT * FROM predictions_0.rows
SELECT * FROM samples, duckdb_settings()
SELECT (SELECT max(value) FROM duckdb_settings())
SELECT * FROM (SHOW DATABASES)
SHOW DATABASES
SHOW ALL TABLES
SHOW VARIABLES
SHOW SCHEMAS
SELECT * FROM (SHOW ALL TABLES)
SELECT current_query()
SELECT txid_current()
SELECT current_connection_id()
SELECT stats(label) FROM samples
SELECT pg_get_viewdef(1)
SELECT col_description(1, 1)
SELECT inet_server_addr()
SELECT * FROM pg_timezone_names()
SELECT * FROM test_all_types()
SELECT sleep_ms(10)
SELECT pg_sleep(1)
"""
_TEXT_AS_SQL = """
SELECT * FROM query('SELECT * FROM duckdb_settings()')
SELECT * FROM query('COPY (SELECT 1) TO ''{new}''')
SELECT * FROM query_table('duckdb_settings')
SELECT * FROM query_table(['predictions', '{file}'])
SELECT * FROM histogram('{file}', 'a')
SELECT * FROM histogram_values('{file}', 'a')
SELECT * FROM histogram(predictions, confidence)
SELECT * FROM json_execute_serialized_sql('{{}}')
SELECT json_serialize_sql('SELECT 1')
SELECT json_deserialize_sql('{{}}')
SELECT json_serialize_plan('SELECT * FROM duckdb_settings()')
SELECT * FROM sql_auto_complete('SELECT')
SELECT * FROM arrow_scan(1, 2, 3)
SELECT * FROM arrow_scan_dumb(1, 2, 3)
SELECT * FROM pandas_scan(1)
SELECT * FROM python_arrow_scan(1)
SELECT * FROM python_map_function(1)
SELECT * FROM seq_scan(1)
SELECT * FROM rows
SELECT * FROM sys
SELECT * FROM os
SELECT * FROM self
SELECT finalize('\\x00'::BLOB)
SELECT combine(1, 2)
SELECT nextval('s')
SELECT setseed(0.5)
SELECT cast_to_type('1', NULL::regclass)
SELECT 'predictions'::regclass
SELECT constant_or_null(1, current_setting('threads'))
SELECT * FROM checkpoint()
SELECT * FROM force_checkpoint()
SELECT * FROM repeat_row(1, num_rows := 1)
SELECT * FROM summary((SELECT 1))
SELECT * FROM unnest(read_text('{file}'))
SELECT * FROM range((SELECT size FROM read_text('{file}')))
"""
_STATEMENTS = """
COPY (SELECT 1) TO '{new}'
COPY predictions TO '{new}' (FORMAT parquet)
COPY predictions FROM '{file}'
COPY FROM DATABASE memory TO x
EXPORT DATABASE '{new}'
IMPORT DATABASE '{folder}'
ATTACH '{new}'
ATTACH '{new}' AS x (TYPE sqlite)
ATTACH ':memory:' AS x
DETACH predictions_0
USE predictions_0
INSTALL httpfs
FORCE INSTALL httpfs FROM 'http://127.0.0.1:{port}'
LOAD httpfs
LOAD '{file}'
UPDATE EXTENSIONS
SET enable_external_access = true
SET GLOBAL lock_configuration = false
SET SESSION threads = 64
SET memory_limit = '100GB'
SET VARIABLE x = 1
RESET lock_configuration
RESET memory_limit
PRAGMA database_list
PRAGMA enable_profiling
PRAGMA profiling_output = '{new}'
PRAGMA log_query_path = '{new}'
PRAGMA threads = 64
PRAGMA import_database('{folder}')
PRAGMA table_info('predictions')
CALL pragma_version()
CALL enable_logging()
CALL duckdb_settings()
CREATE TABLE t AS SELECT 1
CREATE TEMP TABLE t (i INT)
CREATE VIEW v AS SELECT 1
CREATE OR REPLACE VIEW predictions AS SELECT 1
CREATE MACRO m() AS 1
CREATE OR REPLACE MACRO lower(x) AS 'x'
CREATE TYPE e AS ENUM ('a')
CREATE SCHEMA s
CREATE SEQUENCE s
CREATE INDEX i ON predictions (label)
CREATE SECRET s (TYPE s3, KEY_ID 'a', SECRET 'b')
CREATE PERSISTENT SECRET s (TYPE http)
CREATE FUNCTION f(x) AS x
DROP VIEW predictions
DROP SCHEMA main CASCADE
ALTER VIEW predictions RENAME TO p
ALTER TABLE predictions ADD COLUMN x INT
INSERT INTO samples VALUES (1)
INSERT INTO predictions_0.rows SELECT * FROM predictions_0.rows
UPDATE predictions SET label = 'x'
DELETE FROM samples
TRUNCATE predictions
MERGE INTO samples USING labels ON true WHEN MATCHED THEN DELETE
WITH x AS (INSERT INTO predictions_0.rows VALUES (1) RETURNING *) SELECT * FROM x
WITH x AS (DELETE FROM predictions_0.rows RETURNING *) SELECT * FROM x
WITH x AS (UPDATE predictions_0.rows SET label = 'x' RETURNING *) SELECT * FROM x
WITH x AS (MERGE INTO predictions_0.rows USING labels ON true WHEN MATCHED THEN DELETE) SELECT * FROM x
SELECT * FROM (WITH x AS (DELETE FROM predictions_0.rows RETURNING *) SELECT * FROM x)
VACUUM
ANALYZE
CHECKPOINT
FORCE CHECKPOINT
BEGIN TRANSACTION
COMMIT
ROLLBACK
PREPARE p AS SELECT 1
EXECUTE p
EXECUTE IMMEDIATE 'SELECT 1'
DEALLOCATE p
EXPLAIN SELECT 1
EXPLAIN ANALYZE SELECT 1
EXPLAIN (ANALYZE, FORMAT json) COPY (SELECT 1) TO '{new}'
COMMENT ON VIEW predictions IS 'x'
SELECT 1; SELECT 2
SELECT 1; COPY (SELECT 1) TO '{new}'
SELECT 1; SET threads = 1
SELECT 1;; DROP VIEW predictions
;
-- nothing
/* nothing */
PIVOT predictions ON label USING count(*)
.read {file}
.shell id
\\copy predictions TO '{new}'
SELECT 1 INTO OUTFILE '{new}'
SELECT * INTO t FROM samples
LOCK TABLE predictions
LISTEN x
"""

REFUSED = [
    line for text in (_FILES, _NETWORK, _SETTINGS, _TEXT_AS_SQL, _STATEMENTS) for line in text.strip().splitlines()
]
# Taken, and telling nothing.
HARMLESS = """
SELECT current_user, current_schema, current_catalog, current_role, session_user, user
SHOW TABLES
DESCRIBE predictions
SUMMARIZE predictions
SELECT * FROM memory.main.predictions
SELECT * FROM keys
SELECT * FROM audit
SELECT parse_path('/a/b')
""".strip().splitlines()
