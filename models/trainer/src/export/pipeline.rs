//! One pipeline's folder.

use std::{fs, path::Path};

use candle_nn::VarBuilder;
use sdxl_models::{ModelError, text::ClipTextModel, unet::Unet, vae::Autoencoder};
use serde_json::{Value, json};

use super::{PIPELINES, Parts};
use crate::{
    StoredType, TrainError,
    data::Pictures,
    recipe::Recipe,
    stages::configs,
    store::{Initialisation, ParameterStore, Snapshot},
    vocabulary::{PAD, PAD_2, Vocabulary},
};

/// What the folder holds.
pub(super) struct Pipeline<'a> {
    name: &'static str,
    index: Value,
    buckets: Vec<[usize; 2]>,
    components: Vec<(&'static str, Component<'a>)>,
}

enum Component<'a> {
    Scheduler,
    Tokenizer { pad_token: &'static str },
    Network(Network<'a>),
}

struct Network<'a> {
    config: Value,
    file: &'static str,
    weights: &'a Snapshot,
    /// The tensors that the network has, to read the file back into.
    store: ParameterStore,
}

impl<'a> Pipeline<'a> {
    pub(super) fn base(recipe: &Recipe, parts: &'a Parts) -> Result<Self, TrainError> {
        let config = configs::text_encoder(recipe)?;
        let text_encoder = Network {
            config: configs::text_encoder_json(recipe),
            file: "model.safetensors",
            weights: &parts.text_encoder,
            store: store(|vb| ClipTextModel::new(vb, &config, false))?,
        };
        let config = configs::unet(recipe)?;
        let unet = denoiser(configs::unet_json(recipe), &parts.unet, store(|vb| Unet::new(vb, &config))?);
        Ok(Self {
            name: PIPELINES[0],
            index: configs::index_json(),
            buckets: Pictures::new(recipe).buckets(),
            components: vec![
                ("scheduler", Component::Scheduler),
                ("tokenizer", Component::Tokenizer { pad_token: PAD }),
                ("tokenizer_2", Component::Tokenizer { pad_token: PAD_2 }),
                ("text_encoder", Component::Network(text_encoder)),
                ("text_encoder_2", Component::Network(text_encoder_2(recipe, parts)?)),
                ("unet", Component::Network(unet)),
                ("vae", Component::Network(vae(recipe, parts)?)),
            ],
        })
    }

    pub(super) fn refiner(recipe: &Recipe, parts: &'a Parts) -> Result<Option<Self>, TrainError> {
        let Some(weights) = &parts.refiner else { return Ok(None) };
        let config = configs::refiner_unet(recipe)?;
        let unet = denoiser(configs::refiner_unet_json(recipe), weights, store(|vb| Unet::new(vb, &config))?);
        Ok(Some(Self {
            name: PIPELINES[1],
            index: configs::refiner_index_json(),
            buckets: Pictures::new(recipe).buckets(),
            components: vec![
                ("scheduler", Component::Scheduler),
                ("tokenizer_2", Component::Tokenizer { pad_token: PAD_2 }),
                ("text_encoder_2", Component::Network(text_encoder_2(recipe, parts)?)),
                ("unet", Component::Network(unet)),
                ("vae", Component::Network(vae(recipe, parts)?)),
            ],
        }))
    }

    /// Writes the folder into `root`; returns its parts' sizes.
    pub(super) fn write(&self, root: &Path) -> Result<Vec<(String, u64)>, TrainError> {
        let folder = root.join(self.name);
        let mut sizes = Vec::with_capacity(self.components.len());
        for (name, component) in &self.components {
            let own = folder.join(name);
            fs::create_dir_all(&own).map_err(TrainError::writing(&own))?;
            component.write(&own)?;
            sizes.push((format!("{}/{name}", self.name), size(&own)?));
        }
        write_json(&folder.join("training_buckets.json"), &json!(self.buckets))?;
        write_json(&folder.join("model_index.json"), &self.index)?;
        Ok(sizes)
    }
}

fn store<N>(
    network: impl FnOnce(&VarBuilder<'static>) -> Result<N, ModelError>,
) -> Result<ParameterStore, ModelError> {
    Ok(ParameterStore::build(Initialisation::new(0), network)?.0)
}

fn denoiser(config: Value, weights: &Snapshot, store: ParameterStore) -> Network<'_> {
    Network { config, file: "diffusion_pytorch_model.safetensors", weights, store }
}

fn text_encoder_2<'a>(recipe: &Recipe, parts: &'a Parts) -> Result<Network<'a>, TrainError> {
    let config = configs::text_encoder_2(recipe)?;
    Ok(Network {
        config: configs::text_encoder_2_json(recipe),
        file: "model.safetensors",
        weights: &parts.text_encoder_2,
        store: store(|vb| ClipTextModel::new(vb, &config, true))?,
    })
}

fn vae<'a>(recipe: &Recipe, parts: &'a Parts) -> Result<Network<'a>, TrainError> {
    let config = configs::vae(recipe, parts.scaling_factor)?;
    Ok(Network {
        config: configs::vae_json(recipe, parts.scaling_factor),
        file: "diffusion_pytorch_model.safetensors",
        weights: &parts.vae,
        store: store(|vb| Autoencoder::new(vb, &config))?,
    })
}

impl Component<'_> {
    fn write(&self, folder: &Path) -> Result<(), TrainError> {
        match self {
            Self::Scheduler => write_json(&folder.join("scheduler_config.json"), &configs::scheduler_json()),
            Self::Tokenizer { pad_token } => Vocabulary::new().write(folder, pad_token),
            Self::Network(network) => network.write(folder),
        }
    }
}

impl Network<'_> {
    /// Writes config and weights, and reads the weights back.
    fn write(&self, folder: &Path) -> Result<(), TrainError> {
        write_json(&folder.join("config.json"), &self.config)?;
        let path = folder.join(self.file);
        self.weights.write(&path, StoredType::F16)?;
        self.store.read(&path)?;
        for parameter in self.store.parameters() {
            if !parameter.values()?.iter().all(|value| value.is_finite()) {
                let why = "is not finite in f16".to_owned();
                return Err(TrainError::UnfitTensor { path, tensor: parameter.name().to_owned(), why });
            }
        }
        Ok(())
    }
}

fn write_json(path: &Path, value: &Value) -> Result<(), TrainError> {
    fs::write(path, format!("{value:#}\n")).map_err(TrainError::writing(path))
}

/// Bytes of a folder's files.
fn size(folder: &Path) -> Result<u64, TrainError> {
    let sum = || fs::read_dir(folder)?.map(|entry| Ok(entry?.metadata()?.len())).sum::<std::io::Result<_>>();
    sum().map_err(TrainError::reading(folder))
}
