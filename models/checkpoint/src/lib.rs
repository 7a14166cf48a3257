//! Makes SDXL checkpoints with seeded random weights, in the folder layout that diffusers publishes and of any size,
//! for tests, benchmarks and trying out a cluster without a model. Pictures made with them are coloured noise, but
//! every conditioning path visibly moves them, and activations stay near unit size at every depth.
//!
//! A weight is a function of seed, component, tensor name and position alone, computed with integers and two f32
//! operations: the same bits on every machine, so a test can keep expected results and make the weights anew.

mod tensors;
mod tokenizer;
mod values;
mod variant;
mod weights_file;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use sdxl_models::ModelError;
use serde_json::{Value, json};
use thiserror::Error;
pub use variant::Variant;
pub use weights_file::StoredType;

/// Why a checkpoint could not be made.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// A file could not be written.
    #[error("{}: cannot be written: {source}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A network refused the variant's configuration.
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl CheckpointError {
    fn writing(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Write { path, source }
    }
}

/// A component folder of a pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Component {
    /// Scheduler config.
    Scheduler,
    /// Vocabulary of the first encoder.
    Tokenizer,
    /// Vocabulary of the second encoder.
    Tokenizer2,
    /// CLIP-L's place; the base alone has it.
    TextEncoder,
    /// OpenCLIP-bigG's place.
    TextEncoder2,
    /// The denoiser.
    Unet,
    /// The autoencoder.
    Vae,
}

impl Component {
    /// All, in the order in which they are written.
    pub const ALL: [Self; 7] = [
        Self::Scheduler,
        Self::Tokenizer,
        Self::Tokenizer2,
        Self::TextEncoder,
        Self::TextEncoder2,
        Self::Unet,
        Self::Vae,
    ];

    /// The folder's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Scheduler => "scheduler",
            Self::Tokenizer => "tokenizer",
            Self::Tokenizer2 => "tokenizer_2",
            Self::TextEncoder => "text_encoder",
            Self::TextEncoder2 => "text_encoder_2",
            Self::Unet => "unet",
            Self::Vae => "vae",
        }
    }

    /// Whether only a base pipeline has it.
    fn is_base_only(self) -> bool {
        matches!(self, Self::Tokenizer | Self::TextEncoder)
    }
}

/// Which of the two pipelines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pipeline {
    /// `StableDiffusionXLPipeline`.
    Base,
    /// `StableDiffusionXLImg2ImgPipeline`, the refiner.
    Refiner,
}

/// What to make.
#[derive(Clone, Debug)]
pub struct RandomCheckpoint {
    /// The networks' dimensions.
    pub variant: Variant,
    /// The weights' seed.
    pub seed: u64,
    /// How weights are stored.
    pub dtype: StoredType,
    /// Side of the default picture in latents; SDXL's is 128.
    pub sample_size: u32,
    /// The component folders to write; the index is always written whole.
    pub components: Vec<Component>,
    /// Whether to write a refiner beside the base.
    pub refiner: bool,
}

impl RandomCheckpoint {
    /// A whole checkpoint of that variant, weights in f16 as SDXL's are published.
    #[must_use]
    pub fn new(variant: Variant, seed: u64) -> Self {
        Self {
            variant,
            seed,
            dtype: StoredType::F16,
            sample_size: 128,
            components: Component::ALL.to_vec(),
            refiner: true,
        }
    }

    /// Writes `out/base` and, if asked for, `out/refiner`; `progress` gets a line for each component.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self, out: &Path, progress: &mut dyn FnMut(&str)) -> Result<(), CheckpointError> {
        self.write_pipeline(&out.join("base"), Pipeline::Base, progress)?;
        if self.refiner {
            self.write_pipeline(&out.join("refiner"), Pipeline::Refiner, progress)?;
        }
        Ok(())
    }

    fn write_pipeline(
        &self,
        root: &Path,
        pipeline: Pipeline,
        progress: &mut dyn FnMut(&str),
    ) -> Result<(), CheckpointError> {
        fs::create_dir_all(root).map_err(CheckpointError::writing(root))?;
        for component in &self.components {
            if pipeline == Pipeline::Refiner && component.is_base_only() {
                continue;
            }
            let folder = root.join(component.name());
            fs::create_dir_all(&folder).map_err(CheckpointError::writing(&folder))?;
            let size = self.write_component(&folder, pipeline, *component)?;
            progress(&format!("{}: {:.1} MB", folder.display(), size as f64 / 1e6));
        }
        // Last, so that a checkpoint with an index is a whole one.
        write_json(&root.join("model_index.json"), &model_index(pipeline))
    }

    fn write_component(
        &self,
        folder: &Path,
        pipeline: Pipeline,
        component: Component,
    ) -> Result<u64, CheckpointError> {
        let config_name = match component {
            Component::Scheduler => {
                write_json(&folder.join("scheduler_config.json"), &variant::scheduler_config())?;
                return Ok(0);
            }
            Component::Tokenizer => return tokenizer::write(folder, "<|endoftext|>"),
            Component::Tokenizer2 => return tokenizer::write(folder, "!"),
            _ => folder.join("config.json"),
        };
        write_json(&config_name, &self.variant.config(pipeline, component, self.sample_size))?;
        let (file, specs) = match component {
            Component::Unet => ("diffusion_pytorch_model.safetensors", tensors::unet(&config_name)?),
            Component::Vae => ("diffusion_pytorch_model.safetensors", tensors::vae(&config_name)?),
            Component::TextEncoder => ("model.safetensors", tensors::text_encoder(folder, false)?),
            _ => ("model.safetensors", tensors::text_encoder(folder, true)?),
        };
        // Base and refiner have autoencoder and second text encoder in common, and each its own denoiser.
        let name = match (pipeline, component) {
            (Pipeline::Refiner, Component::Unet) => "refiner/unet",
            (_, other) => other.name(),
        };
        weights_file::write(&folder.join(file), &specs, self.dtype, &values::Source::new(self.seed, name))
    }
}

fn model_index(pipeline: Pipeline) -> Value {
    let both = pipeline == Pipeline::Base;
    let own = |library: &str, class: &str| json!([library, class]);
    let first = |class| if both { own("transformers", class) } else { json!([null, null]) };
    let mut index = json!({
        "_class_name": if both { "StableDiffusionXLPipeline" } else { "StableDiffusionXLImg2ImgPipeline" },
        "_diffusers_version": "0.19.0",
        "force_zeros_for_empty_prompt": both,
        "scheduler": own("diffusers", "EulerDiscreteScheduler"),
        "text_encoder": first("CLIPTextModel"),
        "text_encoder_2": own("transformers", "CLIPTextModelWithProjection"),
        "tokenizer": first("CLIPTokenizer"),
        "tokenizer_2": own("transformers", "CLIPTokenizer"),
        "unet": own("diffusers", "UNet2DConditionModel"),
        "vae": own("diffusers", "AutoencoderKL"),
    });
    if !both {
        index["requires_aesthetics_score"] = json!(true);
    }
    index
}

fn write_json(path: &Path, value: &Value) -> Result<(), CheckpointError> {
    fs::write(path, format!("{value:#}\n")).map_err(CheckpointError::writing(path))
}
