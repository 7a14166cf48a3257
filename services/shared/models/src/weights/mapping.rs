//! One safetensors file: mapped, its header parsed and checked against the file's length.

#![expect(unsafe_code, reason = "mapping a file is an unsafe call")]

use std::{
    fs::File,
    io::{self, ErrorKind},
    ops::Range,
    path::{Path, PathBuf},
};

use memmap2::Mmap;
use safetensors::{
    SafeTensors,
    tensor::{Dtype, Metadata, SafeTensorError},
};

use crate::ModelError;

/// A mapped safetensors file whose header is known to fit it.
#[derive(Debug)]
pub(super) struct MappedFile {
    path: PathBuf,
    file: File,
    map: Mmap,
    /// Where the tensors' bytes begin.
    data_start: u64,
    metadata: Metadata,
}

/// A tensor as it lies in the file.
#[derive(Clone, Debug)]
pub(super) struct StoredTensor<'a> {
    pub(super) name: &'a str,
    pub(super) dtype: Dtype,
    pub(super) shape: &'a [usize],
    /// Where its little-endian values are, row by row; not necessarily aligned.
    pub(super) range: Range<u64>,
}

impl MappedFile {
    /// Maps `path` and checks its header.
    pub(super) fn open(path: &Path) -> Result<Self, ModelError> {
        let expected = "a safetensors file";
        let file = File::open(path).map_err(ModelError::reading(path, expected))?;
        let length = file.metadata().map_err(ModelError::reading(path, expected))?.len();
        if length < 8 {
            return Err(ModelError::TruncatedFile { path: path.to_owned(), found: length, expected: 8 });
        }
        // SAFETY: the map is read only and private to this process. It stays valid as long as nobody shortens the
        // file; checkpoints are immutable once written, which the operations guide asks of whoever replaces one
        // (write beside it, then rename). No reference into the map outlives `self`.
        let map = unsafe { Mmap::map(&file) }.map_err(ModelError::reading(path, expected))?;
        let (header, metadata) =
            SafeTensors::read_metadata(&map).map_err(|e| header_fault(path, &map, &e))?;
        Ok(Self { path: path.to_owned(), file, map, data_start: 8 + header as u64, metadata })
    }

    /// The file's path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Names of the tensors in it, in the order of their bytes.
    pub(super) fn names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }

    /// Where its tensors are, in order; those without a number left out.
    pub(super) fn ranges(&self) -> impl Iterator<Item = Range<u64>> {
        let names = self.metadata.offset_keys().into_iter();
        names.filter_map(|name| Some(self.tensor(&name)?.range)).filter(|range| !range.is_empty())
    }

    /// The tensor of that name.
    pub(super) fn tensor<'a>(&'a self, name: &'a str) -> Option<StoredTensor<'a>> {
        let info = self.metadata.info(name)?;
        let (start, end) = info.data_offsets;
        let range = self.data_start + start as u64..self.data_start + end as u64;
        Some(StoredTensor { name, dtype: info.dtype, shape: &info.shape, range })
    }

    /// Why bytes that the header tells of cannot be read.
    pub(super) fn fault(&self, error: io::Error) -> ModelError {
        let path = self.path.clone();
        match error.kind() {
            ErrorKind::UnexpectedEof => {
                let found = self.file.metadata().map_or(0, |file| file.len());
                ModelError::TruncatedFile { path, found, expected: self.map.len() as u64 }
            }
            _ => ModelError::OpenFile { path, source: error },
        }
    }

    /// Whether the other file has the same bytes.
    pub(super) fn same_bytes(&self, other: &Self) -> bool {
        let same_file = match (self.path.canonicalize(), other.path.canonicalize()) {
            (Ok(a), Ok(b)) => a == b,
            _ => false,
        };
        same_file || self.map[..] == other.map[..]
    }
}

/// Tells a file that ends too early from one that never was a safetensors file.
fn header_fault(path: &Path, bytes: &[u8], error: &SafeTensorError) -> ModelError {
    let found = bytes.len() as u64;
    match error {
        SafeTensorError::MetadataIncompleteBuffer | SafeTensorError::InvalidHeaderLength => {
            let expected = described_length(bytes).unwrap_or(8);
            ModelError::TruncatedFile { path: path.to_owned(), found, expected }
        }
        other => {
            let why = other.to_string().lines().next().unwrap_or("unreadable header").to_owned();
            ModelError::InvalidSafetensors { path: path.to_owned(), why }
        }
    }
}

/// The length that a header describes: 8 bytes, the header, and the furthest end of a tensor.
fn described_length(bytes: &[u8]) -> Option<u64> {
    let header = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    let end = header.checked_add(8)?;
    let Some(json) = bytes.get(8..usize::try_from(end).ok()?) else { return Some(end) };
    let json: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(json).ok()?;
    let furthest = json.values().filter_map(|t| t.get("data_offsets")?.get(1)?.as_u64()).max().unwrap_or(0);
    end.checked_add(furthest)
}
