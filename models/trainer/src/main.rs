//! `sdxl-train`: trains a model by its recipe, stage by stage.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use candle_core::Device;
use clap::{Parser, Subcommand};
use sdxl_models::open_cuda;
use sdxl_trainer::{
    TrainError,
    commands::{self, data::DataArgs},
    evaluate::{
        self, EvaluateArgs,
        compare::{self, CompareArgs},
    },
    export,
    recipe::Recipe,
    stages::{
        self,
        context::{Context, Outcome},
        finish,
    },
    stop::Stop,
    threads,
};

/// The exit code of a command that was stopped before its end and can go on: EX_TEMPFAIL of sysexits.h.
const STOPPED: u8 = 75;

/// Training makes and frees large tensors all the time; the system's allocator gives each back to the kernel at once.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Trains an SDXL model on drawn scenes, as its recipe says. Stages follow one another: data, vae, base, refiner, export.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Draw a sheet of training pictures, and print their captions and conditioning
    Data(DataArgs),
    /// Train the autoencoder
    Vae(TrainArgs),
    /// Train the base denoiser and both text encoders
    Base(TrainArgs),
    /// Train the refiner
    Refiner(TrainArgs),
    /// Write the finished model in the layout that diffusers and `sdxl up` load
    Export(ExportArgs),
    /// Measure the finished model
    Evaluate(EvaluateArgs),
    /// Measure finished models beside each other, as Table 2 of the paper does
    Compare(CompareArgs),
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
    /// Go on from earlier stages as they are, though they are not finished
    #[arg(long)]
    unfinished: bool,
    /// Device that losses and gradients are computed on: cpu, or cuda:N for the Nth NVIDIA GPU, of a build with CUDA
    #[arg(long, value_name = "DEVICE", value_parser = device, default_value = "cpu")]
    device: Device,
}

#[derive(clap::Args)]
struct ExportArgs {
    #[command(flatten)]
    train: TrainArgs,
    /// Folder to write `base` and `refiner` to
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
}

fn device(text: &str) -> Result<Device, String> {
    let number = match text.split_once(':') {
        None if text == "cpu" => return Ok(Device::Cpu),
        None if text == "cuda" => Some(0),
        Some(("cuda", number)) => number.parse().ok(),
        _ => None,
    };
    let number = number.ok_or("cpu, or cuda:N for the Nth NVIDIA GPU, is wanted")?;
    open_cuda(number).map_err(|error| error.to_string())
}

fn minutes(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(minutes) if (0.0..=1e6).contains(&minutes) => Ok(minutes),
        _ => Err("a number from 0 to 1000000 is wanted".to_owned()),
    }
}

fn main() -> ExitCode {
    match run(&Args::parse().command) {
        Ok(Outcome::Finished) => ExitCode::SUCCESS,
        Ok(Outcome::Stopped(_)) => STOPPED.into(),
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "a command line's last word")]
            let () = eprintln!("error: {error:#}");
            match error.downcast_ref() {
                Some(TrainError::Interrupted { .. }) => STOPPED.into(),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn run(command: &Command) -> anyhow::Result<Outcome> {
    let done = |()| Outcome::Finished;
    match command {
        Command::Data(args) => commands::data::data(args).map(done),
        Command::Vae(args) => train(args, stages::vae::train),
        Command::Base(args) => train(args, stages::base::train),
        Command::Refiner(args) => train(args, stages::refiner::train),
        Command::Export(args) => write(args).map(done),
        Command::Evaluate(args) => measure(|| evaluate::evaluate(args)).map(done),
        Command::Compare(args) => measure(|| compare::compare(args)).map(done),
    }
}

fn measure(measure: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    threads::one_thread_per_kernel().context("starting anew with one thread per kernel")?;
    measure()
}

fn context(args: &TrainArgs) -> anyhow::Result<Context> {
    threads::one_thread_per_kernel().context("starting anew with one thread per kernel")?;
    let recipe = Recipe::open(&args.stage.recipe)?;
    let stop = Stop::on_signals()?.within(args.max_minutes);
    let (out, device) = (args.stage.out.clone(), args.device.clone());
    Ok(Context { recipe, out, stop, unfinished: args.unfinished, device })
}

fn train(
    args: &TrainArgs,
    stage: impl Fn(&Context) -> Result<Outcome, TrainError>,
) -> anyhow::Result<Outcome> {
    Ok(stage(&context(args)?)?)
}

#[expect(clippy::print_stdout, reason = "the command's result")]
fn write(args: &ExportArgs) -> anyhow::Result<()> {
    let context = context(&args.train)?;
    let sizes = export::export(&context.recipe, &finish::parts(&context)?, &args.model)?;
    println!("{sizes}");
    Ok(())
}
