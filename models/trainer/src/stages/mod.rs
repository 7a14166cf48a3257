//! What each stage of training computes.

pub mod configs;
pub mod context;
pub mod vae;
