#!/usr/bin/env bash
# What `make run` does: a whole cluster on this machine, one picture through it, and away again.
#   services/cli/run.sh "PROMPT" [sdxl generate's other flags]
set -euo pipefail
root="$(cd "$(dirname "$0")/../.." && pwd)"
bin="${CARGO_TARGET_DIR:-$root/target}/release"
out="$root/out"
mkdir -p "$out"

exec {cluster}< <(exec "$bin/sdxl" up --listen 127.0.0.1:0 --log warn)
pid=$!
stop() {
    kill "$pid" 2>/dev/null || true
    while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
}
trap stop EXIT

# `sdxl up` prints one line when the cluster can serve, or ends with its error.
read -r word url <&"$cluster" || exit 1
[ "$word" = ready ] || exit 1
"$bin/sdxl" generate "$@" --endpoint "$url" -o "$out/picture.png"
