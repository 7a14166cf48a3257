//! A text encoder's `config.json`.

use std::path::Path;

use serde::Deserialize;

use crate::{ModelError, config::read_json};

/// The activation of a text encoder's MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HiddenAct {
    /// `x * sigmoid(1.702 x)`, OpenAI's.
    QuickGelu,
    /// The exact one, by the error function: OpenCLIP's.
    Gelu,
}

/// A `CLIPTextConfig`; keys left out mean transformers' defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct ClipTextConfig {
    /// Number of token embeddings.
    pub vocab_size: usize,
    /// Width.
    pub hidden_size: usize,
    /// Width inside the MLPs.
    pub intermediate_size: usize,
    /// Width of the pooled embedding, where the encoder has a projection.
    pub projection_dim: usize,
    /// Depth.
    pub num_hidden_layers: usize,
    /// Attention heads; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Tokens in a prompt.
    pub max_position_embeddings: usize,
    /// The MLP's activation.
    pub hidden_act: HiddenAct,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
    /// The id at which the pooled state is taken; 2 is the old switch for "the greatest id".
    pub eos_token_id: u32,
}

#[derive(Deserialize)]
#[serde(default)]
struct File {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    projection_dim: Option<usize>,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    max_position_embeddings: usize,
    hidden_act: String,
    layer_norm_eps: f64,
    eos_token_id: u32,
}

impl Default for File {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            projection_dim: Some(512),
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: "quick_gelu".to_owned(),
            layer_norm_eps: 1e-5,
            eos_token_id: 49407,
        }
    }
}

impl ClipTextConfig {
    /// Reads `folder/config.json`.
    ///
    /// # Errors
    /// The file is missing or broken, an activation is unknown, or sizes contradict each other.
    pub fn load(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join("config.json");
        Self::check(&read_json(&path)?, &path)
    }

    /// Reads the text of a `config.json`; `path` is only named in errors.
    ///
    /// # Errors
    /// As [`ClipTextConfig::load`].
    pub fn from_json(text: &str, path: &Path) -> Result<Self, ModelError> {
        let file = serde_json::from_str(text)
            .map_err(|e| ModelError::ParseConfig { path: path.to_owned(), why: e.to_string() })?;
        Self::check(&file, path)
    }

    fn check(file: &File, path: &Path) -> Result<Self, ModelError> {
        let hidden_act = match file.hidden_act.as_str() {
            "quick_gelu" => HiddenAct::QuickGelu,
            "gelu" => HiddenAct::Gelu,
            other => return Err(ModelError::unsupported(path, "hidden_act", other, "quick_gelu, gelu")),
        };
        let projection_dim = file.projection_dim.unwrap_or(file.hidden_size);
        for (key, value, least) in [
            ("vocab_size", file.vocab_size, 1),
            ("hidden_size", file.hidden_size, 1),
            ("intermediate_size", file.intermediate_size, 1),
            ("projection_dim", projection_dim, 1),
            ("num_hidden_layers", file.num_hidden_layers, 1),
            ("num_attention_heads", file.num_attention_heads, 1),
            ("max_position_embeddings", file.max_position_embeddings, 3),
        ] {
            if value < least || value > 1 << 24 {
                return Err(ModelError::unsupported(path, key, value, &format!("{least}..=16777216")));
            }
        }
        if !file.hidden_size.is_multiple_of(file.num_attention_heads) {
            let why =
                format!("{} heads do not divide hidden_size {}", file.num_attention_heads, file.hidden_size);
            return Err(ModelError::contradicting(path, "num_attention_heads", why));
        }
        if !(file.layer_norm_eps.is_finite() && file.layer_norm_eps > 0.0) {
            return Err(ModelError::unsupported(
                path,
                "layer_norm_eps",
                file.layer_norm_eps,
                "a positive number",
            ));
        }
        Ok(Self {
            vocab_size: file.vocab_size,
            hidden_size: file.hidden_size,
            intermediate_size: file.intermediate_size,
            projection_dim,
            num_hidden_layers: file.num_hidden_layers,
            num_attention_heads: file.num_attention_heads,
            max_position_embeddings: file.max_position_embeddings,
            hidden_act,
            layer_norm_eps: file.layer_norm_eps,
            eos_token_id: file.eos_token_id,
        })
    }
}
