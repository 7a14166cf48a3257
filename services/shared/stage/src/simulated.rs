//! The simulated engine: a stage that takes a profile's time for its work instead of computing, and gives results that
//! follow from the request alone, so that scheduling can be tested with hundreds of replicas on a few cores.
//!
//! What is kept of the real engines: what they say of themselves, what they refuse, how long a piece of work takes by
//! size and batch, how many pictures share a step, events, checkpoints, and that the same request gives the same bytes,
//! interrupted or not. What is not: pictures that show anything (docs/decisions/0008-simulated-engine.md).

mod denoiser;
mod device;
mod digest;
mod profile;
mod text_encoder;
mod vae;

pub use denoiser::{SimulatedDenoiser, SimulatedDenoiserRun};
pub use profile::Profile;
pub use text_encoder::{SimulatedEncodeRun, SimulatedTextEncoder};
pub use vae::{SimulatedDecodeRun, SimulatedVae};

use crate::info::{Details, StageInfo};
use sdxl_core::StageKind;

/// What a simulated stage says of itself.
fn info(kind: StageKind, profile: &Profile, details: Details) -> StageInfo {
    StageInfo {
        kind,
        model: profile.name.clone(),
        revision: profile.revision.clone(),
        device: "simulated".to_owned(),
        dtype: profile.dtype,
        details,
    }
}

#[cfg(test)]
mod tests;
