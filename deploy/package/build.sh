#!/usr/bin/env bash
# Builds the packages, their SBOMs and SHA256SUMS into DIST. `make packages` calls
# it from the top of the repository. The same commit and tools give the same
# bytes: every time in them is SOURCE_DATE_EPOCH.
set -euo pipefail
shopt -s nullglob

: "${GO:=go}" "${VERSION:?}" "${DIST:?}" "${NFPM:?}" "${CYCLONEDX:?}" "${BUILDVCS:=true}"
: "${ARCHES:=amd64 arm64}" "${FORMATS:=deb rpm}"
if [[ -z ${SOURCE_DATE_EPOCH:-} ]]; then
  SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null) || {
    echo 'packages: no commit to take the date from: set SOURCE_DATE_EPOCH' >&2
    exit 1
  }
fi
export SOURCE_DATE_EPOCH CGO_ENABLED=0 GOOS=linux TZ=UTC LC_ALL=C
umask 022

# package_version turns what git says into a version that dpkg and rpm sort as
# meant: v1.2.3-rc1 is before v1.2.3, v1.2.3-4-gabc is after it, a commit without
# a tag is before every release.
package_version() {
  local v=${1#v} dirty=''
  if [[ $v == *-dirty ]]; then v=${v%-dirty} dirty=+dirty; fi
  if [[ ! $v =~ ^[0-9]+\.[0-9]+ ]]; then v="0~git$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y%m%d.%H%M%S).$v"; fi
  if [[ $v =~ ^(.*)-([0-9]+)-g([0-9a-f]+)$ ]]; then v="${BASH_REMATCH[1]}+${BASH_REMATCH[2]}.g${BASH_REMATCH[3]}"; fi
  v=${v/-/\~}
  printf '%s\n' "${v//-/.}$dirty"
}

# pack compresses its arguments in place, without name and time.
pack() { gzip -9 -n -f "$@"; }

# licenses prints those of every module that is linked into the program.
licenses() {
  local path version dir file
  $GO list -deps -f '{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}} {{.Dir}}{{end}}{{end}}' ./cmd/s3syncd | sort -u |
    while read -r path version dir; do
      for file in "$dir"/{LICENSE,LICENCE,COPYING,NOTICE}*; do
        printf '==== %s %s: %s\n\n' "$path" "$version" "${file##*/}"
        cat "$file"
        printf '\n\n'
      done
    done
  printf '==== Go %s\n\n' "$($GO env GOVERSION)"
  cat "$($GO env GOROOT)/LICENSE"
}

PKG_VERSION=$(package_version "$VERSION")
export PKG_VERSION ARCH STAGE
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$DIST"

STAGE=$work/common
mkdir -p "$STAGE"
GOARCH=$($GO env GOHOSTARCH) $GO build -trimpath -buildvcs="$BUILDVCS" -ldflags "-s -w -X main.version=$VERSION" -o "$work/host" ./cmd/s3syncd
"$work/host" generate --man "$STAGE/man" --completions "$STAGE/completions" --configuration deploy/s3syncd.example.yaml
pack "$STAGE"/man/man?/*
cp CHANGELOG.md "$STAGE/changelog"
{
  printf 's3syncd (%s-1) unstable; urgency=medium\n\n  * What has changed is in changelog.gz.\n\n' "$PKG_VERSION"
  printf ' -- The s3syncd authors <s3syncd@users.noreply.github.com>  %s\n' "$(date -u -R -d "@$SOURCE_DATE_EPOCH")"
} >"$STAGE/changelog.Debian"
pack "$STAGE/changelog" "$STAGE/changelog.Debian"

for ARCH in $ARCHES; do
  export GOARCH=$ARCH
  STAGE=$work/$ARCH
  cp -r "$work/common" "$STAGE"
  $GO build -trimpath -buildvcs="$BUILDVCS" -ldflags "-s -w -X main.version=$VERSION" -o "$STAGE/s3syncd" ./cmd/s3syncd
  licenses >"$STAGE/third-party-licenses"
  pack "$STAGE/third-party-licenses"
  # The modules are in the cache of the build: nothing else may decide what is found.
  GOPROXY=off "$CYCLONEDX" bin -json -licenses -std -noserial -notimestamp -version "$VERSION" \
    -output "$DIST/s3syncd_${PKG_VERSION}_$ARCH.cdx.json" "$STAGE/s3syncd" 2>"$work/sbom.log" ||
    { cat "$work/sbom.log" >&2; exit 1; }
  for format in $FORMATS; do
    "$NFPM" package --config deploy/package/nfpm.yaml --packager "$format" --target "$DIST/"
  done
done
cd "$DIST"
files=(*.deb *.rpm *.cdx.json)
sha256sum -- "${files[@]}" >SHA256SUMS
