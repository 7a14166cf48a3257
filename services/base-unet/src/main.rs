//! The base UNet stage: noise to latents.

use clap::Parser;
use sdxl_core::StageKind;
use sdxl_denoiser::DenoiserArgs;
use std::process::ExitCode;

/// SDXL's base UNet as a gRPC server: noise to latents.
///
/// Prints `listening http://ADDR` on standard output once its address is bound, and serves sdxl.v1.DenoiserService,
/// sdxl.v1.StageService, health and reflection there. Health says SERVING once the checkpoint is loaded and a step has
/// been run. SIGTERM lets running work finish.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(flatten)]
    denoiser: DenoiserArgs<50062>,
}

fn main() -> ExitCode {
    sdxl_denoiser::run(StageKind::BaseUnet, Args::parse().denoiser)
}
