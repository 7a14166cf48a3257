//! The three kinds of work that stages do, in the domain's words with tensors on the CPU.

mod denoise;

use bytes::Bytes;
use candle_core::Tensor;
pub use denoise::{Checkpoint, DenoiseConditioning, DenoiseEvent, DenoiseJob, DenoiseStart, StepDone};
use sdxl_core::{Conditioner, ImageFormat};

/// Tokens of a prompt, beginning and end mark included.
pub const NUM_TOKENS: usize = 77;

/// Texts to encode. Ends with a [`TextEmbedding`] for each, in order.
#[derive(Clone, Debug)]
pub struct EncodeJob {
    /// The texts.
    pub inputs: Vec<TextJob>,
}

/// A text to encode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextJob {
    /// For whom.
    pub conditioner: Conditioner,
    /// For the first encoder.
    pub prompt: String,
    /// For the second encoder; empty for the same as the first.
    pub prompt_2: String,
    /// Layers left out at the end.
    pub clip_skip: u32,
}

/// A text, encoded.
#[derive(Clone, Debug)]
pub struct TextEmbedding {
    /// `[77, cross_attention_dim]`.
    pub prompt_embeds: Tensor,
    /// `[pooled_projection_dim]`.
    pub pooled_prompt_embeds: Tensor,
    /// The end of `prompt` that did not fit.
    pub prompt_truncated: Option<String>,
    /// The end of `prompt_2` that did not fit.
    pub prompt_2_truncated: Option<String>,
}

/// Latents to decode. Ends with an [`EncodedPicture`].
#[derive(Clone, Debug)]
pub struct DecodeJob {
    /// `[4, height / 8, width / 8]`, still multiplied by `scaling_factor`.
    pub latents: Tensor,
    /// How to encode the picture.
    pub image_format: ImageFormat,
    /// 1 to 100; PNG has none.
    pub quality: u8,
}

/// A picture in its file format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedPicture {
    /// The file's bytes.
    pub data: Bytes,
    /// As `image/png`.
    pub media_type: &'static str,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
}
