# Every target works on a clean Debian machine with Rust; what else it needs, it installs.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.PHONY: run test test-kubernetes tools chart-readme soak lint cuda test-cuda bench bench-cuda bench-scale model model-sizes model-smoke help
PROMPT ?= a large red circle on a blue background

run: ## Build, start every service here, make a picture through gRPC and say where it is (PROMPT="...")
	cargo build --release --bins
	services/cli/run.sh "$(PROMPT)"

test: ## Install what the tests need and run them all
	integration-tests/python/setup.sh
	integration-tests/redis/setup.sh
	integration-tests/telemetry/promtool.sh || echo "without Prometheus: what it and promtool would say of metrics and alerts is not asked"
	integration-tests/telemetry/setup.sh --cached || echo "without the tests of traces: 'make tools' builds what they need"
	integration-tests/kubernetes/setup.sh --cached || echo "without the chart's tests: 'make tools' builds what they need"
	cargo build --workspace --bins
	cargo test --workspace --no-fail-fast

tools: ## Build helm, kube-apiserver, a collector and what else the tests run, once for their pinned versions (needs Go; 15 minutes)
	integration-tests/telemetry/setup.sh
	integration-tests/kubernetes/setup.sh

test-kubernetes: tools ## The chart against a real API server
	cargo build --workspace --bins
	KUBERNETES_TESTS=required cargo test --workspace --test kubernetes

chart-readme: tools ## Write helm/sdxl/README.md anew from the chart's values
	target/tools/bin/helm-docs --chart-search-root helm --sort-values-order file

soak: ## Ten minutes of faults, after which nothing may have grown or be left over
	integration-tests/redis/setup.sh
	cargo build --workspace --bins
	cargo test -p integration-tests --test soak -- --ignored --nocapture

lint: ## Formatting, clippy, and who may import whom
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	.ci/cargo-deny check -A unused-wrapper -A license-not-encountered bans licenses sources

model: ## Train the shipped model anew by its recipe and measure it, in target/model (hours; resumes)
	cargo build --release -p sdxl-trainer
	models/trainer/train.sh models/recipes/shapes.toml target/model target/model/shapes
	$${CARGO_TARGET_DIR:-target}/release/sdxl-train evaluate --recipe models/recipes/shapes.toml --out target/model --model target/model/shapes \
		--docs target/model/docs

model-sizes: ## The paper's Table 2 in small: train small models in three ways and measure them, in target/sizes (an hour and a half; resumes)
	cargo build --release -p sdxl-trainer
	models/trainer/sizes.sh target/sizes target/sizes/docs

model-smoke: ## Train every stage of a tiny model from nothing, and see the losses fall (minutes)
	cargo test --release -p sdxl-trainer --test training -- --ignored --nocapture

cuda: ## Build the stages for NVIDIA GPUs into target/cuda, without needing one (COMPUTE_CAP=90; 4 GB of disk, half an hour)
	services/shared/models/cuda.sh

test-cuda: ## Layers, networks and training with CUDA beside the CPU's, on an NVIDIA GPU or, where there is none, an emulated one (half an hour with the build)
	services/shared/models/cuda.sh test

bench-cuda: cuda ## On an NVIDIA GPU beside diffusers, compiled and not, at 1024 x 1024 (10 GB of disk)
	integration-tests/benches/cuda/run.sh

bench: ## Beside PyTorch and OpenVINO on the same weights (PARTS="unet shipped vae text picture start approximate", and f32 or bf16 for one alone; 25 GB of disk, 22 GB of memory)
	integration-tests/benches/run.sh $(PARTS)

bench-scale: ## What the coordinator costs and how far a cluster scales, with 92 simulated replicas (half an hour, 3 GB of memory)
	cargo build --release --bins -p sdxl-coordinator -p sdxl-text-encoder -p sdxl-base-unet -p sdxl-refiner -p sdxl-vae
	parts="scale double overload"; status=0; \
	if integration-tests/telemetry/setup.sh --cached; then parts="$$parts telemetry"; \
		else echo "without what telemetry costs: 'make tools' builds the collector that it needs"; fi; \
	for part in $$parts; do \
		cargo bench -p integration-tests --bench scale -- $$part || status=1; done; exit $$status

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
