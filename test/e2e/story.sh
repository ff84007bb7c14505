#!/usr/bin/env bash
# The whole story with public tools: write, lose the host, verify, restore,
# compare. Its environment: S3SYNCD (the program), CONFIG (a configuration whose
# one source is WORK/data and whose state is WORK/state), BUCKET, PREFIX and
# ENDPOINT (where that goes), WORK (an empty directory), and AWS credentials.
set -euo pipefail
export LC_ALL=C
cd "$WORK"
from=(--bucket "$BUCKET" --prefix "$PREFIX" --endpoint-url "$ENDPOINT" --region us-east-1)
say() { printf '\n== %s\n' "$*"; }
die() { printf 'story: %s\n' "$*" >&2; exit 1; }
has() { "$S3SYNCD" help | grep -q "^  s3syncd $1 "; }
attributes() { (cd "$1" && find . -type f -printf '%P\t%m\t%U:%G\t%T@\t%s\n' | sort); }
hashes() { (cd "$1" && find . -type f -print0 | sort -z | xargs -0 sha256sum); }

say 'an application writes'
python3 - <<'PY'
import os, random
random.seed(7)
for i in range(400):
    path = f"data/d{i % 20:02d}/e{i % 3}/f{i:04d}.bin"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as f:
        f.write(random.randbytes(random.choice([0, 1, 100, 5000, 70000])))
    os.chmod(path, random.choice([0o600, 0o640, 0o644, 0o755]))
    os.utime(path, ns=(0, random.randrange(10**18, 17 * 10**17)))
for name in [b"with space", b"new\nline", b"not\xff\xfeutf8", b"%41", b"-rf", "日本".encode(), b"back\\slash", b"n" * 255]:
    with open(b"data/" + name, "wb") as f:
        f.write(b"odd " + name)
PY
mkdir data/empty
ln -s d00 data/link
"$S3SYNCD" sync -c "$CONFIG" > sync1.out

say 'it goes on: some files change, some go'
echo changed > data/d00/e0/f0000.bin
rm data/d01/e1/f0001.bin
chmod 600 "data/with space"
"$S3SYNCD" sync -c "$CONFIG" > sync2.out
grep -q '^Uploaded: 1$' sync2.out || die "the second run did not upload one file: $(tail -5 sync2.out)"

say 'the manifests are read by jq and by python3'
manifests=(state/manifests/app/manifest_*.json)
jq -e 'all(.[]; has("local_path") and has("s3_key") and has("s3_uri") and has("status") and has("timestamp"))' "${manifests[@]}" > /dev/null
uploads=$(jq -r '.[] | select(.status == "uploaded") | .id' "${manifests[@]}" | wc -l)
python3 - "$uploads" "${manifests[@]}" <<'PY'
import collections, datetime, json, sys
counts = collections.Counter()
for name in sys.argv[2:]:
    with open(name) as f:
        for entry in json.load(f):  # As the readers of the earlier script's manifests do.
            counts[entry["status"]] += 1
            datetime.datetime.fromisoformat(entry["timestamp"].replace("Z", "+00:00")[:19])
            if entry["status"] == "uploaded":
                assert entry["s3_uri"].endswith(entry["s3_key"]) and entry["size_bytes"] >= 0 and len(entry["md5"]) == 32
assert counts["uploaded"] == int(sys.argv[1]) == 409, counts
assert counts["deleted"] == 1 and counts["failed"] == 0, counts
PY

say 'the host is lost'
attributes data > before.attributes
hashes data > before.hashes
cp -a state/manifests/app auditor # What an auditor keeps.
cp -a data reference
rm -rf data state

if has verify; then
  say 'the trail is verified, in the bucket and from the copies'
  "$S3SYNCD" verify "${from[@]}"
  "$S3SYNCD" verify "${from[@]}" --remote
  "$S3SYNCD" verify --offline auditor
fi

say 'the files are restored from the bucket alone'
"$S3SYNCD" restore "${from[@]}" --to restored > restore.out
tail -3 restore.out
attributes restored > after.attributes
hashes restored > after.hashes
diff before.attributes after.attributes || die 'attributes differ'
diff before.hashes after.hashes || die 'contents differ'
(cd restored && sha256sum --quiet -c ../before.hashes)
# Empty directories and links are not archived; nothing else is missing.
diff -r --no-dereference reference restored > differences || true
printf 'Only in reference: empty\nOnly in reference: link\n' | diff - differences || die 'the trees differ'

say 'one file is proven'
"$S3SYNCD" history "${from[@]}" d00/e0/f0000.bin --bundle proof.json
"$S3SYNCD" history "${from[@]}" d00/e0/f0000.bin --json | jq -e '.record.s3_key' > /dev/null
jq -r .manifest.content proof.json | base64 -d | sha256sum | grep -q "$(jq -r .manifest.sha256 proof.json)"
jq -r '.digests[0].content' proof.json | base64 -d | jq -e --arg sha "$(jq -r .manifest.sha256 proof.json)" 'any(.manifests[]; .sha256 == $sha)' > /dev/null
if has verify; then
  "$S3SYNCD" verify --offline proof.json
fi

say 'the new host goes on where the old one ended'
mv restored data
"$S3SYNCD" sync -c "$CONFIG" > sync3.out
grep -q '^Uploaded: 0$' sync3.out || die "the new host uploads again: $(tail -5 sync3.out)"
"$S3SYNCD" retire -c "$CONFIG" > retire.out
say 'done'
