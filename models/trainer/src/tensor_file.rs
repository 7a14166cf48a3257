//! Safetensors files of f32 numbers: written whole or not at all.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Map, Value, json};

use crate::TrainError;

/// How numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredType {
    /// Half precision, as SDXL's `.fp16` files.
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

/// A tensor to write.
pub(crate) struct Entry<'a> {
    pub(crate) name: String,
    pub(crate) shape: &'a [usize],
    pub(crate) values: &'a [f32],
}

/// Writes `entries` to `path`, which keeps what it holds until the new file is whole and on the disk.
pub(crate) fn write(
    path: &Path,
    metadata: &[(&str, String)],
    entries: &[Entry<'_>],
    stored: StoredType,
) -> Result<(), TrainError> {
    replace(path, |file| write_to(file, metadata, entries, stored))
}

/// Gives `path` what `write` writes, or leaves it alone.
pub(crate) fn replace(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), TrainError> {
    let partial = partial(path);
    let attempt = || {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(&partial)?);
        write(&mut file)?;
        file.into_inner()?.sync_all()?;
        fs::rename(&partial, path)?;
        sync_folder(path)
    };
    attempt().map_err(|source| {
        // Half a file is of no use, and the disk may be full of it.
        let _ = fs::remove_file(&partial);
        TrainError::WriteFile { path: path.to_owned(), source }
    })
}

/// Makes renames in a file's folder last.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

