-- Views over s3syncd_records, for Athena and DuckDB alike. Athena runs one statement at a time.

-- Every record, with its time as a time and its place within its chain.
CREATE OR REPLACE VIEW s3syncd_trail AS
SELECT r.*, from_iso8601_timestamp("timestamp") AS recorded_at, CAST(split_part(id, '-', 2) AS bigint) AS number
FROM s3syncd_records r;

-- The newest record of each object, whatever became of it.
CREATE OR REPLACE VIEW s3syncd_newest AS
SELECT *
FROM (
  SELECT t.*, row_number() OVER (PARTITION BY s3_uri ORDER BY recorded_at DESC, number DESC) AS place
  FROM s3syncd_trail t
)
WHERE place = 1;

-- The newest record of each object that says what its bytes are, and whether the file is gone from the host since.
-- A skip that the index alone decided repeats an earlier record.
CREATE OR REPLACE VIEW s3syncd_archived AS
SELECT s.*, coalesce(d.deleted_at >= s.recorded_at, false) AS gone
FROM (
  SELECT t.*, row_number() OVER (PARTITION BY s3_uri ORDER BY recorded_at DESC, number DESC) AS place
  FROM s3syncd_trail t
  WHERE status IN ('uploaded', 'rekeyed') OR (status = 'skipped' AND sha256 IS NOT NULL)
) s
LEFT JOIN (
  SELECT s3_uri, max(recorded_at) AS deleted_at
  FROM s3syncd_trail
  WHERE status = 'deleted'
  GROUP BY s3_uri
) d ON d.s3_uri = s.s3_uri
WHERE s.place = 1;
