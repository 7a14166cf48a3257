//! `sdxl-train`: trains a model by its recipe, stage by stage.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};
use sdxl_trainer::{
    TrainError,
    recipe::Recipe,
    stages::{self, context::{Context, Outcome}},
    stop::Stop,
    threads,
};

/// Trains an SDXL model on drawn scenes, as its recipe says. Stages follow one another: data, vae, base, refiner, export.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Draw the scenes and their captions
    Data(StageArgs),
    /// Train the autoencoder
    Vae(TrainArgs),
    /// Train the base denoiser and both text encoders
    Base(TrainArgs),
    /// Train the refiner
    Refiner(TrainArgs),
    /// Write the finished model in the layout that diffusers and `sdxl up` load
    Export(StageArgs),
    /// Measure the finished model
    Evaluate(StageArgs),
}

#[derive(clap::Args)]
struct StageArgs {
    /// The model's recipe
    #[arg(long, value_name = "FILE")]
    recipe: PathBuf,
    /// Folder of this model's runs
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

#[derive(clap::Args)]
struct TrainArgs {
    #[command(flatten)]
    stage: StageArgs,
    /// Stop after this time, with a checkpoint to go on from
    #[arg(long, value_name = "MINUTES", value_parser = minutes)]
    max_minutes: Option<f64>,
}

fn minutes(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(minutes) if (0.0..=1e6).contains(&minutes) => Ok(minutes),
        _ => Err("a number from 0 to 1000000 is wanted".to_owned()),
    }
}

fn main() -> anyhow::Result<()> {
    let command = Args::parse().command;
    match &command {
        Command::Vae(args) => train(args, stages::vae::train),
        _ => bail!("not written yet"),
    }
}

fn train(args: &TrainArgs, stage: impl Fn(&Context) -> Result<Outcome, TrainError>) -> anyhow::Result<()> {
    threads::one_thread_per_kernel().context("starting anew with one thread per kernel")?;
    let recipe = Recipe::open(&args.stage.recipe)?;
    let stop = Stop::on_signals()?.within(args.max_minutes);
    stage(&Context { recipe, out: args.stage.out.clone(), stop })?;
    Ok(())
}
