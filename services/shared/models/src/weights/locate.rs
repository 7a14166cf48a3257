//! Which files of a component folder hold its weights.

use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::{ModelError, config::read_json};

/// Stems that diffusers and transformers give their files.
const STEMS: [&str; 2] = ["diffusion_pytorch_model", "model"];

/// The part of a shard index that matters.
#[derive(Deserialize)]
struct ShardIndex {
    weight_map: HashMap<String, String>,
}

/// The files to read, full precision before `.fp16`, one file before shards.
pub(super) fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let stem_files = |f: &dyn Fn(&str) -> String| STEMS.map(|stem| folder.join(f(stem)));
    for (variant, indices) in
        [("", &["index"] as &[&str]), (".fp16", &["index.fp16", "fp16.index"] as &[&str])]
    {
        for path in stem_files(&|stem| format!("{stem}{variant}.safetensors")) {
            if path.is_file() {
                return Ok(vec![path]);
            }
        }
        for index in indices {
            for path in stem_files(&|stem| format!("{stem}.safetensors.{index}.json")) {
                if path.is_file() {
                    return shards(folder, &path);
                }
            }
        }
    }
    let stem = match folder.file_name().and_then(|n| n.to_str()) {
        Some(name) if name.starts_with("text_encoder") => STEMS[1],
        _ => STEMS[0],
    };
    Err(ModelError::MissingFile {
        path: folder.join(format!("{stem}.safetensors")),
        expected: format!("the weights: {stem}.safetensors, its .fp16 variant, or shards with an index"),
    })
}

/// The shards that an index lists, each once and in order.
fn shards(folder: &Path, index: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let ShardIndex { weight_map } = read_json(index)?;
    let names: BTreeSet<&String> = weight_map.values().collect();
    if names.is_empty() {
        return Err(ModelError::contradicting(index, "weight_map", "lists no files"));
    }
    names.into_iter().map(|name| shard(folder, index, name)).collect()
}

/// One shard, under its listed name or with the variant and the number the other way round.
fn shard(folder: &Path, index: &Path, name: &str) -> Result<PathBuf, ModelError> {
    if Path::new(name).components().count() != 1 || name.contains("..") {
        return Err(ModelError::contradicting(index, "weight_map", format!("{name:?} is not a file name")));
    }
    let listed = folder.join(name);
    let path = match swapped(name).map(|n| folder.join(n)) {
        Some(other) if !listed.is_file() && other.is_file() => other,
        _ => listed,
    };
    if path.is_file() {
        return Ok(path);
    }
    let expected = format!("a shard that {} lists", index.file_name().unwrap_or_default().display());
    Err(ModelError::MissingFile { path, expected })
}

/// `a.fp16-00001-of-00002.safetensors` for `a-00001-of-00002.fp16.safetensors`, and back.
fn swapped(name: &str) -> Option<String> {
    let base = name.strip_suffix(".safetensors")?;
    if let Some(base) = base.strip_suffix(".fp16") {
        let (stem, number) = base.split_once('-')?;
        return Some(format!("{stem}.fp16-{number}.safetensors"));
    }
    let (stem, number) = base.split_once(".fp16-")?;
    Some(format!("{stem}-{number}.fp16.safetensors"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_names_swap_both_ways() {
        let new = "diffusion_pytorch_model.fp16-00001-of-00002.safetensors";
        let old = "diffusion_pytorch_model-00001-of-00002.fp16.safetensors";
        assert_eq!(swapped(new).as_deref(), Some(old));
        assert_eq!(swapped(old).as_deref(), Some(new));
        assert_eq!(swapped("model-00001-of-00002.safetensors"), None);
    }
}
