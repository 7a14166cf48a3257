//! What one coordinator costs and how far a cluster scales, with simulated replicas: `make bench-scale`, or one part of it
//! by `cargo bench -p integration-tests --bench scale -- scale|latency|double|overload|telemetry`. Needs the release binaries beside it.
//!
//! - `scale`: 64 base, 16 refiner, 8 VAE and 4 text-encoder replicas behind one coordinator. How busy the bottleneck is,
//!   what a picture costs the coordinator in processor time, latency and memory.
//! - `latency`: the first minute of that, the low load, by itself.
//! - `double`: twice the replicas, up to 64 base replicas: what comes out.
//! - `overload`: half as many requests again as the cluster can do, with deadlines. What is done in time, how fast the
//!   rest is refused, and what a small tenant notices of it.
//! - `telemetry`: what traces and metrics cost the coordinator that are sent to a real collector, or to one that never
//!   answers (`integration-tests/telemetry/setup.sh` builds the collector).
//!
//! Every replica is a process of its own, and all of them share the machine's processors with the coordinator and with
//! this load. So the profile (`profile.toml`) is that of an H200 slowed down until devices, and not processors, are what
//! is waited for; tensors have SDXL's full size. Step counts are drawn from 20 to 30.
//!
//! It is no test: it measures time. It ends with 1 where a figure misses its target.

mod cluster;
mod direct;
mod double;
mod figures;
mod load;
mod overload;
mod scale;
mod telemetry;

use figures::Figures;
use std::process::ExitCode;

fn main() -> ExitCode {
    // cargo itself adds --bench.
    let args: Vec<_> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let figures: Figures = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["scale"] => runtime.block_on(scale::run()),
        ["latency"] => runtime.block_on(scale::latency()),
        ["double"] => runtime.block_on(double::run()),
        ["overload"] => runtime.block_on(overload::run()),
        ["telemetry"] => runtime.block_on(telemetry::run()),
        _ => {
            let parts = "scale|latency|double|overload|telemetry";
            eprintln!("usage: cargo bench -p integration-tests --bench scale -- {parts}");
            return ExitCode::from(2);
        }
    };
    if figures.print() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
