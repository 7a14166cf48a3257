//! Text encoders: prompts to `prompt_embeds` and `pooled_prompt_embeds`.

mod conditioner;
mod config;
mod model;

pub use conditioner::{Text, TextConditioner, TextEmbedding};
pub use config::{ClipTextConfig, HiddenAct};
pub use model::{ClipTextModel, ClipTextOutput};
