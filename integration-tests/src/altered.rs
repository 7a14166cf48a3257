//! Checkpoints changed or broken in one place.

use half::f16;
use serde_json::{Map, Value};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// A copy of a pipeline folder that a test may change; the original stays as it is.
#[derive(Debug)]
pub struct Altered {
    folder: tempfile::TempDir,
}

impl Altered {
    /// A copy of `pipeline`, whose files are links until they are changed.
    ///
    /// # Panics
    /// Where the folder cannot be read.
    #[must_use]
    pub fn copy_of(pipeline: &Path) -> Self {
        let folder = tempfile::tempdir().expect("a folder for an altered checkpoint");
        link_all(pipeline, folder.path());
        Self { folder }
    }

    /// The altered pipeline folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The only safetensors file in `part`, as `unet`.
    ///
    /// # Panics
    /// Where there is none.
    #[must_use]
    pub fn weights(&self, part: &str) -> PathBuf {
        let files = fs::read_dir(self.path().join(part)).expect("a part of the checkpoint");
        let mut files = files.map(|file| file.expect("a file").path());
        files.find(|path| path.extension().is_some_and(|e| e == "safetensors")).expect("weights")
    }

    /// Takes a file away.
    pub fn remove(&self, file: &str) {
        fs::remove_file(self.path().join(file)).expect("the file is there");
    }

    /// Puts other content in the place of a file.
    pub fn overwrite(&self, file: &str, content: &[u8]) {
        replace(&self.path().join(file), content);
    }

    /// Cuts the last `bytes` bytes off the weights of `part`.
    pub fn truncate(&self, part: &str, bytes: usize) {
        let file = self.weights(part);
        let mut content = fs::read(&file).expect("weights");
        content.truncate(content.len() - bytes);
        replace(&file, &content);
    }

    /// Sets a key of a JSON file.
    pub fn set(&self, file: &str, key: &str, value: Value) {
        let path = self.path().join(file);
        let mut config: Map<String, Value> =
            serde_json::from_slice(&fs::read(&path).expect("a config")).expect("a JSON object");
        config.insert(key.to_owned(), value);
        replace(&path, &serde_json::to_vec(&config).expect("JSON"));
    }

    /// Takes a tensor out of the weights of `part`. Its bytes stay, under another name.
    pub fn rename_tensor(&self, part: &str, tensor: &str) {
        self.edit(part, |header, _| {
            let entry = header.remove(tensor).expect("the tensor is there");
            header.insert("nobody.asks.for.this".to_owned(), entry);
        });
    }

    /// Gives a tensor of `part` another shape of as many elements.
    pub fn reshape_tensor(&self, part: &str, tensor: &str, shape: &[usize]) {
        self.edit(part, |header, _| header[tensor]["shape"] = shape.into());
    }

    /// Fills row `row` of a tensor of `part` with `value`.
    pub fn fill(&self, part: &str, tensor: &str, row: usize, value: f32) {
        self.edit(part, |header, data| {
            let [begin, end] = offsets(header, tensor);
            let length = (end - begin) / number(&header[tensor]["shape"][0]);
            let range = begin + row * length..begin + (row + 1) * length;
            let value: &[u8] = match header[tensor]["dtype"].as_str() {
                Some("F32") => &value.to_le_bytes(),
                Some("F16") => &f16::from_f32(value).to_le_bytes(),
                other => panic!("no number of dtype {other:?} at hand"),
            };
            data[range].chunks_exact_mut(value.len()).for_each(|number| number.copy_from_slice(value));
        });
    }

    /// Stores a tensor of `part` in float32 that is in float16.
    pub fn widen(&self, part: &str, tensor: &str) {
        self.edit(part, |header, data| {
            assert_eq!(header[tensor]["dtype"], "F16");
            header[tensor]["dtype"] = "F32".into();
            let [begin, end] = offsets(header, tensor);
            let halves = data[begin..end].as_chunks().0.iter();
            let wide: Vec<u8> =
                halves.flat_map(|half| f16::from_le_bytes(*half).to_f32().to_le_bytes()).collect();
            let more = wide.len() - (end - begin);
            data.splice(begin..end, wide);
            let all = header.values_mut().filter_map(|entry| entry.get_mut("data_offsets")?.as_array_mut());
            for offset in all.flatten().filter(|offset| number(offset) >= end) {
                *offset = (number(offset) + more).into();
            }
        });
    }

    /// A safetensors file is the header's length in 8 bytes, the header in JSON, and the tensors' bytes.
    fn edit(&self, part: &str, change: impl FnOnce(&mut Map<String, Value>, &mut Vec<u8>)) {
        let file = self.weights(part);
        let mut content = fs::read(&file).expect("weights");
        let length = u64::from_le_bytes(content[..8].try_into().expect("8 bytes"));
        let data = content.split_off(8 + usize::try_from(length).expect("a header fits into memory"));
        let (mut data, mut header) = (data, serde_json::from_slice(&content[8..]).expect("a header"));
        change(&mut header, &mut data);
        let mut header = serde_json::to_vec(&header).expect("JSON");
        header.resize(header.len().next_multiple_of(8), b' ');
        let length = u64::try_from(header.len()).expect("a length").to_le_bytes();
        replace(&file, &[&length, header.as_slice(), &data].concat());
    }
}

fn number(value: &Value) -> usize {
    usize::try_from(value.as_u64().expect("a number")).expect("a size")
}

/// Where a tensor's bytes begin and end.
fn offsets(header: &Map<String, Value>, tensor: &str) -> [usize; 2] {
    [0, 1].map(|i| number(&header[tensor]["data_offsets"][i]))
}

fn link_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).unwrap_or_else(|e| panic!("{}: {e}", from.display())) {
        let source = entry.expect("an entry").path();
        let target = to.join(source.file_name().expect("a name"));
        if source.is_dir() {
            link_all(&source, &target);
        } else {
            std::os::unix::fs::symlink(&source, &target).expect("a link");
        }
    }
}

/// Puts a file in the place of a link, so that what the link points to stays as it is.
fn replace(file: &Path, content: &[u8]) {
    fs::remove_file(file).expect("the link is there");
    fs::write(file, content).expect("a file in its place");
}
