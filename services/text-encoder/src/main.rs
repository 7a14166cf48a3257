//! The text encoder stage: prompts to `prompt_embeds` and `pooled_prompt_embeds`.

mod engine;
mod load;

use clap::Parser;
use engine::TextEncoderEngine;
use sdxl_stage::{EngineKind, StageArgs, serve, simulated::SimulatedTextEncoder};
use std::{path::PathBuf, process::ExitCode};

/// SDXL's text encoders as a gRPC server: prompts to embeddings, for the base and, if given, for the refiner.
///
/// Prints `listening http://ADDR` on standard output once its address is bound, and serves sdxl.v1.TextEncoderService,
/// sdxl.v1.StageService, health and reflection there. Health says SERVING once the checkpoint is loaded and a text has
/// been encoded. SIGTERM lets running work finish.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// The base's checkpoint folder, with model_index.json, its text encoders and tokenizers
    #[arg(
        long,
        env = "SDXL_BASE",
        value_name = "DIR",
        required_unless_present = "engine",
        required_if_eq("engine", "candle")
    )]
    base: Option<PathBuf>,

    /// The refiner's checkpoint folder; its encoder is shared with the base's where they are the same
    #[arg(long, env = "SDXL_REFINER", value_name = "DIR")]
    refiner: Option<PathBuf>,

    #[command(flatten)]
    stage: StageArgs<50061>,
}

fn main() -> ExitCode {
    let Args { base, refiner, stage } = Args::parse();
    let (dtype, device, engine) = (stage.dtype.dtype(), stage.device, stage.engine.clone());
    match engine.kind {
        EngineKind::Candle => serve::text_encoder(&stage, move || {
            let base = engine.checkpoint("--base", base)?;
            TextEncoderEngine::load(&base, refiner.as_deref(), dtype, &device.open(sdxl_models::open_cuda)?)
        }),
        EngineKind::Simulated => {
            serve::text_encoder(&stage, move || SimulatedTextEncoder::load(engine.profile()?))
        }
    }
}
