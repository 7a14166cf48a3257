//! Commands that train nothing.

pub mod data;
