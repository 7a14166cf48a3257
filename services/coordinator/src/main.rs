//! The coordinator's process.

use clap::Parser;
use sdxl_coordinator::{Args, Config};
use sdxl_runtime::{Shutdown, server, telemetry};
use std::{
    io::{self, Write},
    process::ExitCode,
};

/// Latents and embeddings come and go all the time; the system's allocator gives each back to the kernel at once, and gets
/// new pages for the next.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell if standard error is gone.
            let _ = writeln!(io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> anyhow::Result<()> {
    let args = Args::parse();
    let config = Config::try_from(&args)?;
    let _telemetry = telemetry::init("sdxl-coordinator", &args.telemetry)?;
    let shutdown = Shutdown::on_signals(args.server.stop_on_stdin_close)?;
    let listener = server::listen(&args.server).await?;
    sdxl_coordinator::serve(config, listener, shutdown).await
}
