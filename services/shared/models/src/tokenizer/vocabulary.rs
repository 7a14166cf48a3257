//! From a list of merges to the vocabulary that follows from it.

use super::{ENDOFTEXT, STARTOFTEXT};

/// The tokens that follow from the merges of a byte-level byte-pair encoding, in the order of their ids: the 256 byte
/// symbols, the same ending a word, one token for each merge, then the two special tokens. `merges` is the text of a
/// `merges.txt`. With CLIP's merges these are CLIP's 49,408 tokens.
#[must_use]
pub fn vocabulary(merges: &str) -> Vec<String> {
    let symbols = byte_symbols();
    let mut tokens: Vec<String> = symbols.iter().map(char::to_string).collect();
    tokens.extend(symbols.iter().map(|c| format!("{c}</w>")));
    let pairs = merges.lines().filter(|l| !l.starts_with("#version")).filter_map(|l| l.split_once(' '));
    tokens.extend(pairs.map(|(a, b)| format!("{a}{b}")));
    tokens.extend([STARTOFTEXT.to_owned(), ENDOFTEXT.to_owned()]);
    tokens
}

/// A printable character for every byte: its own where it has one, then characters from 256 upwards. In the order of
/// GPT-2's table, which gives CLIP's first ids: printable bytes first.
fn byte_symbols() -> Vec<char> {
    let printable = || (b'!'..=b'~').chain(0xA1..=0xAC).chain(0xAE..=0xFF);
    let others = (0..=255u8).filter(|b| !printable().any(|p| p == *b));
    let stand_ins = others.zip(256u32..).filter_map(|(_, code)| char::from_u32(code));
    printable().map(char::from).chain(stand_ins).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clips_vocabulary_has_its_known_ids() {
        let merges = include_str!("../../../../../models/tokenizer/merges.txt");
        let tokens = vocabulary(merges);
        assert_eq!(tokens.len(), 49408);
        for (id, token) in [
            (0, "!"),
            (256, "!</w>"),
            (320, "a</w>"),
            (2368, "cat</w>"),
            (49406, STARTOFTEXT),
            (49407, ENDOFTEXT),
        ] {
            assert_eq!(tokens[id], token);
        }
    }
}
