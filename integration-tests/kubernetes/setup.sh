#!/usr/bin/env bash
# Builds what the chart's tests run, at the versions that tools/*/go.mod pin, and lays it at target/tools: bin/ with helm,
# kube-apiserver, kubectl, etcd, kube-score and helm-docs, and crds/ with the definitions of the resources of others that the
# chart makes. All of it comes as Go modules, checked against go.sum or the checksum database. It is kept in the user's cache
# folder under a hash of the pins, so that it is built once for them and another checkout finds it there.
#   setup.sh            builds what is missing
#   setup.sh --cached   builds nothing: takes it from the cache, and exits with 1 where it is not there
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
root="$(cd "$here/../.." && pwd)"

gateway_api=sigs.k8s.io/gateway-api@v1.6.3
keda=github.com/kedacore/keda/v2@v2.21.0
cert_manager=github.com/cert-manager/cert-manager@v1.21.2
prometheus_operator=github.com/prometheus-operator/prometheus-operator@v0.92.1

pins="$(cat "$here"/tools/*/go.mod "$here"/tools/*/go.sum "$0" | sha256sum | cut -c1-16)"
kept="${XDG_CACHE_HOME:-$HOME/.cache}/sdxl-tools/$pins"

link() {
    mkdir -p "$root/target"
    ln -sfn "$kept" "$root/target/tools"
}

if [ -e "$kept/complete" ]; then
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

if ! command -v openssl >/dev/null; then
    echo "setup.sh: openssl is missing, which makes the API server's key: install it, then run this again" >&2
    exit 1
fi

# What goes into a binary does not hang on the caller's settings; how much of the machine it takes may (GOFLAGS=-p=2).
export GOTOOLCHAIN=auto CGO_ENABLED=0 GOWORK=off

build() { # FOLDER PACKAGE NAME [LDFLAGS]
    local begun=$SECONDS
    [ -e "$kept/bin/$3" ] || {
        (cd "$here/tools/$1" && nice go build -trimpath -buildvcs=false -ldflags="-s -w ${4:-}" -o "$kept/bin/$3.part" "$2")
        mv "$kept/bin/$3.part" "$kept/bin/$3"
    }
    echo "tools: $3 in $((SECONDS - begun)) s" >&2
}

crds() { # MODULE@VERSION FILE...
    local folder
    folder="$(go mod download -json "$1" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')"
    for file in "${@:2}"; do
        install -m 644 "$folder/$file" "$kept/crds/"
    done
}

mkdir -p "$kept/bin" "$kept/crds"
crds "$gateway_api" config/crd/standard/gateway.networking.k8s.io_grpcroutes.yaml
crds "$keda" config/crd/bases/keda.sh_{scaledobjects,triggerauthentications}.yaml
crds "$cert_manager" deploy/crds/cert-manager.io_certificates.yaml
crds "$prometheus_operator" example/prometheus-operator-crd/monitoring.coreos.com_{podmonitors,prometheusrules}.yaml
# The API server says what it is, for charts that ask; its own makefile does the same.
version="$(cd "$here/tools/cluster" && go list -m -f '{{.Version}}' k8s.io/kubernetes)"
stamp="-X k8s.io/component-base/version.gitVersion=$version"
build cluster helm.sh/helm/v4/cmd/helm helm
build cluster k8s.io/kubernetes/cmd/kube-apiserver kube-apiserver "$stamp"
build cluster k8s.io/kubernetes/cmd/kubectl kubectl "$stamp"
build cluster go.etcd.io/etcd/server/v3 etcd
build lint github.com/zegl/kube-score/cmd/kube-score kube-score
build docs github.com/norwoodj/helm-docs/cmd/helm-docs helm-docs
touch "$kept/complete"
link