/// Where a file is written before it has its name.
fn partial(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

fn write_to(
    file: &mut impl Write,
    metadata: &[(&str, String)],
    entries: &[Entry<'_>],
    stored: StoredType,
) -> io::Result<()> {
    let header = header(metadata, entries, stored);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    for entry in entries {
        for value in entry.values {
            match stored {
                StoredType::F16 => file.write_all(&f16::from_f32(*value).to_le_bytes())?,
                StoredType::F32 => file.write_all(&value.to_le_bytes())?,
            }
        }
    }
    Ok(())
}

/// Each tensor's type, shape and place, padded with spaces so that the numbers are aligned.
fn header(metadata: &[(&str, String)], entries: &[Entry<'_>], stored: StoredType) -> String {
    let metadata: Map<_, _> =
        metadata.iter().map(|(key, value)| ((*key).to_owned(), Value::from(value.as_str()))).collect();
    let mut tensors = Map::new();
    tensors.insert("__metadata__".to_owned(), metadata.into());
    let mut start = 0;
    for entry in entries {
        let end = start + entry.values.len() * stored.width();
        let place = json!({"dtype": stored.name(), "shape": entry.shape, "data_offsets": [start, end]});
        tensors.insert(entry.name.clone(), place);
        start = end;
    }
    let mut header = Value::from(tensors).to_string();
    let padding = header.len().next_multiple_of(8) - header.len();
    header.push_str(&" ".repeat(padding));
    header
}

/// A file's bytes, to look tensors up in.
pub(crate) struct TensorFile {
    path: PathBuf,
    bytes: Vec<u8>,
}

/// The tensors of a [`TensorFile`], checked to be all there.
pub(crate) struct Tensors<'a> {
    path: &'a Path,
    metadata: HashMap<String, String>,
    tensors: SafeTensors<'a>,
}

impl TensorFile {
    pub(crate) fn open(path: &Path) -> Result<Self, TrainError> {
        Ok(Self { path: path.to_owned(), bytes: fs::read(path).map_err(TrainError::reading(path))? })
    }

    pub(crate) fn tensors(&self) -> Result<Tensors<'_>, TrainError> {
        let path = &self.path;
        let damaged = |e| TrainError::DamagedFile { path: path.clone(), why: format!("{e}") };
        let (_, header) = SafeTensors::read_metadata(&self.bytes).map_err(damaged)?;
        let tensors = SafeTensors::deserialize(&self.bytes).map_err(damaged)?;
        Ok(Tensors { path, metadata: header.metadata().clone().unwrap_or_default(), tensors })
    }
}

impl Tensors<'_> {
    /// The file.
    pub(crate) fn path(&self) -> &Path {
        self.path
    }

    /// What the file says of itself under `key`.
    pub(crate) fn metadata(&self, key: &str) -> Result<&str, TrainError> {
        let missing =
            || TrainError::DamagedFile { path: self.path.to_owned(), why: format!("it lacks {key}") };
        self.metadata.get(key).map(String::as_str).ok_or_else(missing)
    }

    /// The first tensor that `known` does not know.
    pub(crate) fn unknown(&self, known: impl Fn(&str) -> bool) -> Option<&str> {
        self.tensors.names().into_iter().filter(|name| !known(name)).min()
    }

    /// A tensor of that shape.
    pub(crate) fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, TrainError> {
        let tensor = self.tensor(name)?;
        if tensor.shape() != shape {
            return Err(self.unfit(name, format!("is {:?}, not {shape:?}", tensor.shape())));
        }
        self.to_f32(name, &tensor)
    }

    /// A list, however long.
    pub(crate) fn list(&self, name: &str) -> Result<Vec<f32>, TrainError> {
        self.to_f32(name, &self.tensor(name)?)
    }

    /// The complaint about a tensor of this file.
    pub(crate) fn unfit(&self, name: &str, why: impl Into<String>) -> TrainError {
        TrainError::UnfitTensor { path: self.path.to_owned(), tensor: name.to_owned(), why: why.into() }
    }

    fn tensor(&self, name: &str) -> Result<TensorView<'_>, TrainError> {
        self.tensors.tensor(name).map_err(|_| self.unfit(name, "is missing"))
    }

    fn to_f32(&self, name: &str, tensor: &TensorView<'_>) -> Result<Vec<f32>, TrainError> {
        let data = tensor.data();
        match tensor.dtype() {
            Dtype::F32 => Ok(data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
            Dtype::F16 => Ok(data.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).into()).collect()),
            Dtype::BF16 => Ok(data.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).into()).collect()),
            other => Err(self.unfit(name, format!("is stored as {other:?}; supported: F32, F16, BF16"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUES: [f32; 6] = [0.0, 1.0, -2.5, 1e-3, 65504.0, -0.0];

    fn entries() -> [Entry<'static>; 2] {
        [
            Entry { name: "b".to_owned(), shape: &[2, 3], values: &VALUES },
            Entry { name: "a".to_owned(), shape: &[1], values: &VALUES[2..3] },
        ]
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        for stored in [StoredType::F32, StoredType::F16] {
            write(&path, &[("stage", "vae".to_owned())], &entries(), stored).unwrap();
            let file = TensorFile::open(&path).unwrap();
            let tensors = file.tensors().unwrap();
            assert_eq!(tensors.metadata("stage").unwrap(), "vae");
            assert!(tensors.metadata("step").unwrap_err().to_string().ends_with("it lacks step"));
            let exact = VALUES.map(|v| if stored == StoredType::F16 { f16::from_f32(v).to_f32() } else { v });
            assert_eq!(tensors.values("b", &[2, 3]).unwrap(), exact);
            assert_eq!(tensors.list("a").unwrap(), [-2.5]);
            let wrong = tensors.values("b", &[3, 2]).unwrap_err().to_string();
            assert!(wrong.ends_with("x.safetensors: tensor b is [2, 3], not [3, 2]"), "{wrong}");
            assert_eq!(tensors.unknown(|name| name == "b"), Some("a"));
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_full_disk_leaves_the_old_file_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        write(&path, &[], &entries(), StoredType::F32).unwrap();
        let before = fs::read(&path).unwrap();
        // A device that is always full stands in for the disk.
        std::os::unix::fs::symlink("/dev/full", partial(&path)).unwrap();
        let error = write(&path, &[], &entries()[..1], StoredType::F32).unwrap_err().to_string();
        assert!(error.contains("x.safetensors: cannot be written: No space left on device"), "{error}");
        assert!(!error.contains('\n'));
        assert_eq!(fs::read(&path).unwrap(), before);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_cut_short_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        write(&path, &[], &entries(), StoredType::F32).unwrap();
        let whole = fs::read(&path).unwrap();
        for length in [0, 5, 40, whole.len() - 1] {
            fs::write(&path, &whole[..length]).unwrap();
            let file = TensorFile::open(&path).unwrap();
            assert!(matches!(file.tensors(), Err(TrainError::DamagedFile { .. })), "{length}");
        }
    }
}
