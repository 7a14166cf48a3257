//! Reading a checkpoint's JSON files.

use std::{fs, path::Path};

use serde::de::DeserializeOwned;

use crate::ModelError;

/// Reads and parses a JSON file.
///
/// # Errors
/// The file is missing or unreadable, is not JSON, or a value has the wrong type; the message names the file.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, ModelError> {
    let text = read_text(path)?;
    serde_json::from_str(&text)
        .map_err(|e| ModelError::ParseConfig { path: path.to_owned(), why: e.to_string() })
}

/// Reads a small text file of a checkpoint.
pub(crate) fn read_text(path: &Path) -> Result<String, ModelError> {
    let expected = match path.extension().and_then(|e| e.to_str()) {
        Some("json") => "a JSON file of the checkpoint",
        _ => "a file of the checkpoint",
    };
    fs::read_to_string(path).map_err(ModelError::reading(path, expected))
}
