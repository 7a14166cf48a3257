//! CLIP's byte-pair tokenizer, equal to transformers' `CLIPTokenizer` (5.x): NFC, whitespace runs to one space, lower
//! case, CLIP's split into words, byte-level pairs with `</w>`, and special tokens cut out before all that.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::{Map, Value};
use tokenizers::{
    AddedToken, SplitDelimiterBehavior, Tokenizer,
    models::bpe::{BPE, Vocab},
    normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers, replace::ReplacePattern},
    pre_tokenizers::{
        byte_level::ByteLevel,
        sequence::Sequence as PreTokenizers,
        split::{Split, SplitPattern},
    },
};

use crate::{
    ModelError,
    config::{read_json, read_text},
};

mod vocabulary;

pub use vocabulary::vocabulary;

const STARTOFTEXT: &str = "<|startoftext|>";
const ENDOFTEXT: &str = "<|endoftext|>";
/// Special tokens, contractions, runs of letters, single digits, runs of anything else.
const WORDS: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
/// Longer prompts are cut before they are tokenized: no token is made of nothing, so what lies beyond this many bytes
/// for each place in the context cannot matter, and a megabyte of prompt costs no more than a page of it.
const MAX_BYTES_PER_TOKEN: usize = 4096;

/// A prompt as the text encoder takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenizedPrompt {
    /// Token ids: start, text, end, padding; exactly as many as the encoder has positions.
    pub ids: Vec<u32>,
    /// The tail of the text that did not fit, as it was given.
    pub truncated: Option<String>,
}

/// One tokenizer folder of a checkpoint, loaded.
#[derive(Debug)]
pub struct ClipTokenizer {
    path: PathBuf,
    inner: Tokenizer,
    length: usize,
    bos: u32,
    eos: u32,
    pad: u32,
}

impl ClipTokenizer {
    /// Loads `vocab.json`, `merges.txt` and what there is of `tokenizer_config.json` and `special_tokens_map.json`,
    /// for an encoder of `max_position_embeddings` positions. A shorter `model_max_length` is respected.
    ///
    /// # Errors
    /// A file is missing or broken, the merges do not fit the vocabulary, or `model_max_length` exceeds the encoder.
    pub fn load(folder: &Path, max_position_embeddings: usize) -> Result<Self, ModelError> {
        let config = TokenizerConfig::load(folder)?;
        let length = config.length(folder, max_position_embeddings)?;
        let mut inner = Tokenizer::new(byte_pairs(folder, &config.unk.content)?);
        let fault = |e: tokenizers::Error| tokenize_fault(folder, &e);
        let spaces = Replace::new(ReplacePattern::Regex(r"\s+".into()), " ").map_err(fault)?;
        let words = SplitPattern::Regex(WORDS.into());
        let words = Split::new(words, SplitDelimiterBehavior::Removed, true).map_err(fault)?;
        let normalizers = vec![NFC.into(), spaces.into(), Lowercase.into()];
        let pre_tokenizers = vec![words.into(), ByteLevel::new(false, true, true).into()];
        inner
            .with_normalizer(Some(Normalizers::new(normalizers)))
            .map_err(fault)?
            .with_pre_tokenizer(Some(PreTokenizers::new(pre_tokenizers)));
        for token in config.added_tokens() {
            let added = [token.to_added()];
            if token.special { inner.add_special_tokens(added) } else { inner.add_tokens(added) }
                .map_err(fault)?;
        }
        let id = |token: &SpecialToken| {
            let why = || {
                ModelError::contradicting(&folder.join("vocab.json"), &token.content, "is not a token of it")
            };
            inner.token_to_id(&token.content).ok_or_else(why)
        };
        let (bos, eos, pad) = (id(&config.bos)?, id(&config.eos)?, id(&config.pad)?);
        Ok(Self { path: folder.to_owned(), inner, length, bos, eos, pad })
    }

    /// How many ids [`Self::encode`] gives.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// The greatest id that it can give, plus one: the encoder must have as many embeddings.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        let greatest = self.inner.get_vocab(true).into_values().max();
        greatest.map_or(0, |id| id as usize + 1)
    }

    /// Tokenizes a prompt: `length - 2` tokens of it between start and end, then padding.
    ///
    /// # Errors
    /// The tokenizer's regular expressions give up, which no text is known to cause.
    pub fn encode(&self, text: &str) -> Result<TokenizedPrompt, ModelError> {
        let room = self.length - 2;
        let head = &text[..floor_char_boundary(text, MAX_BYTES_PER_TOKEN * self.length)];
        let encoding = self.inner.encode(head, false).map_err(|e| tokenize_fault(&self.path, &e))?;
        let mut ids = Vec::with_capacity(self.length);
        ids.push(self.bos);
        ids.extend(encoding.get_ids().iter().take(room));
        ids.push(self.eos);
        ids.resize(self.length, self.pad);
        let truncated = encoding
            .get_offsets()
            .get(room)
            .map(|(start, _)| text[floor_char_boundary(text, *start)..].to_owned());
        Ok(TokenizedPrompt { ids, truncated })
    }
}

/// The greatest character boundary that is not after `index`.
fn floor_char_boundary(text: &str, index: usize) -> usize {
    if index >= text.len() {
        return text.len();
    }
    (0..=index).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0)
}

fn tokenize_fault(folder: &Path, error: &tokenizers::Error) -> ModelError {
    ModelError::Tokenize { path: folder.to_owned(), why: error.to_string() }
}

