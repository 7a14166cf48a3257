//! Captions as both text encoders take them.

use sdxl_models::ClipTokenizer;

use super::{LENGTH, PAD, PAD_2, Vocabulary};
use crate::TrainError;

/// The tokenizers of the first and the second text encoder, read from the very files that the model ships with.
#[derive(Debug)]
pub struct Tokenizers([ClipTokenizer; 2]);

impl Tokenizers {
    /// Writes a vocabulary's files to a folder that does not outlive the call, and reads them.
    ///
    /// # Errors
    /// There is no room for temporary files.
    pub fn new(vocabulary: &Vocabulary) -> Result<Self, TrainError> {
        let load = |pad| {
            let folder = tempfile::tempdir().map_err(TrainError::writing(&std::env::temp_dir()))?;
            vocabulary.write(folder.path(), pad)?;
            Ok::<_, TrainError>(ClipTokenizer::load(folder.path(), LENGTH)?)
        };
        Ok(Self([load(PAD)?, load(PAD_2)?]))
    }

    /// A caption's ids for each encoder, `[2][77]`: start, words, end, padding. What does not fit is cut off.
    ///
    /// # Errors
    /// None in practice: no text is known to be refused.
    pub fn ids(&self, caption: &str) -> Result<[Vec<u32>; 2], TrainError> {
        let [first, second] = &self.0;
        Ok([first.encode(caption)?.ids, second.encode(caption)?.ids])
    }
}
