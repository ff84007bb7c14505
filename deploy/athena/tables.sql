-- The audit trail of a fleet as a table of Athena (engine version 3). It needs `manifest.layout: hive`.
-- Replace my-company-data, backups/${instance}/app-data and the list of instances with your own, and run the statement.
--
-- Where the prefix does not contain {instance}, leave ${instance}/ out of it in the template (not behind instance=).
-- More than a few dozen instances: 'projection.instance.type' = 'injected', without values; then every query must
-- name its instances: WHERE instance IN ('app-01', 'app-02').
-- dt and instance are taken from the object's key; no partition is ever added or loaded.

CREATE EXTERNAL TABLE IF NOT EXISTS s3syncd_records (
  local_path          string,
  s3_key              string,
  s3_uri              string,
  size_bytes          bigint,
  status              string,
  `timestamp`         string,
  error               string,
  error_class         string,
  md5                 string,
  sha256              string,
  etag                string,
  version_id          string,
  kms_key_id          string,
  sse                 string,
  basis               string,
  `trigger`           string,
  source              string,
  mtime               string,
  mode                string,
  uid                 bigint,
  gid                 bigint,
  chain               string,
  attempt             bigint,
  recovered           boolean,
  replaced_version_id string,
  replaced_etag       string,
  s3_time             string,
  request_id          string,
  detected_at         string,
  local_path_b64      string,
  id                  string
)
PARTITIONED BY (dt string, instance string)
ROW FORMAT SERDE 'org.openx.data.jsonserde.JsonSerDe'
WITH SERDEPROPERTIES ('ignore.malformed.json' = 'false')
STORED AS INPUTFORMAT 'org.apache.hadoop.mapred.TextInputFormat'
OUTPUTFORMAT 'org.apache.hadoop.hive.ql.io.HiveIgnoreKeyTextOutputFormat'
LOCATION 's3://my-company-data/backups/'
TBLPROPERTIES (
  'projection.enabled' = 'true',
  'projection.dt.type' = 'date',
  'projection.dt.format' = 'yyyy-MM-dd',
  'projection.dt.range' = '2026-01-01,NOW+1DAYS',
  'projection.dt.interval' = '1',
  'projection.dt.interval.unit' = 'DAYS',
  'projection.instance.type' = 'enum',
  'projection.instance.values' = 'app-01,app-02,app-03',
  'storage.location.template' = 's3://my-company-data/backups/${instance}/app-data/_manifests/dt=${dt}/instance=${instance}/'
);
