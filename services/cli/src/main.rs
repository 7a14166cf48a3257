//! `sdxl`: a whole cluster on one machine, and a client of any cluster.

mod args;
mod bench;
mod connection;
mod console;
mod failure;
mod generate;
mod key;
mod model;
mod preview;
mod terminal;
mod up;

use args::{Cli, Command};
use clap::Parser;
use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let ended = match cli.command {
        Command::Up(args) => up::run(*args, &cli.terminal).await,
        Command::Generate(args) => generate::run(*args, &cli.terminal).await,
        Command::Bench(args) => bench::run(*args).await,
        Command::Model(args) => model::run(&args).await,
        Command::Key(args) => {
            key::run(&args);
            Ok(())
        }
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
