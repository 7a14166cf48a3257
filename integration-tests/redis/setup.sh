#!/bin/sh
# Installs redis-server for the tests, which start one each on a port of its own, and does nothing where it is there.
set -eu
if command -v redis-server >/dev/null; then
    exit 0
fi
if [ "$(id -u)" = 0 ]; then
    sudo=
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    sudo=sudo
else
    echo "setup.sh: redis-server is missing: install it as root, then run this again" >&2
    exit 1
fi
$sudo apt-get update -qq
# The package would start one on the default port, which nobody here asks for.
$sudo env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq redis-server >/dev/null
