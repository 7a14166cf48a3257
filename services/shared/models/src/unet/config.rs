//! `unet/config.json`: diffusers' `UNet2DConditionModel`, as far as SDXL's kind uses it.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{ModelError, config::read_json};

/// A checked UNet configuration. Every list has one entry for each down block; those of the up path are in its order.
#[derive(Clone, Debug, PartialEq)]
pub struct UnetConfig {
    /// Channels of the latents.
    pub in_channels: usize,
    /// Channels predicted.
    pub out_channels: usize,
    /// The default picture's side in latents.
    pub sample_size: Option<usize>,
    /// Channels of each level.
    pub block_out_channels: Vec<usize>,
    /// Whether each down block has attention.
    pub down_attention: Vec<bool>,
    /// Whether each up block has attention.
    pub up_attention: Vec<bool>,
    /// Residual blocks of each down block; an up block has one more.
    pub layers_per_block: Vec<usize>,
    /// Transformer blocks after each residual block on the way down; the last is the middle's too.
    pub transformer_layers_per_block: Vec<usize>,
    /// The same on the way up.
    pub reverse_transformer_layers_per_block: Vec<usize>,
    /// Attention heads of each level: what diffusers calls `attention_head_dim`.
    pub num_attention_heads: Vec<usize>,
    /// Width of `prompt_embeds`.
    pub cross_attention_dim: usize,
    /// Groups of the normalizations.
    pub norm_num_groups: usize,
    /// Epsilon of the residual blocks' normalizations.
    pub norm_eps: f32,
    /// Width of the time embedding.
    pub time_embed_dim: usize,
    /// Fourier features of each of `time_ids`.
    pub addition_time_embed_dim: usize,
    /// Width of pooled text and all time features together.
    pub projection_class_embeddings_input_dim: usize,
    /// Whether cosines come before sines.
    pub flip_sin_to_cos: bool,
    /// Shift of the frequencies' spacing.
    pub freq_shift: f32,
    /// Whether the transformers' outer projections are stored as matrices and not as 1 x 1 convolutions.
    pub use_linear_projection: bool,
    /// Attention scores in f32 whatever the model's type.
    pub upcast_attention: bool,
}

/// A value for all levels, or one for each.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum PerBlock {
    One(usize),
    Each(Vec<usize>),
}

impl PerBlock {
    fn expand(self, blocks: usize, path: &Path, key: &str) -> Result<Vec<usize>, ModelError> {
        match self {
            Self::One(value) => Ok(vec![value; blocks]),
            Self::Each(values) if values.len() == blocks => Ok(values),
            Self::Each(values) => {
                let why = format!("{} values for {blocks} blocks", values.len());
                Err(ModelError::contradicting(path, key, why))
            }
        }
    }
}

