"""The way of a short boto3 script: MD5, HEAD, upload_file, one file after another."""
import hashlib
import json
import os
import sys
from datetime import datetime
from pathlib import Path

import boto3
from botocore.exceptions import ClientError

directory, bucket, prefix, kms_key_id, manifest_file = sys.argv[1:]
s3 = boto3.client("s3", region_name="us-east-1", endpoint_url=os.environ["BENCH_ENDPOINT"])
manifest = []


def file_md5(path):
    md5 = hashlib.md5()
    with open(path, "rb") as f:
        for chunk in iter(lambda: f.read(8192), b""):
            md5.update(chunk)
    return md5.hexdigest()


def exists(key, md5):
    try:
        response = s3.head_object(Bucket=bucket, Key=key)
        return response.get("ETag", "").strip('"') == md5
    except ClientError as e:
        if e.response["Error"]["Code"] == "404":
            return False
        raise


def upload(path, key):
    md5 = file_md5(path)
    if exists(key, md5):
        print(f"  [SKIP]   {key} (unchanged)")
        return "skipped"
    s3.upload_file(
        Filename=str(path), Bucket=bucket, Key=key,
        ExtraArgs={"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": kms_key_id, "Metadata": {"md5checksum": md5}},
    )
    print(f"  [UPLOAD] {key}  ({path.stat().st_size:,} bytes)")
    return "uploaded"


root = Path(directory)
for path in root.rglob("*"):
    if not path.is_file():
        continue
    key = f"{prefix}/{path.relative_to(root)}"
    manifest.append({
        "local_path": str(path), "s3_key": key, "s3_uri": f"s3://{bucket}/{key}",
        "size_bytes": path.stat().st_size, "status": upload(path, key),
        "timestamp": datetime.utcnow().isoformat() + "Z",
    })

with open(manifest_file, "w") as f:
    json.dump(manifest, f, indent=2)
s3.upload_file(
    Filename=manifest_file, Bucket=bucket,
    Key=f"{prefix}/_manifests/manifest_{datetime.utcnow().strftime('%Y%m%d_%H%M%S')}.json",
    ExtraArgs={"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": kms_key_id},
)
