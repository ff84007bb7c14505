-- Questions to the audit trail of a fleet, in the SQL that Athena and DuckDB share.
-- The condition on dt keeps Athena from reading older days; it is a day wider than the question, because dt is the day on
-- which a manifest was sealed.

-- name: uploaded-last-week-by-host
SELECT instance, source, count(*) AS files, sum(size_bytes) AS bytes
FROM s3syncd_trail
WHERE dt >= CAST(CAST(current_date - INTERVAL '8' DAY AS date) AS varchar)
  AND recorded_at >= current_timestamp - INTERVAL '7' DAY
  AND status = 'uploaded'
GROUP BY instance, source
ORDER BY instance, source;

-- name: failed-and-never-recovered
SELECT instance, source, local_path, error_class, error, recorded_at
FROM s3syncd_files
WHERE status = 'failed'
ORDER BY instance, source, local_path;

-- name: keys-in-use
SELECT kms_key_id, count(*) AS objects, sum(size_bytes) AS bytes, count(DISTINCT instance) AS hosts
FROM s3syncd_archived
WHERE NOT removed
GROUP BY kms_key_id
ORDER BY objects DESC, kms_key_id;

-- name: duplicates
SELECT sha256, count(*) AS copies, max(size_bytes) AS bytes_each, (count(*) - 1) * max(size_bytes) AS bytes_spare,
  min(s3_uri) AS one_of_them
FROM s3syncd_archived
WHERE NOT gone AND size_bytes > 0 AND sha256 IS NOT NULL
GROUP BY sha256
HAVING count(*) > 1
ORDER BY bytes_spare DESC, sha256;

-- name: newest-version-of-a-file
SELECT s3_uri, version_id, size_bytes, sha256, recorded_at, gone
FROM s3syncd_archived
WHERE instance = 'app-01' AND local_path = '/opt/app/data/report.csv';

-- name: uploaded-most-often
SELECT instance, local_path, count(*) AS uploads, sum(size_bytes) AS bytes
FROM s3syncd_trail
WHERE dt >= CAST(CAST(current_date - INTERVAL '8' DAY AS date) AS varchar)
  AND status = 'uploaded'
GROUP BY instance, local_path
HAVING count(*) > 1
ORDER BY uploads DESC, instance, local_path
LIMIT 100;

-- name: silent-hosts
SELECT instance, source, max(recorded_at) AS last_record
FROM s3syncd_trail
GROUP BY instance, source
HAVING max(recorded_at) < current_timestamp - INTERVAL '1' DAY
ORDER BY last_record;
