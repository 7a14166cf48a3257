//! Models beside each other, as the paper's Table 2 has them: how far what they draw is from true renderings of the same
//! captions.

use std::{
    iter,
    path::{Path, PathBuf},
};

use super::{
    Bench, Kernels,
    bench::{self, Prompt},
    draw::{Options, Painter},
    figures::Estimate,
    pages::{self, COMPARISON},
    quality::{Distance, Truth},
    say, sheets,
    sizes::laplacian_energy,
};
use crate::{
    TrainError,
    classifier::{Classifier, Raster},
    data::Pictures,
    recipe::Recipe,
    stop::Stop,
    threads::Team,
};

/// Captions that are pictured, of each model.
const PICTURED: usize = 6;

/// Which models to measure, and where to write it.
#[derive(Clone, Debug, clap::Args)]
pub struct CompareArgs {
    /// Exported models, the worst first: each less the next is measured, too
    #[arg(required = true, value_name = "DIR")]
    pub models: Vec<PathBuf>,
    /// The recipe whose pictures the classifier learns, and whose square size is drawn
    #[arg(long, value_name = "FILE")]
    pub recipe: PathBuf,
    /// Folder where the classifier is kept
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Folder of model.md, whose comparison is replaced, and of pictures
    #[arg(long, value_name = "DIR", default_value = "docs")]
    pub docs: PathBuf,
    /// How many held-out captions to draw
    #[arg(long, value_name = "N", default_value_t = 400, value_parser = clap::value_parser!(u16).range(100..))]
    pub captions: u16,
    /// The kernels to draw with
    #[arg(long, value_enum, default_value_t = Kernels::Bf16)]
    pub kernels: Kernels,
}

/// What was measured of one model.
#[derive(Clone, Debug)]
pub(super) struct Compared {
    /// Its folder's.
    pub(super) name: String,
    pub(super) distance: Distance,
    /// Of what it draws, as a share of true renderings'.
    pub(super) sharpness: Estimate,
    /// Of the first captions.
    pub(super) pictures: Vec<Raster>,
}

/// All of them, and the captions.
#[derive(Clone, Debug)]
pub(super) struct Comparison {
    pub(super) kernels: Kernels,
    pub(super) prompts: Vec<Prompt>,
    /// Of as many other true renderings: no model does better but by chance.
    pub(super) floor: Distance,
    pub(super) models: Vec<Compared>,
}

/// Measures the models, prints how far it is, and writes the comparison in `model.md` with its picture.
///
/// # Errors
/// The recipe or a model is not usable, or a file cannot be written.
pub fn compare(args: &CompareArgs) -> anyhow::Result<()> {
    let recipe = Recipe::open(&args.recipe)?;
    let page = args.docs.join("model.md");
    pages::check(COMPARISON, &page)?;
    let stop = Stop::on_signals()?;
    let mut painters = args.models.iter().map(|model| painter(model, args.kernels));
    let Some(first) = painters.next().transpose()? else { return Ok(()) };
    let others = painters.collect::<Result<Vec<_>, _>>()?;
    let bench = Bench {
        painter: first,
        classifier: Classifier::load_or_train(&recipe, &args.out, &stop)?,
        team: Team::of_all_processors()?,
        buckets: Pictures::new(&recipe).buckets(),
    };
    let prompts = Prompt::held_out(usize::from(args.captions), |_| true);
    let orders = bench::orders(&prompts, &Options::new(bench.square()));
    let truth = Truth::new(&bench, &prompts)?;
    let floor = truth.floor()?;
    let mut models = Vec::new();
    for (model, painter) in args.models.iter().zip(iter::once(&bench.painter).chain(&others)) {
        if stop.reason().is_some() {
            return Err(TrainError::Interrupted { what: "comparing models" }.into());
        }
        let name = model.file_name().unwrap_or(model.as_os_str()).to_string_lossy().into_owned();
        say(&name);
        let pictures = painter.draw(&bench.team, &orders)?;
        let distance = truth.distance(&pictures)?;
        say(&format!("  {:.3}, with sharpness {:.3}", distance.shown.estimate, distance.whole.estimate));
        let sharpness = sharpness(&prompts, &pictures);
        let pictures = pictures.into_iter().take(PICTURED).collect();
        models.push(Compared { name, distance, sharpness, pictures });
    }
    let comparison = Comparison { kernels: args.kernels, prompts: prompts.clone(), floor, models };
    sheets::write_comparison(&comparison, &args.docs.join("pictures"))?;
    pages::write(COMPARISON, &pages::comparison(&comparison)?, &page)
}

fn painter(model: &Path, kernels: Kernels) -> Result<Painter, TrainError> {
    let mut painter = Painter::open(model)?;
    painter.precision = kernels.precision();
    Ok(painter)
}

/// Of pictures, as a share of the true renderings' of the same captions.
fn sharpness(prompts: &[Prompt], pictures: &[Raster]) -> Estimate {
    let rendered = prompts.iter().zip(pictures).map(|(p, picture)| Raster::of_scene(&p.scene, picture.size));
    let rendered: Vec<_> = rendered.map(|picture| laplacian_energy(&picture)).collect();
    Estimate::ratio(&pictures.iter().map(laplacian_energy).collect::<Vec<_>>(), &rendered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn true_renderings_are_as_sharp_as_themselves() {
        let prompts = Prompt::held_out(5, |_| true);
        let pictures: Vec<_> = prompts.iter().map(|p| Raster::of_scene(&p.scene, [64, 64])).collect();
        let same = sharpness(&prompts, &pictures);
        assert!((same.value - 1.0).abs() < 1e-12 && same.count == 5, "{same:?}");
        let flat: Vec<_> =
            pictures.iter().map(|p| Raster { pixels: vec![0.5; p.pixels.len()], ..*p }).collect();
        assert_eq!(sharpness(&prompts, &flat).value, 0.0);
    }
}
