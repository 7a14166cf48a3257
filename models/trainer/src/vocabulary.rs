//! The shipped model's own tokens: CLIP's byte-pair encoding with merges for the words that its captions can hold, so
//! that CLIP's tokenizers read it and each of those words is one token. All other text is spelt out, none is refused.

mod tokenizers;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, iter,
    path::Path,
};

use serde_json::{Value, json};
pub use tokenizers::Tokenizers;

use crate::TrainError;

/// Tokens in a prompt, those of start, end and padding among them: CLIP's.
pub const LENGTH: usize = 77;
/// What a prompt ends in. The greatest id, so that CLIP's rule for pooling finds it.
pub const END: &str = "<|endoftext|>";
/// Pads the first encoder's prompts, as in SDXL.
pub const PAD: &str = END;
/// Pads the second encoder's, the refiner's too: id 0.
pub const PAD_2: &str = "!";

/// The merges, and the tokens that follow from them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vocabulary {
    /// The text of `merges.txt`.
    merges: String,
    /// In the order of their ids.
    tokens: Vec<String>,
}

impl Default for Vocabulary {
    fn default() -> Self {
        Self::new()
    }
}

impl Vocabulary {
    /// The vocabulary of the grammar of [`sdxl_scenes`]. A comma is one of CLIP's byte symbols, and so is `a`.
    #[must_use]
    pub fn new() -> Self {
        let pairs = merges(&sdxl_scenes::vocabulary());
        let lines = pairs.iter().map(|[left, right]| format!("{left} {right}\n"));
        let merges: String = iter::once("#version: 0.2\n".to_owned()).chain(lines).collect();
        Self { tokens: sdxl_models::tokenizer::vocabulary(&merges), merges }
    }

    /// How many tokens there are: the least `vocab_size` of a text encoder.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "it never is")]
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Writes the files of a tokenizer's folder, which is there already.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self, folder: &Path, pad_token: &str) -> Result<(), TrainError> {
        let put = |name: &str, text: &str| {
            let path = folder.join(name);
            fs::write(&path, text).map_err(TrainError::writing(&path))
        };
        // Written out, as a map would sort them by their text.
        let entries: Vec<_> =
            self.tokens.iter().zip(0..).map(|(token, id)| format!("{}: {id}", json!(token))).collect();
        put("vocab.json", &format!("{{{}}}\n", entries.join(", ")))?;
        put("merges.txt", &self.merges)?;
        let special = json!({
            "bos_token": "<|startoftext|>",
            "eos_token": END,
            "pad_token": pad_token,
            "unk_token": END,
        });
        put("special_tokens_map.json", &pretty(&special))?;
        let mut config = special;
        config["add_prefix_space"] = json!(false);
        config["do_lower_case"] = json!(true);
        config["errors"] = json!("replace");
        config["model_max_length"] = json!(LENGTH);
        config["tokenizer_class"] = json!("CLIPTokenizer");
        put("tokenizer_config.json", &pretty(&config))
    }
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// Byte-pair encoding as Sennrich et al. (2016) learn it, on to the end: merge the most frequent pair of neighbours in
/// all words, until each word is one. Words are of ASCII letters; among equals the first in order of text is merged.
fn merges(words: &[&str]) -> Vec<[String; 2]> {
    let spelt = |word: &&str| {
        let mut symbols: Vec<String> = word.chars().map(String::from).collect();
        if let Some(last) = symbols.last_mut() {
            last.push_str("</w>");
        }
        symbols
    };
    let mut words: BTreeSet<Vec<String>> = words.iter().map(spelt).collect();
    let mut merges = Vec::new();
    while let Some(pair) = most_frequent(&words) {
        words = words.iter().map(|word| merge(word, &pair)).collect();
        merges.push(pair);
    }
    merges
}

fn most_frequent(words: &BTreeSet<Vec<String>>) -> Option<[String; 2]> {
    let mut counts = BTreeMap::<[&String; 2], usize>::new();
    for (left, right) in words.iter().flat_map(|word| word.iter().zip(word.iter().skip(1))) {
        *counts.entry([left, right]).or_default() += 1;
    }
    let first = counts.into_iter().rev().max_by_key(|(_, count)| *count)?;
    Some(first.0.map(String::clone))
}

fn merge(word: &[String], [left, right]: &[String; 2]) -> Vec<String> {
    let mut merged = Vec::<String>::with_capacity(word.len());
    let mut open = false;
    for symbol in word {
        match merged.last_mut() {
            Some(last) if open && last == left && symbol == right => {
                last.push_str(symbol);
                open = false;
            }
            _ => {
                merged.push(symbol.clone());
                open = true;
            }
        }
    }
    merged
}

#[cfg(test)]
mod tests;
