//! Measures an exported model.

pub mod draw;
