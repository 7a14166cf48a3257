//! A component's weights: which files they lie in, and a `VarBuilder` that converts each tensor once.

mod convert;
mod locate;
mod mapping;
mod pages;
mod reader;
mod record;
mod source;
mod stored;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use mapping::{MappedFile, StoredTensor};
use reader::Reader;
pub use record::{TensorRecorder, TensorSpec};
use stored::Origin;
pub(crate) use stored::Stored;

use crate::ModelError;

/// The safetensors files of one component folder (`unet`, `vae`, `text_encoder`, ...), mapped and checked.
///
/// Full-precision files are preferred to `.fp16` ones where a folder holds both, and one file to shards, as diffusers
/// does without a `variant`. Tensors that no network asks for do no harm.
#[derive(Clone, Debug)]
pub struct Weights {
    folder: PathBuf,
    files: Arc<Vec<MappedFile>>,
    /// Tensor name, in today's spelling, to file and the name as spelt there.
    index: Arc<HashMap<String, (usize, String)>>,
    /// Once networks are built of them.
    reader: Arc<OnceLock<Reader>>,
}

impl Weights {
    /// Finds, maps and checks the weights in `folder`.
    ///
    /// # Errors
    /// No weights there, a shard missing, a file truncated or not safetensors.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let files = locate::weight_files(folder)?
            .iter()
            .map(|path| MappedFile::open(path))
            .collect::<Result<Vec<_>, _>>()?;
        let mut index = HashMap::new();
        for (i, file) in files.iter().enumerate() {
            for name in file.names() {
                index.insert(current_name(&name), (i, name));
            }
        }
        Ok(Self {
            folder: folder.to_owned(),
            files: Arc::new(files),
            index: Arc::new(index),
            reader: Arc::default(),
        })
    }

    /// Paths of the files, in order.
    #[must_use]
    pub fn paths(&self) -> Vec<&Path> {
        self.files.iter().map(MappedFile::path).collect()
    }

    /// Whether the tensor is there.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    /// Whether `other` holds the same files, byte for byte. Reads both whole unless sizes differ or they are one file.
    #[must_use]
    pub fn same_bytes(&self, other: &Self) -> bool {
        self.files.len() == other.files.len()
            && self.files.iter().zip(other.files.iter()).all(|(a, b)| a.same_bytes(b))
    }

    /// A builder for candle's and our networks. A tensor that is missing, of the wrong shape or not finite gives an error that
    /// turns back into the [`ModelError`] naming file and tensor by `ModelError::from`, so that `?` in a function
    /// that returns `ModelError` is enough. From the first builder on the files are read ahead.
    #[must_use]
    pub fn var_builder(&self, dtype: DType, device: &Device) -> VarBuilder<'static> {
        self.reader();
        VarBuilder::from_backend(Box::new(self.clone()), dtype, device.clone())
    }

    fn reader(&self) -> &Reader {
        self.reader.get_or_init(|| Reader::new(&self.files))
    }

    /// The file to name when a tensor is in none of them.
    fn blame(&self) -> PathBuf {
        match self.files.as_slice() {
            [only] => only.path().to_owned(),
            _ => self.folder.clone(),
        }
    }

    /// A tensor that is of the shape wanted and of a type that can be computed with, and which file it is in; its own shape
    /// where none is wanted.
    fn find<'a>(
        &'a self,
        name: &str,
        want: Option<&'a Shape>,
    ) -> Result<(usize, StoredTensor<'a>), ModelError> {
        let missing = || ModelError::MissingTensor { path: self.blame(), tensor: name.to_owned() };
        let (at, stored_name) = self.index.get(name).ok_or_else(missing)?;
        let file = &self.files[*at];
        let stored = file.tensor(stored_name).ok_or_else(missing)?;
        let shape = want.map_or(stored.shape, Shape::dims);
        if !fits(stored.shape, shape) {
            let (found, expected) = (stored.shape.to_vec(), shape.to_vec());
            let (path, tensor) = (file.path().to_owned(), stored_name.clone());
            return Err(ModelError::MisshapenTensor { path, tensor, found, expected });
        }
        if !convert::is_supported(stored.dtype) {
            let (path, tensor, found) =
                (file.path().to_owned(), stored_name.clone(), format!("{:?}", stored.dtype));
            return Err(ModelError::UnsupportedTensorType { path, tensor, found });
        }
        Ok((*at, StoredTensor { shape, ..stored }))
    }

    fn load(
        &self,
        name: &str,
        want: Option<&Shape>,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor, ModelError> {
        let (file, stored) = self.find(name, want)?;
        let bytes = self.reader().bytes(file, stored.range.clone())?;
        convert::to_tensor(&bytes, stored.dtype, stored.shape, dtype, device)?
            .ok_or_else(|| Origin::new(&self.files[file], &stored).non_finite(dtype))
    }

    fn stored(&self, name: &str, want: &Shape, dtype: DType) -> Result<Stored, ModelError> {
        let (file, stored) = self.find(name, Some(want))?;
        let bytes = self.reader().bytes(file, stored.range.clone())?;
        Ok(Stored::new(bytes, Origin::new(&self.files[file], &stored), stored.dtype, want, dtype))
    }
}

impl SimpleBackend for Weights {
    fn get(&self, s: Shape, name: &str, _: Init, dtype: DType, dev: &Device) -> candle_core::Result<Tensor> {
        if Stored::is_asked_for() {
            self.stored(name, &s, dtype)?.answer();
            return Tensor::zeros(0, dtype, dev);
        }
        Ok(self.load(name, Some(&s), dtype, dev)?)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, dev: &Device) -> candle_core::Result<Tensor> {
        Ok(self.load(name, None, dtype, dev)?)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.contains(name)
    }
}

/// Whether a stored shape is the one wanted, or a 1x1 convolution `[C, D, 1, 1]` where a matrix `[C, D]` is: the
/// autoencoder's attention was convolutions once.
fn fits(stored: &[usize], wanted: &[usize]) -> bool {
    stored == wanted
        || (wanted.len() == 2 && stored.len() == 4 && stored[..2] == *wanted && stored[2..] == [1, 1])
}

/// Today's name of a tensor. The autoencoder's attention projections had other names before diffusers 0.18, and
/// checkpoints published then still do.
fn current_name(name: &str) -> String {
    const RENAMED: [(&str, &str); 4] =
        [("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")];
    let mut parts = name.rsplitn(3, '.');
    if let (Some(leaf), Some(layer), Some(parent)) = (parts.next(), parts.next(), parts.next())
        && parent.contains("attentions.")
        && let Some((_, new)) = RENAMED.iter().find(|(old, _)| *old == layer)
    {
        return format!("{parent}.{new}.{leaf}");
    }
    name.to_owned()
}

#[cfg(test)]
mod tests;
