//! A checkpoint folder in the layout that diffusers publishes: `model_index.json` and a folder for each component.

use std::{
    fs,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use sdxl_core::{SchedulerConfig, SchedulerConfigError, Size};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::{
    ModelError,
    config::{read_json, read_text},
};

/// Blocks of a weights file that enter the revision.
const REVISION_BLOCKS: u64 = 256;
/// Their size in bytes.
const REVISION_BLOCK_LEN: u64 = 4096;

/// Which pipeline a checkpoint is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PipelineKind {
    /// `StableDiffusionXLPipeline`: two text encoders, `time_ids` end in the target size.
    Base,
    /// `StableDiffusionXLImg2ImgPipeline`: one text encoder, `time_ids` end in the aesthetic score.
    Refiner,
}

/// Folders of a text encoder and its tokenizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncoderDir {
    /// Holds `config.json` and weights.
    pub text_encoder: PathBuf,
    /// Holds `vocab.json`, `merges.txt` and small JSON files.
    pub tokenizer: PathBuf,
}

/// A checkpoint folder whose index has been read.
#[derive(Clone, Debug)]
pub struct PipelineDir {
    root: PathBuf,
    name: String,
    kind: PipelineKind,
    text_encoder: Option<EncoderDir>,
    text_encoder_2: EncoderDir,
    force_zeros_for_empty_prompt: bool,
    requires_aesthetics_score: bool,
}

impl PipelineDir {
    /// Reads `path/model_index.json`. Keys left out mean the defaults of diffusers' constructors. A refiner's only
    /// encoder is found under `text_encoder_2`, or under `text_encoder` as some re-published copies have it.
    ///
    /// # Errors
    /// The index is missing or broken, names a pipeline that is not SDXL's, or lists no text encoder.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let index_path = path.join("model_index.json");
        let index: Map<String, Value> = read_json(&index_path)?;
        let listed = |key: &str| {
            index.get(key).and_then(Value::as_array).is_some_and(|a| a.iter().any(|v| !v.is_null()))
        };
        let encoder = |encoder: &str, tokenizer: &str| EncoderDir {
            text_encoder: path.join(encoder),
            tokenizer: path.join(tokenizer),
        };
        let (first, second) = match (listed("text_encoder"), listed("text_encoder_2")) {
            (true, true) => {
                (Some(encoder("text_encoder", "tokenizer")), encoder("text_encoder_2", "tokenizer_2"))
            }
            (false, true) => (None, encoder("text_encoder_2", "tokenizer_2")),
            (true, false) => {
                let tokenizer =
                    if listed("tokenizer") || !listed("tokenizer_2") { "tokenizer" } else { "tokenizer_2" };
                (None, encoder("text_encoder", tokenizer))
            }
            (false, false) => {
                let why = "lists neither text_encoder nor text_encoder_2";
                return Err(ModelError::contradicting(&index_path, "text_encoder_2", why));
            }
        };
        let kind = kind(&index_path, &index, first.is_some())?;
        Ok(Self {
            root: path.to_owned(),
            name: model_name(path),
            kind,
            text_encoder: first,
            text_encoder_2: second,
            force_zeros_for_empty_prompt: flag(&index_path, &index, "force_zeros_for_empty_prompt", true)?,
            requires_aesthetics_score: flag(&index_path, &index, "requires_aesthetics_score", false)?,
        })
    }

    /// The checkpoint's folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What to call the model: the folder's name, or its parent's where that is just `base` or `refiner`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Which pipeline it is for.
    #[must_use]
    pub fn kind(&self) -> PipelineKind {
        self.kind
    }

    /// The first text encoder (CLIP-L); a refiner has none.
    #[must_use]
    pub fn text_encoder(&self) -> Option<&EncoderDir> {
        self.text_encoder.as_ref()
    }

    /// The second text encoder (OpenCLIP-bigG), the one that pools.
    #[must_use]
    pub fn text_encoder_2(&self) -> &EncoderDir {
        &self.text_encoder_2
    }

    /// The denoiser's folder.
    #[must_use]
    pub fn unet(&self) -> PathBuf {
        self.root.join("unet")
    }

    /// The autoencoder's folder.
    #[must_use]
    pub fn vae(&self) -> PathBuf {
        self.root.join("vae")
    }

    /// Whether an absent negative prompt means zeros instead of the empty prompt's embeddings.
    #[must_use]
    pub fn force_zeros_for_empty_prompt(&self) -> bool {
        self.force_zeros_for_empty_prompt
    }

    /// Whether `time_ids` end in an aesthetic score.
    #[must_use]
    pub fn requires_aesthetics_score(&self) -> bool {
        self.requires_aesthetics_score
    }

    /// Parses `scheduler/scheduler_config.json`.
    ///
    /// # Errors
    /// The file is missing or broken, or asks for something that is not implemented.
    pub fn scheduler_config(&self) -> Result<SchedulerConfig, ModelError> {
        let path = self.root.join("scheduler").join("scheduler_config.json");
        SchedulerConfig::from_json(&read_text(&path)?).map_err(|e| match e {
            SchedulerConfigError::Unsupported { key, value, supported } => {
                ModelError::unsupported(&path, key, value, supported)
            }
            other => ModelError::ParseConfig { path, why: other.to_string() },
        })
    }

    /// The sizes that the checkpoint says it was trained at: `training_buckets.json` in its root, a list of
    /// `[height, width]`. `None` where there is no such file.
    ///
    /// # Errors
    /// The file is broken, empty, or holds a size that cannot be served.
    pub fn training_buckets(&self) -> Result<Option<Vec<Size>>, ModelError> {
        let path = self.root.join("training_buckets.json");
        if !path.exists() {
            return Ok(None);
        }
        let list: Vec<(u32, u32)> = read_json(&path)?;
        if list.is_empty() {
            return Err(ModelError::contradicting(&path, "[]", "lists no sizes"));
        }
        let bucket = |(height, width): (u32, u32)| {
            if [height, width].iter().any(|side| *side == 0 || side % sdxl_core::size::SIDE_MULTIPLE != 0) {
                let why = "not multiples of 8 pixels";
                return Err(ModelError::contradicting(&path, &format!("[{height}, {width}]"), why));
            }
            Ok(Size::new(height, width))
        };
        list.into_iter().map(bucket).collect::<Result<_, _>>().map(Some)
    }

    /// The first 16 hexadecimal digits of a SHA-256 that tells revisions of these component folders apart (paths
    /// relative to the root, as `unet`). For every file in them, in order of name, enter: its name and size; a small
    /// file (JSON, text) whole; of a safetensors file its header and 256 blocks of 4 KiB, evenly spaced. So it costs
    /// a megabyte of reading for each weights file, however large. Two checkpoints whose weights differ only between
    /// those blocks get the same revision: training and merging change every tensor and are told apart, tampering
    /// with single values need not be.
    ///
    /// # Errors
    /// A folder or file cannot be read.
    pub fn revision(&self, components: &[&str]) -> Result<String, ModelError> {
        let mut hash = Sha256::new();
        for component in components {
            let folder = self.root.join(component);
            let failed = || ModelError::reading(&folder, "a component folder of the checkpoint");
            let mut files = Vec::new();
            for entry in fs::read_dir(&folder).map_err(failed())? {
                let path = entry.map_err(failed())?.path();
                if path.is_file() {
                    files.push(path);
                }
            }
            files.sort();
            for path in files {
                hash_file(&mut hash, component, &path)
                    .map_err(ModelError::reading(&path, "a file of the checkpoint"))?;
            }
        }
        Ok(hash.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect())
    }
}