fn byte_pairs(folder: &Path, unk_token: &str) -> Result<BPE, ModelError> {
    let vocab: HashMap<String, u32> = read_json(&folder.join("vocab.json"))?;
    let path = folder.join("merges.txt");
    let text = read_text(&path)?;
    let broken = |why: String| ModelError::ParseConfig { path: path.clone(), why };
    let mut merges = Vec::new();
    for (n, line) in text.lines().enumerate() {
        if line.starts_with("#version") || line.is_empty() {
            continue;
        }
        let pair = line.split_once(' ').ok_or_else(|| broken(format!("line {}: not two tokens", n + 1)))?;
        merges.push((pair.0.to_owned(), pair.1.to_owned()));
    }
    BPE::builder()
        .vocab_and_merges(vocab.into_iter().collect::<Vocab>(), merges)
        .unk_token(unk_token.to_owned())
        .end_of_word_suffix("</w>".to_owned())
        .build()
        .map_err(|e| broken(e.to_string()))
}

/// A special token with the flags that decide where in a text it is found.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "TokenForm")]
struct SpecialToken {
    content: String,
    normalized: bool,
    lstrip: bool,
    rstrip: bool,
    single_word: bool,
    special: bool,
}

/// A token is written as its text or with its flags.
#[derive(Deserialize)]
#[serde(untagged)]
enum TokenForm {
    Text(String),
    Flags {
        content: String,
        #[serde(default)]
        normalized: bool,
        #[serde(default)]
        lstrip: bool,
        #[serde(default)]
        rstrip: bool,
        #[serde(default)]
        single_word: bool,
        #[serde(default = "yes")]
        special: bool,
    },
}

fn yes() -> bool {
    true
}

impl From<TokenForm> for SpecialToken {
    fn from(form: TokenForm) -> Self {
        match form {
            TokenForm::Text(content) => Self {
                content,
                normalized: false,
                lstrip: false,
                rstrip: false,
                single_word: false,
                special: true,
            },
            TokenForm::Flags { content, normalized, lstrip, rstrip, single_word, special } => {
                Self { content, normalized, lstrip, rstrip, single_word, special }
            }
        }
    }
}

impl SpecialToken {
    fn to_added(&self) -> AddedToken {
        AddedToken::from(self.content.clone(), self.special)
            .normalized(self.normalized)
            .lstrip(self.lstrip)
            .rstrip(self.rstrip)
            .single_word(self.single_word)
    }
}

/// What the two small JSON files say together.
struct TokenizerConfig {
    bos: SpecialToken,
    eos: SpecialToken,
    pad: SpecialToken,
    unk: SpecialToken,
    /// Of `added_tokens_decoder` and `additional_special_tokens`.
    others: Vec<SpecialToken>,
    model_max_length: Option<f64>,
}

impl TokenizerConfig {
    /// `special_tokens_map.json` wins over `tokenizer_config.json`, unless the latter lists `added_tokens_decoder`;
    /// flags given there win over all.
    fn load(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join("tokenizer_config.json");
        let config = optional_object(&path)?;
        let map_path = folder.join("special_tokens_map.json");
        let decoder = config.get("added_tokens_decoder").and_then(Value::as_object);
        let map = if decoder.is_some() { Map::new() } else { optional_object(&map_path)? };
        let parse = |path: &Path, key: &str, value: &Value| {
            let broken = |e: serde_json::Error| ModelError::ParseConfig {
                path: path.to_owned(),
                why: format!("{key}: {e}"),
            };
            SpecialToken::deserialize(value).map_err(broken)
        };
        let mut others = Vec::new();
        for (id, token) in decoder.into_iter().flatten() {
            others.push(parse(&path, &format!("added_tokens_decoder.{id}"), token)?);
        }
        let slot = |key: &str, default: &str| match (map.get(key), config.get(key)) {
            (Some(v), _) if !v.is_null() => parse(&map_path, key, v),
            (_, Some(v)) if !v.is_null() => parse(&path, key, v),
            _ => Ok(SpecialToken::from(TokenForm::Text(default.to_owned()))),
        };
        let (bos, eos) = (slot("bos_token", STARTOFTEXT)?, slot("eos_token", ENDOFTEXT)?);
        let (pad, unk) = (slot("pad_token", ENDOFTEXT)?, slot("unk_token", ENDOFTEXT)?);
        for (file, object) in [(&map_path, &map), (&path, &config)] {
            for token in
                object.get("additional_special_tokens").and_then(Value::as_array).into_iter().flatten()
            {
                others.push(parse(file, "additional_special_tokens", token)?);
            }
        }
        let model_max_length = config.get("model_max_length").and_then(Value::as_f64);
        Ok(Self { bos, eos, pad, unk, others, model_max_length })
    }

    fn length(&self, folder: &Path, max_position_embeddings: usize) -> Result<usize, ModelError> {
        let path = folder.join("tokenizer_config.json");
        // transformers writes 1e30 where there is no limit.
        let length = match self.model_max_length {
            Some(n) if n < 1e9 => n as usize,
            _ => max_position_embeddings,
        };
        if length > max_position_embeddings {
            let why = format!("{length} tokens for an encoder of {max_position_embeddings} positions");
            return Err(ModelError::contradicting(&path, "model_max_length", why));
        }
        if length < 3 {
            return Err(ModelError::contradicting(
                &path,
                "model_max_length",
                format!("{length} leaves no room for text"),
            ));
        }
        Ok(length)
    }

    /// Every token to be found in a text before it is normalized, each once.
    fn added_tokens(&self) -> Vec<SpecialToken> {
        let mut tokens: Vec<SpecialToken> = self.others.clone();
        for token in [&self.bos, &self.eos, &self.unk, &self.pad] {
            if !tokens.iter().any(|t| t.content == token.content) {
                tokens.push(token.clone());
            }
        }
        tokens
    }
}

fn optional_object(path: &Path) -> Result<Map<String, Value>, ModelError> {
    if path.exists() { read_json(path) } else { Ok(Map::new()) }
}

#[cfg(test)]
mod tests;
