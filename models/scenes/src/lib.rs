//! The world that the shipped model is trained on: one or two coloured shapes before a coloured background, drawn by
//! code, with a caption from a small grammar that is true of the picture. It is small and unambiguous, so that a model
//! of a few million weights can learn it and its pictures can be judged without an opinion.
//!
//! Everything is deterministic: the same seed gives the same sample on every machine, as only ChaCha8 and arithmetic
//! that IEEE 754 defines to the last bit are used. Coordinates are fractions of the picture, so one scene can be
//! drawn at any size and aspect ratio.

mod caption;
mod object;
mod outline;
mod parse;
mod render;
mod sample;
mod scene;
mod shape;
mod word;

pub use caption::{Facts, vocabulary};
pub use object::{MAX_ROTATION, Object};
pub use outline::Split;
pub use parse::parse;
pub use sample::Sample;
pub use scene::{Gradient, Scene};
pub use word::{Colour, Position, Relation, Shape, Size, Thing};

#[cfg(test)]
mod tests;