/// The keys as they stand in the file; what is missing or null takes the default of diffusers' constructor.
#[derive(Deserialize)]
struct File {
    in_channels: Option<usize>,
    out_channels: Option<usize>,
    sample_size: Option<PerBlock>,
    block_out_channels: Option<Vec<usize>>,
    down_block_types: Option<Vec<String>>,
    up_block_types: Option<Vec<String>>,
    layers_per_block: Option<PerBlock>,
    transformer_layers_per_block: Option<PerBlock>,
    reverse_transformer_layers_per_block: Option<PerBlock>,
    attention_head_dim: Option<PerBlock>,
    num_attention_heads: Option<PerBlock>,
    cross_attention_dim: Option<PerBlock>,
    norm_num_groups: Option<usize>,
    norm_eps: Option<f32>,
    time_embedding_dim: Option<usize>,
    addition_time_embed_dim: Option<usize>,
    projection_class_embeddings_input_dim: Option<usize>,
    flip_sin_to_cos: Option<bool>,
    freq_shift: Option<f32>,
    use_linear_projection: Option<bool>,
    upcast_attention: Option<bool>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// Keys that change the network and have one value here, their default in diffusers but for the addition embedding.
const FIXED: [(&str, &str); 24] = [
    ("act_fn", r#""silu""#),
    ("addition_embed_type", r#""text_time""#),
    ("attention_type", r#""default""#),
    ("center_input_sample", "false"),
    ("class_embed_type", "null"),
    ("class_embeddings_concat", "false"),
    ("conv_in_kernel", "3"),
    ("conv_out_kernel", "3"),
    ("cross_attention_norm", "null"),
    ("downsample_padding", "1"),
    ("dual_cross_attention", "false"),
    ("encoder_hid_dim", "null"),
    ("encoder_hid_dim_type", "null"),
    ("mid_block_only_cross_attention", "false"),
    ("mid_block_scale_factor", "1"),
    ("mid_block_type", r#""UNetMidBlock2DCrossAttn""#),
    ("num_class_embeds", "null"),
    ("only_cross_attention", "false"),
    ("resnet_out_scale_factor", "1"),
    ("resnet_skip_time_act", "false"),
    ("resnet_time_scale_shift", r#""default""#),
    ("time_cond_proj_dim", "null"),
    ("time_embedding_act_fn", "null"),
    ("time_embedding_type", r#""positional""#),
];

impl UnetConfig {
    /// Reads `path`, a UNet's `config.json`.
    ///
    /// # Errors
    /// The file is missing or no JSON of the right types, asks for something that is not implemented, or contradicts
    /// itself; the message names file and key.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        Self::check(read_json(path)?, path)
    }

    /// Reads the text of a `config.json`; `path` is only named in errors.
    ///
    /// # Errors
    /// As [`UnetConfig::open`].
    pub fn from_json(text: &str, path: &Path) -> Result<Self, ModelError> {
        let file = serde_json::from_str(text)
            .map_err(|e| ModelError::ParseConfig { path: path.to_owned(), why: e.to_string() })?;
        Self::check(file, path)
    }

    /// Width of `pooled_prompt_embeds`: what is left of the added embedding beside five time ids with an aesthetic
    /// score, six without.
    #[must_use]
    pub fn pooled_projection_dim(&self, requires_aesthetics_score: bool) -> usize {
        let time_ids = if requires_aesthetics_score { 5 } else { 6 };
        self.projection_class_embeddings_input_dim.saturating_sub(time_ids * self.addition_time_embed_dim)
    }

    /// Times that the size is halved on the way down.
    #[must_use]
    pub fn downsamplers(&self) -> usize {
        self.block_out_channels.len() - 1
    }

    fn check(file: File, path: &Path) -> Result<Self, ModelError> {
        reject_unsupported(&file.rest, path)?;
        let block_out_channels = file.block_out_channels.unwrap_or_else(|| vec![320, 640, 1280, 1280]);
        let blocks = block_out_channels.len();
        let (down_attention, up_attention) =
            block_types(file.down_block_types, file.up_block_types, blocks, path)?;
        let expand = |value: Option<PerBlock>, default, key| {
            value.unwrap_or(PerBlock::One(default)).expand(blocks, path, key)
        };
        let transformer_layers_per_block =
            expand(file.transformer_layers_per_block, 1, "transformer_layers_per_block")?;
        let reverse_transformer_layers_per_block = match file.reverse_transformer_layers_per_block {
            Some(value) => value.expand(blocks, path, "reverse_transformer_layers_per_block")?,
            None => transformer_layers_per_block.iter().rev().copied().collect(),
        };
        let contexts = expand(file.cross_attention_dim, 1280, "cross_attention_dim")?;
        let missing = |key| ModelError::contradicting(path, key, "is missing, and text_time needs it");
        let config = Self {
            in_channels: file.in_channels.unwrap_or(4),
            out_channels: file.out_channels.unwrap_or(4),
            sample_size: file.sample_size.and_then(|size| match size {
                PerBlock::One(side) => Some(side),
                PerBlock::Each(sides) => sides.first().copied(),
            }),
            time_embed_dim: file
                .time_embedding_dim
                .unwrap_or(block_out_channels.first().map_or(0, |c| c * 4)),
            block_out_channels,
            down_attention,
            up_attention,
            layers_per_block: expand(file.layers_per_block, 2, "layers_per_block")?,
            transformer_layers_per_block,
            reverse_transformer_layers_per_block,
            num_attention_heads: expand(
                file.num_attention_heads.or(file.attention_head_dim),
                8,
                "attention_head_dim",
            )?,
            cross_attention_dim: contexts.first().copied().unwrap_or(0),
            norm_num_groups: file.norm_num_groups.unwrap_or(32),
            norm_eps: file.norm_eps.unwrap_or(1e-5),
            addition_time_embed_dim: file
                .addition_time_embed_dim
                .ok_or_else(|| missing("addition_time_embed_dim"))?,
            projection_class_embeddings_input_dim: file
                .projection_class_embeddings_input_dim
                .ok_or_else(|| missing("projection_class_embeddings_input_dim"))?,
            flip_sin_to_cos: file.flip_sin_to_cos.unwrap_or(true),
            freq_shift: file.freq_shift.unwrap_or(0.0),
            use_linear_projection: file.use_linear_projection.unwrap_or(false),
            upcast_attention: file.upcast_attention.unwrap_or(false),
        };
        if contexts.iter().any(|c| *c != config.cross_attention_dim) {
            let value = format!("{contexts:?}");
            return Err(ModelError::unsupported(
                path,
                "cross_attention_dim",
                value,
                "one width for all blocks",
            ));
        }
        config.contradictions(path)?;
        Ok(config)
    }

    /// What cannot be built, or would panic or divide by zero in building.
    fn contradictions(&self, path: &Path) -> Result<(), ModelError> {
        let wrong = |key: &str, why: String| Err(ModelError::contradicting(path, key, why));
        if self.in_channels != self.out_channels {
            let (taken, given) = (self.in_channels, self.out_channels);
            return wrong("out_channels", format!("{given} channels come out where {taken} go in"));
        }
        let last = self.block_out_channels.len() - 1;
        for (i, (channels, heads)) in
            self.block_out_channels.iter().zip(&self.num_attention_heads).enumerate()
        {
            let attends = i == last || self.down_attention[i] || self.up_attention[last - i];
            if self.norm_num_groups == 0 || *channels == 0 || !channels.is_multiple_of(self.norm_num_groups) {
                let groups = self.norm_num_groups;
                return wrong(
                    "norm_num_groups",
                    format!("{groups} groups do not divide {channels} channels"),
                );
            }
            if attends && (*heads == 0 || !channels.is_multiple_of(*heads)) {
                return wrong(
                    "attention_head_dim",
                    format!("{heads} heads do not divide {channels} channels"),
                );
            }
        }
        let timestep_features = self.block_out_channels[0];
        for (key, width) in [
            ("addition_time_embed_dim", self.addition_time_embed_dim),
            ("block_out_channels", timestep_features),
        ] {
            if width < 2 || !width.is_multiple_of(2) {
                return wrong(key, format!("{width} is no even number of sines and cosines"));
            }
        }
        if self.layers_per_block.contains(&0) {
            return wrong("layers_per_block", "0 layers".into());
        }
        if self.projection_class_embeddings_input_dim <= 5 * self.addition_time_embed_dim {
            let (width, each) = (self.projection_class_embeddings_input_dim, self.addition_time_embed_dim);
            return wrong(
                "projection_class_embeddings_input_dim",
                format!("{width} has no room for five time ids of {each} features and pooled text"),
            );
        }
        Ok(())
    }
}

/// Whether a value stands for the one that is supported: null for false or a default, `[false, false]` for false, and
/// 1.0 for 1.
fn stands_for(value: &Value, supported: &Value) -> bool {
    match (value, supported) {
        (Value::Null, _) => true,
        (Value::Array(values), Value::Bool(_)) => values.iter().all(|v| v == supported),
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        _ => value == supported,
    }
}

fn reject_unsupported(rest: &Map<String, Value>, path: &Path) -> Result<(), ModelError> {
    for (key, supported) in FIXED {
        // A UNet without its added embedding has a null there, and is not SDXL's.
        let default = if key == "addition_embed_type" { Some(&Value::Null) } else { None };
        let Some(value) = rest.get(key).or(default) else { continue };
        let fixed: Value = serde_json::from_str(supported)
            .map_err(|e| ModelError::ParseConfig { path: path.to_owned(), why: e.to_string() })?;
        let required = key == "addition_embed_type" && value.is_null();
        if required || !stands_for(value, &fixed) {
            return Err(ModelError::unsupported(path, key, value, supported));
        }
    }
    Ok(())
}

/// Which blocks have attention, down and up.
fn block_types(
    down: Option<Vec<String>>,
    up: Option<Vec<String>>,
    blocks: usize,
    path: &Path,
) -> Result<(Vec<bool>, Vec<bool>), ModelError> {
    let words = |names: [&str; 4]| names.map(str::to_owned).to_vec();
    let [cross, plain] = ["CrossAttnDownBlock2D", "DownBlock2D"];
    let down = down.unwrap_or_else(|| words([cross, cross, cross, plain]));
    let [cross_up, plain_up] = ["CrossAttnUpBlock2D", "UpBlock2D"];
    let up = up.unwrap_or_else(|| words([plain_up, cross_up, cross_up, cross_up]));
    let read = |names: &[String], key: &str, cross: &str, plain: &str| {
        if names.len() != blocks || blocks == 0 {
            let why = format!("{} blocks for {blocks} of block_out_channels", names.len());
            return Err(ModelError::contradicting(path, key, why));
        }
        let attention = |name: &String| match name.as_str() {
            name if name == cross => Ok(true),
            name if name == plain => Ok(false),
            _ => Err(ModelError::unsupported(path, key, format!("{name:?}"), &format!("{cross}, {plain}"))),
        };
        names.iter().map(attention).collect::<Result<Vec<_>, _>>()
    };
    Ok((read(&down, "down_block_types", cross, plain)?, read(&up, "up_block_types", cross_up, plain_up)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = r#"{
        "act_fn": "silu", "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "attention_head_dim": [5, 10, 20], "block_out_channels": [320, 640, 1280], "class_embed_type": null,
        "cross_attention_dim": 2048, "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "mid_block_scale_factor": 1, "mid_block_type": "UNetMidBlock2DCrossAttn", "norm_eps": 1e-05,
        "only_cross_attention": false, "projection_class_embeddings_input_dim": 2816,
        "resnet_time_scale_shift": "default", "sample_size": 128, "transformer_layers_per_block": [1, 2, 10],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "upcast_attention": null,
        "use_linear_projection": true}"#;

    fn read(text: &str) -> Result<UnetConfig, ModelError> {
        UnetConfig::from_json(text, Path::new("unet/config.json"))
    }

    fn with(key: &str, value: Value) -> String {
        let mut config: Value = serde_json::from_str(BASE).unwrap();
        config[key] = value;
        config.to_string()
    }

    #[test]
    fn reads_sdxl_base() {
        let config = read(BASE).unwrap();
        assert_eq!(config.num_attention_heads, [5, 10, 20]);
        assert_eq!(config.reverse_transformer_layers_per_block, [10, 2, 1]);
        assert_eq!(config.down_attention, [false, true, true]);
        assert_eq!((config.layers_per_block.as_slice(), config.time_embed_dim), ([2, 2, 2].as_slice(), 1280));
        assert_eq!(config.pooled_projection_dim(false), 1280);
        assert!(config.flip_sin_to_cos && !config.upcast_attention);
    }

    #[test]
    fn num_attention_heads_wins() {
        let config = read(&with("num_attention_heads", [2, 4, 8].into())).unwrap();
        assert_eq!(config.num_attention_heads, [2, 4, 8]);
    }

    #[test]
    fn names_what_is_not_supported() {
        let cases: [(&str, Value, &str); 6] = [
            (
                "class_embed_type",
                "timestep".into(),
                r#"class_embed_type = "timestep" is not supported; supported: null"#,
            ),
            (
                "addition_embed_type",
                Value::Null,
                r#"addition_embed_type = null is not supported; supported: "text_time""#,
            ),
            ("time_cond_proj_dim", 256.into(), "time_cond_proj_dim = 256 is not supported; supported: null"),
            (
                "only_cross_attention",
                vec![true, false, false].into(),
                "only_cross_attention = [true,false,false]",
            ),
            ("up_block_types", vec!["UpBlock2D", "UpBlock2D", "AttnUpBlock2D"].into(), "\"AttnUpBlock2D\""),
            ("act_fn", "gelu".into(), "act_fn = \"gelu\""),
        ];
        for (key, value, expected) in cases {
            let error = read(&with(key, value)).unwrap_err().to_string();
            assert!(error.starts_with("unet/config.json: ") && error.contains(expected), "{error}");
        }
    }

    #[test]
    fn names_what_contradicts() {
        let cases: [(&str, Value, &str); 5] = [
            ("attention_head_dim", vec![5, 10].into(), "attention_head_dim: 2 values for 3 blocks"),
            ("attention_head_dim", 7.into(), "attention_head_dim: 7 heads do not divide 640 channels"),
            ("norm_num_groups", 33.into(), "norm_num_groups: 33 groups"),
            ("block_out_channels", vec![320, 640].into(), "down_block_types: 3 blocks for 2"),
            (
                "projection_class_embeddings_input_dim",
                Value::Null,
                "projection_class_embeddings_input_dim: is missing",
            ),
        ];
        for (key, value, expected) in cases {
            let error = read(&with(key, value)).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
