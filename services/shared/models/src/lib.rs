//! SDXL's networks, samplers, tokenizers and weight loading. Everything is driven by the checkpoint's own config
//! files; nothing here is asynchronous or knows of gRPC.

mod attention;
pub mod autograd;
pub mod checkpoint;
pub mod config;
mod conv;
mod cpu;
#[cfg_attr(not(feature = "cuda"), path = "cuda/absent.rs")]
mod cuda;
pub mod denoise;
mod device;
pub mod error;
mod finite;
pub mod guidance;
mod layer_norm;
mod linear;
mod moment;
pub mod noise;
mod norm;
mod resnet;
pub mod sampler;
#[cfg(test)]
mod seeded;
pub mod text;
pub mod tokenizer;
pub mod unet;
pub mod vae;
pub mod weights;

pub use checkpoint::{EncoderDir, PipelineDir, PipelineKind};
pub use cpu::Packing;
pub use device::open_cuda;
pub use error::ModelError;
pub use text::{Text, TextConditioner, TextEmbedding};
pub use tokenizer::{ClipTokenizer, TokenizedPrompt};
pub use weights::{TensorRecorder, TensorSpec, Weights};
