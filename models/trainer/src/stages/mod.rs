//! What each stage of training computes.

pub mod base;
pub mod configs;
pub mod context;
mod denoiser;
pub mod finish;
pub mod latents;
pub mod refiner;
pub mod vae;
