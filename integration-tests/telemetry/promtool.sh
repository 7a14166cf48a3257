#!/bin/sh
# Takes Prometheus and promtool out of Debian's package of Prometheus, for the tests of metrics and alerts, and lays them at
# target/prometheus and target/promtool. Nothing is installed, so that no server is started; both are kept in the user's cache
# folder.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
kept="${XDG_CACHE_HOME:-$HOME/.cache}/sdxl-promtool"
if [ ! -x "$kept/promtool" ] || [ ! -x "$kept/prometheus" ]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    cd "$work"
    if ! apt-get download -qq prometheus 2>/dev/null; then
        if [ "$(id -u)" = 0 ]; then apt-get update -qq; else sudo -n apt-get update -qq; fi
        apt-get download -qq prometheus
    fi
    dpkg-deb -x prometheus_*.deb .
    mkdir -p "$kept"
    mv usr/bin/promtool usr/bin/prometheus "$kept/"
fi
mkdir -p "$root/target"
ln -sfn "$kept/promtool" "$root/target/promtool"
ln -sfn "$kept/prometheus" "$root/target/prometheus"
