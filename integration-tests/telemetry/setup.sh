#!/usr/bin/env bash
# Builds the OpenTelemetry Collector that the telemetry tests run, from Go modules at the versions that collector/go.mod
# pins, and lays it at target/telemetry-tools/otelcol. It is kept in the user's cache folder under a hash of the pins, so
# that it is built once for them and another checkout finds it there.
#   setup.sh            builds it where it is missing
#   setup.sh --cached   builds nothing: takes it from the cache, and exits with 1 where it is not there
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
root="$(cd "$here/../.." && pwd)"

pins="$(cat "$here"/collector/{go.mod,go.sum,main.go} "$0" | sha256sum | cut -c1-16)"
kept="${XDG_CACHE_HOME:-$HOME/.cache}/sdxl-telemetry-tools/$pins"

link() {
    mkdir -p "$root/target"
    ln -sfn "$kept" "$root/target/telemetry-tools"
}

if [ -e "$kept/otelcol" ]; then
    link
    exit 0
fi
if [ "${1:-}" = --cached ]; then
    exit 1
fi
if ! command -v go >/dev/null; then
    echo "setup.sh: go is missing: install Go 1.21 or later (it fetches the version that go.mod names), then run this again" >&2
    exit 1
fi

# What goes into a binary does not hang on the caller's settings; how much of the machine it takes may (GOFLAGS=-p=2).
export GOTOOLCHAIN=auto CGO_ENABLED=0 GOWORK=off
mkdir -p "$kept"
begun=$SECONDS
(cd "$here/collector" && nice go build -trimpath -buildvcs=false -ldflags="-s -w" -o "$kept/otelcol.part" .)
mv "$kept/otelcol.part" "$kept/otelcol"
echo "tools: otelcol in $((SECONDS - begun)) s" >&2
link
