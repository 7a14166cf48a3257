#!/bin/sh
# Installs promtool, which is in Debian's package of Prometheus, for the tests of metrics and alerts, and does nothing where it
# is there. No server is started.
set -eu
if command -v promtool >/dev/null; then
    exit 0
fi
if [ "$(id -u)" = 0 ]; then
    sudo=
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    sudo=sudo
else
    echo "promtool.sh: promtool is missing: install prometheus as root, then run this again" >&2
    exit 1
fi
$sudo apt-get update -qq
# The package would start a server on the default port, which nobody here asks for.
$sudo env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends prometheus >/dev/null
