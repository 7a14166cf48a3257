//! Trains SDXL models on drawn scenes.
//!
//! What every stage of training has in common: the recipe, the weights, the optimizer, gradients over several threads,
//! checkpoints and the loop around them. All that is random is a function of seed, step and index, so that a run that
//! was interrupted and resumed gives the bits of one that was not.

pub mod checkpoint;
pub mod classifier;
pub mod commands;
pub mod data;
mod digest;
mod error;
pub mod evaluate;
pub mod export;
pub mod gradients;
pub mod noise;
pub mod optimizer;
pub mod progress;
pub mod random;
pub mod recipe;
pub mod run;
pub mod sheet;
pub mod stages;
pub mod stop;
pub mod store;
mod tensor_file;
pub mod threads;
#[cfg(test)]
mod toy;
pub mod vocabulary;

pub use error::TrainError;
pub use tensor_file::StoredType;
