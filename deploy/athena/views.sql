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

-- The newest record of each file: whether it is there, and what became of it last. A record of a rekey is about the
-- object alone.
CREATE OR REPLACE VIEW s3syncd_files AS
SELECT *
FROM (
  SELECT t.*, row_number() OVER (PARTITION BY s3_uri ORDER BY recorded_at DESC, number DESC) AS place
  FROM s3syncd_trail t
  WHERE status <> 'rekeyed'
)
WHERE place = 1;

-- The newest record of each object that says what its bytes are; gone: no record says that the file is there; removed:
-- the object was deleted with it. A skip that the index alone decided repeats an earlier record.
CREATE OR REPLACE VIEW s3syncd_archived AS
SELECT s.*,
  f.status IS NULL OR f.status = 'deleted' AS gone,
  coalesce(f.status = 'deleted' AND f.attempt IS NOT NULL
    AND (f.recorded_at > s.recorded_at OR (f.recorded_at = s.recorded_at AND f.number > s.number)), false) AS removed
FROM (
  SELECT t.*, row_number() OVER (PARTITION BY s3_uri ORDER BY recorded_at DESC, number DESC) AS place
  FROM s3syncd_trail t
  WHERE status IN ('uploaded', 'rekeyed') OR (status = 'skipped' AND sha256 IS NOT NULL)
) s
LEFT JOIN (
  SELECT s3_uri, status, attempt, recorded_at, number,
    row_number() OVER (PARTITION BY s3_uri ORDER BY recorded_at DESC, number DESC) AS newest
  FROM s3syncd_trail
  WHERE status IN ('uploaded', 'skipped', 'deleted')
) f ON f.s3_uri = s.s3_uri AND f.newest = 1
WHERE s.place = 1;