fn hash_file(hash: &mut Sha256, component: &str, path: &Path) -> std::io::Result<()> {
    let mut file = fs::File::open(path)?;
    let length = file.metadata()?.len();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    hash.update(format!("{component}/{name}\0{length}\0"));
    let mut take = |file: &mut fs::File, start: u64, length: u64| {
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(start))?;
        file.take(length).read_to_end(&mut bytes)?;
        hash.update(&bytes);
        std::io::Result::Ok(bytes)
    };
    let is_weights = path.extension().is_some_and(|e| e == "safetensors");
    if !is_weights || length <= REVISION_BLOCKS * REVISION_BLOCK_LEN {
        return take(&mut file, 0, length).map(drop);
    }
    let prefix = take(&mut file, 0, 8)?;
    let header = prefix.try_into().map_or(0, u64::from_le_bytes).min(length - 8);
    take(&mut file, 8, header)?;
    let last = length - REVISION_BLOCK_LEN;
    for i in 0..REVISION_BLOCKS {
        // In 128 bits: a length times a block's number may pass 64.
        let start = (u128::from(last) * u128::from(i) / u128::from(REVISION_BLOCKS - 1)) as u64;
        take(&mut file, start, REVISION_BLOCK_LEN)?;
    }
    Ok(())
}

/// The pipeline that the index is for; how many encoders it lists must fit.
fn kind(path: &Path, index: &Map<String, Value>, two_encoders: bool) -> Result<PipelineKind, ModelError> {
    let class = index.get("_class_name").and_then(Value::as_str).unwrap_or_default();
    match (class, two_encoders) {
        ("StableDiffusionXLPipeline", true) => Ok(PipelineKind::Base),
        ("StableDiffusionXLImg2ImgPipeline", false) => Ok(PipelineKind::Refiner),
        ("StableDiffusionXLPipeline", false) => Err(ModelError::contradicting(
            path,
            "text_encoder",
            "a StableDiffusionXLPipeline needs two text encoders",
        )),
        ("StableDiffusionXLImg2ImgPipeline", true) => {
            Err(ModelError::contradicting(path, "text_encoder", "a refiner has text_encoder_2 alone"))
        }
        (other, _) => {
            let supported = "StableDiffusionXLPipeline, StableDiffusionXLImg2ImgPipeline";
            Err(ModelError::unsupported(path, "_class_name", format!("{other:?}"), supported))
        }
    }
}

fn flag(path: &Path, index: &Map<String, Value>, key: &str, default: bool) -> Result<bool, ModelError> {
    match index.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(Value::Bool(b)) => Ok(*b),
        Some(other) => Err(ModelError::unsupported(path, key, other, "true, false")),
    }
}

fn model_name(path: &Path) -> String {
    let absolute = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let name = |p: &Path| p.file_name().map(|n| n.to_string_lossy().into_owned());
    match name(&absolute) {
        Some(own) if !matches!(own.as_str(), "base" | "refiner") => own,
        own => absolute.parent().and_then(name).or(own).unwrap_or_else(|| "sdxl".to_owned()),
    }
}

#[cfg(test)]
mod tests;
