-- The same table for DuckDB 1.3 and later, over manifests of layout hive. The views of ../athena/views.sql and the
-- queries of ../athena/queries.sql follow unchanged.
--
--   SET VARIABLE manifests = 's3://my-company-data/backups/*/app-data/_manifests/dt=*/instance=*/*.jsonl.gz';
--
-- A directory will do as well (aws s3 sync s3://… DIR, or a host's manifest.local_dir). For s3:// run first:
--   INSTALL httpfs; LOAD httpfs; CREATE SECRET (TYPE s3, PROVIDER credential_chain);

CREATE OR REPLACE MACRO from_iso8601_timestamp(t) AS CAST(t AS TIMESTAMPTZ);

CREATE OR REPLACE VIEW s3syncd_records AS
SELECT *
FROM read_json(getvariable('manifests'),
  format = 'newline_delimited',
  hive_partitioning = true,
  hive_types = {'dt': 'VARCHAR', 'instance': 'VARCHAR'},
  maximum_object_size = 2097152,
  columns = {
    local_path: 'VARCHAR', s3_key: 'VARCHAR', s3_uri: 'VARCHAR', size_bytes: 'BIGINT', status: 'VARCHAR',
    "timestamp": 'VARCHAR', error: 'VARCHAR', error_class: 'VARCHAR', md5: 'VARCHAR', sha256: 'VARCHAR',
    etag: 'VARCHAR', version_id: 'VARCHAR', kms_key_id: 'VARCHAR', sse: 'VARCHAR', basis: 'VARCHAR',
    "trigger": 'VARCHAR', source: 'VARCHAR', mtime: 'VARCHAR', mode: 'VARCHAR', uid: 'BIGINT', gid: 'BIGINT',
    chain: 'VARCHAR', attempt: 'BIGINT', recovered: 'BOOLEAN', replaced_version_id: 'VARCHAR', replaced_etag: 'VARCHAR',
    s3_time: 'VARCHAR', request_id: 'VARCHAR', detected_at: 'VARCHAR', local_path_b64: 'VARCHAR', id: 'VARCHAR'
  });
