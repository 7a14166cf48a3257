//! Measures an exported model: whether its pictures show what their captions say, whether the sizes that condition it do
//! what they should, and how good its pictures are.
//!
//! Captions are of combinations that no training picture shows. A classifier that never saw the model judges, so every
//! rate here is also limited by its own, which are measured first.

pub mod bench;
pub mod captions;
pub mod compare;
pub mod draw;
mod features;
pub mod figures;
pub mod fit;
pub mod frechet;
mod pages;
pub mod quality;
mod sheets;
pub mod sizes;

use std::{
    fs,
    io::{self, Write as _},
    path::PathBuf,
    time::Instant,
};

use anyhow::Context as _;
pub use bench::Bench;
pub use captions::quick_look;
use clap::ValueEnum;
use figures::Estimate;
use pages::FIGURES;
use sdxl_models::autograd::Precision;
use serde::Serialize;

use crate::{
    TrainError,
    classifier::{Accuracy, Classifier},
    data::Pictures,
    recipe::Recipe,
    stop::Stop,
    threads::Team,
};

/// What to measure, and where to write it.
#[derive(Clone, Debug, clap::Args)]
pub struct EvaluateArgs {
    /// The recipe that the model was trained by
    #[arg(long, value_name = "FILE")]
    pub recipe: PathBuf,
    /// Folder of this model's runs; the classifier is kept there
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// The exported model: holds base and perhaps refiner
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Folder of model.md, whose figures are replaced, and of pictures
    #[arg(long, value_name = "DIR", default_value = "docs")]
    pub docs: PathBuf,
    /// How many held-out captions to draw
    #[arg(long, value_name = "N", default_value_t = 400, value_parser = clap::value_parser!(u16).range(1..))]
    pub captions: u16,
    /// The kernels to draw with
    #[arg(long, value_enum, default_value_t = Kernels::Bf16)]
    pub kernels: Kernels,
    /// Only draw 60 captions, and print how often they are right
    #[arg(long)]
    pub quick: bool,
}

/// The kernels to draw with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
pub enum Kernels {
    /// Those that serve, in f32
    Served,
    /// Those of training, in f32
    F32,
    /// Those of training, in bf16 where there is a matrix unit: the fastest
    Bf16,
}

impl Kernels {
    fn precision(self) -> Option<Precision> {
        match self {
            Self::Served => None,
            Self::F32 => Some(Precision::F32),
            Self::Bf16 => Some(Precision::Bf16),
        }
    }

    /// As the page says it.
    fn name(self) -> &'static str {
        match self {
            Self::Served => "the kernels that serve",
            Self::F32 => "the kernels of training in f32",
            Self::Bf16 => "the kernels of training in bf16",
        }
    }
}

/// All that was measured.
#[derive(Debug, Serialize)]
struct Figures {
    kernels: Kernels,
    classifier: Vec<Accuracy>,
    captions: captions::Captions,
    autoencoder: quality::Autoencoder,
    sharpness: Vec<sizes::Sharpness>,
    /// Along height, then along width.
    crops: [(Vec<sizes::Crop>, Estimate); 2],
    buckets: Vec<sizes::Bucket>,
    refiner: Option<quality::Refined>,
    /// Of as many true renderings, and of the model.
    frechet: [Frechet; 2],
}

/// Fréchet distances.
#[derive(Clone, Copy, Debug, Serialize)]
struct Frechet {
    /// By what is shown.
    shown: Estimate,
    /// By that and by how sharp it is.
    whole: Estimate,
}

impl From<&quality::Distance> for Frechet {
    fn from(distance: &quality::Distance) -> Self {
        Self { shown: distance.shown.estimate, whole: distance.whole.estimate }
    }
}

/// Measures the model, prints how far it is, and writes `model.md` with its pictures, and `evaluation.json` beside the
/// runs.
///
/// # Errors
/// The recipe or the model is not usable, or a file cannot be written.
pub fn evaluate(args: &EvaluateArgs) -> anyhow::Result<()> {
    let recipe = Recipe::open(&args.recipe)?;
    let page = args.docs.join("model.md");
    pages::check(FIGURES, &page)?;
    let stop = Stop::on_signals()?;
    let classifier = Classifier::load_or_train(&recipe, &args.out, &stop)?;
    let mut painter = draw::Painter::open(&args.model)?;
    painter.precision = args.kernels.precision();
    let team = Team::of_all_processors()?;
    let bench = Bench { painter, classifier, team, buckets: Pictures::new(&recipe).buckets() };
    if args.quick {
        say(&quick_look(&bench, 60)?);
        return Ok(());
    }
    let figures = measure(&bench, args, &stop)?;
    let path = args.out.join("evaluation.json");
    let json = serde_json::to_string_pretty(&figures)?;
    fs::write(&path, json).with_context(|| format!("{}: cannot be written", path.display()))?;
    sheets::write(&bench, &figures, &args.docs.join("pictures"))?;
    pages::write(FIGURES, &pages::text(&figures)?, &page)
}

fn measure(bench: &Bench, args: &EvaluateArgs, stop: &Stop) -> anyhow::Result<Figures> {
    let count = usize::from(args.captions);
    // The shares of work that each measurement is worth, at 400 captions: 100, 200, 32 and so on.
    let part = |parts: usize| (count * parts / 400).max(4);
    let started = Instant::now();
    let at = |what: &str| {
        say(&format!("{:>5.0} s  {what}", started.elapsed().as_secs_f64()));
        match stop.reason() {
            Some(_) => Err(TrainError::Interrupted { what: "measuring" }),
            None => Ok(()),
        }
    };
    at("the classifier, on true renderings")?;
    let classifier = bench.classifier.accuracy_on_truth(part(1000))?;
    at("held-out captions")?;
    let captions = captions::captions(bench, count, part(100))?;
    for rate in &captions.mixed {
        at(&format!("  {}: {}", rate.aspect.name(), rate.rate.percent()))?;
    }
    at("the autoencoder")?;
    let autoencoder = quality::autoencoder(bench, &args.model, part(200))?;
    at("sharpness by original size")?;
    let sharpness = sizes::sharpness(bench, &args.model, part(32))?;
    at("places by crop")?;
    let crops = [sizes::crops(bench, 0, part(32))?, sizes::crops(bench, 1, part(32))?];
    at("all sizes")?;
    let buckets = sizes::buckets(bench, part(60))?;
    at("the refiner")?;
    let refiner = quality::refiner(bench, part(120))?;
    at("the Fréchet distance")?;
    let (prompts, pictures) = &captions.drawn[0];
    let truth = quality::Truth::new(bench, prompts)?;
    let frechet = [truth.floor()?, truth.distance(pictures)?];
    at("done")?;
    let kernels = args.kernels;
    let frechet = frechet.each_ref().map(Frechet::from);
    Ok(Figures { kernels, classifier, captions, autoencoder, sharpness, crops, buckets, refiner, frechet })
}

fn say(line: &str) {
    // A closed terminal is no reason to stop measuring.
    let _ = writeln!(io::stderr(), "{line}");
}
