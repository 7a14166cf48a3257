//! One safetensors file in memory: mapped, its header parsed and checked against the file's length.

#![expect(
    unsafe_code,
    reason = "mapping a file and giving its pages back are unsafe calls; each is proven below"
)]

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use memmap2::{Mmap, UncheckedAdvice};
use safetensors::{
    SafeTensors,
    tensor::{Dtype, Metadata, SafeTensorError},
};

use crate::ModelError;

/// Pages are given back in whole multiples of it; larger than any page size in use is safe, smaller is not.
const PAGE: usize = 64 * 1024;

/// A mapped safetensors file whose header is known to fit it.
#[derive(Debug)]
pub(super) struct MappedFile {
    path: PathBuf,
    file: File,
    map: Mmap,
    /// Where the tensors' bytes begin.
    data_start: usize,
    metadata: Metadata,
}

/// A tensor as it lies in the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct StoredTensor<'a> {
    pub(super) dtype: Dtype,
    pub(super) shape: &'a [usize],
    /// Little-endian values, row by row; not necessarily aligned.
    pub(super) data: &'a [u8],
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
        Ok(Self { path: path.to_owned(), file, map, data_start: 8 + header, metadata })
    }

    /// The file's path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Its bytes.
    pub(super) fn len(&self) -> u64 {
        self.map.len() as u64
    }

    /// Names of the tensors in it, in the order of their bytes.
    pub(super) fn names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }

    /// The tensor of that name.
    pub(super) fn tensor(&self, name: &str) -> Option<StoredTensor<'_>> {
        let info = self.metadata.info(name)?;
        let (start, end) = info.data_offsets;
        let data = self.map.get(self.data_start + start..self.data_start + end)?;
        Some(StoredTensor { dtype: info.dtype, shape: &info.shape, data })
    }

    /// Whether the other file has the same bytes.
    pub(super) fn same_bytes(&self, other: &Self) -> bool {
        let same_file = match (self.path.canonicalize(), other.path.canonicalize()) {
            (Ok(a), Ok(b)) => a == b,
            _ => false,
        };
        same_file || self.map[..] == other.map[..]
    }

    /// Lets the kernel take back the pages of a tensor that has been read, so that a process loading 10 GB does
    /// not count 10 GB of file beside the converted weights. Best effort: a refusal changes only the memory figure.
    pub(super) fn release(&self, name: &str) {
        let Some(info) = self.metadata.info(name) else { return };
        let (start, end) = info.data_offsets;
        let start = (self.data_start + start).next_multiple_of(PAGE);
        let end = (self.data_start + end) / PAGE * PAGE;
        if start < end && end <= self.map.len() {
            // SAFETY: DONTNEED on a read-only mapping of a file only drops page-table entries; a later read of the
            // range faults the same bytes in again, so even a reference into the range stays good. The range lies
            // within the map and begins on a page boundary.
            let _ = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, end - start) };
        }
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
