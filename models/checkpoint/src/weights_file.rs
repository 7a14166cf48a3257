//! A safetensors file, written as its numbers are made: a UNet of 10 GB passes through a few megabytes of memory.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::Path,
};

use half::f16;
use rayon::prelude::*;
use sdxl_models::TensorSpec;
use serde_json::{Map, json};

use crate::{
    CheckpointError,
    values::{Source, TensorSource},
};

/// Elements made at once by all threads together.
const CHUNK: usize = 4 << 20;
/// Elements made at once by one thread.
const TASK: usize = 64 << 10;

/// How weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredType {
    /// Half precision, as SDXL's `.fp16` files; here under the plain name.
    F16,
    /// Single precision.
    F32,
}

impl StoredType {
    fn name(self) -> &'static str {
        match self {
            Self::F16 => "F16",
            Self::F32 => "F32",
        }
    }

    fn width(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

/// Writes the tensors with numbers from `source`; returns the file's length in bytes. The file appears under its name
/// only when it is whole.
pub(crate) fn write(
    path: &Path,
    specs: &[TensorSpec],
    dtype: StoredType,
    source: &Source,
) -> Result<u64, CheckpointError> {
    let partial = path.with_extension("partial");
    let written = write_to(&partial, specs, dtype, source).map_err(CheckpointError::writing(&partial))?;
    fs::rename(&partial, path).map_err(CheckpointError::writing(path))?;
    Ok(written)
}

fn write_to(path: &Path, specs: &[TensorSpec], dtype: StoredType, source: &Source) -> std::io::Result<u64> {
    let header = header(specs, dtype);
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    let mut written = 8 + header.len();
    let mut bytes = Vec::new();
    for spec in specs {
        let tensor = source.tensor(&spec.name, &spec.shape);
        let count: usize = spec.shape.iter().product();
        for start in (0..count).step_by(CHUNK) {
            let length = CHUNK.min(count - start);
            bytes.resize(length * dtype.width(), 0);
            fill(&mut bytes, &tensor, start, dtype);
            file.write_all(&bytes)?;
            written += bytes.len();
        }
    }
    file.into_inner()?.sync_data()?;
    Ok(written as u64)
}

/// Fills `bytes` with the tensor's elements from `start` on.
fn fill(bytes: &mut [u8], tensor: &TensorSource, start: usize, dtype: StoredType) {
    bytes.par_chunks_mut(TASK * dtype.width()).enumerate().for_each(|(task, bytes)| {
        let indices = (start + task * TASK) as u64..;
        match dtype {
            StoredType::F16 => {
                for (b, i) in bytes.as_chunks_mut().0.iter_mut().zip(indices) {
                    *b = f16::from_f32(tensor.at(i)).to_le_bytes();
                }
            }
            StoredType::F32 => {
                for (b, i) in bytes.as_chunks_mut().0.iter_mut().zip(indices) {
                    *b = tensor.at(i).to_le_bytes();
                }
            }
        }
    });
}

/// The header: each tensor's type, shape and place, padded with spaces so that the numbers are aligned.
fn header(specs: &[TensorSpec], dtype: StoredType) -> String {
    let mut entries = Map::new();
    entries.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut start = 0;
    for spec in specs {
        let end = start + spec.shape.iter().product::<usize>() * dtype.width();
        let entry = json!({"dtype": dtype.name(), "shape": spec.shape, "data_offsets": [start, end]});
        entries.insert(spec.name.clone(), entry);
        start = end;
    }
    let mut header = serde_json::Value::Object(entries).to_string();
    let padding = header.len().next_multiple_of(8) - header.len();
    header.push_str(&" ".repeat(padding));
    header
}
