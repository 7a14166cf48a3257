//! CLIP's tokenizer, in the files that SDXL's repositories have.

use std::{fs, path::Path};

use sdxl_models::tokenizer::vocabulary;
use serde_json::{Value, json};

use crate::{CheckpointError, write_json};

/// CLIP's merges.
const MERGES: &str = include_str!("../../tokenizer/merges.txt");

/// Writes a tokenizer folder; returns the bytes of its two large files.
pub(crate) fn write(folder: &Path, pad_token: &str) -> Result<u64, CheckpointError> {
    let put = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::write(&path, text).map_err(CheckpointError::writing(&path))
    };
    let entries: Vec<String> = vocabulary(MERGES)
        .into_iter()
        .zip(0..)
        .map(|(token, id)| format!("{}: {id}", Value::from(token)))
        .collect();
    let vocab = format!("{{{}}}\n", entries.join(", "));
    put("vocab.json", &vocab)?;
    put("merges.txt", MERGES)?;
    let special = json!({
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": pad_token,
        "unk_token": "<|endoftext|>",
    });
    write_json(&folder.join("special_tokens_map.json"), &special)?;
    let mut config = special;
    config["add_prefix_space"] = json!(false);
    config["do_lower_case"] = json!(true);
    config["errors"] = json!("replace");
    config["model_max_length"] = json!(77);
    config["tokenizer_class"] = json!("CLIPTokenizer");
    write_json(&folder.join("tokenizer_config.json"), &config)?;
    Ok((vocab.len() + MERGES.len()) as u64)
}
