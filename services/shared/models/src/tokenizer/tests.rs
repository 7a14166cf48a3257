use std::fs;

use serde::Deserialize;
use serde_json::json;
use tempfile::TempDir;

use super::*;

/// Made by transformers 5.23.0 from the same vocabulary: ids up to the end token, without padding.
#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    tokenizer: Vec<u32>,
    tokenizer_truncated: bool,
    tokenizer_2: Vec<u32>,
    tokenizer_2_truncated: bool,
}

fn folder(merges: &str, files: &[(&str, Value)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let vocab: HashMap<String, usize> = vocabulary(merges).into_iter().zip(0..).collect();
    fs::write(folder.path().join("vocab.json"), serde_json::to_string(&vocab).unwrap()).unwrap();
    fs::write(folder.path().join("merges.txt"), merges).unwrap();
    for (name, value) in files {
        fs::write(folder.path().join(name), value.to_string()).unwrap();
    }
    folder
}

fn clip(pad: &str) -> ClipTokenizer {
    let merges = include_str!("../../../../../models/tokenizer/merges.txt");
    let special = json!({"pad_token": pad});
    let config = json!({"model_max_length": 77, "pad_token": pad});
    let folder = folder(merges, &[("special_tokens_map.json", special), ("tokenizer_config.json", config)]);
    ClipTokenizer::load(folder.path(), 77).unwrap()
}

#[test]
fn ids_are_those_of_transformers() {
    let golden: Golden = serde_json::from_str(include_str!("golden.json")).unwrap();
    let (one, two) = (clip(ENDOFTEXT), clip("!"));
    assert!(golden.cases.len() > 30);
    for case in golden.cases {
        for (tokenizer, ids, truncated, pad) in [
            (&one, &case.tokenizer, case.tokenizer_truncated, 49407),
            (&two, &case.tokenizer_2, case.tokenizer_2_truncated, 0),
        ] {
            let ours = tokenizer.encode(&case.text).unwrap();
            let mut expected = ids.clone();
            expected.resize(77, pad);
            assert_eq!(ours.ids, expected, "{:?}", case.text);
            assert_eq!(ours.truncated.is_some(), truncated, "{:?}", case.text);
            if let Some(tail) = ours.truncated {
                assert!(case.text.ends_with(&tail) && !tail.is_empty(), "{tail:?} of {:?}", case.text);
            }
        }
    }
}

#[test]
fn the_tail_that_is_cut_off_is_the_callers_own_text() {
    let tokenizer = clip(ENDOFTEXT);
    let text = format!("{}  The Étude, Last Words", "cat ".repeat(75));
    assert_eq!(tokenizer.encode(&text).unwrap().truncated.as_deref(), Some("The Étude, Last Words"));
    assert_eq!(tokenizer.encode(&"cat ".repeat(75)).unwrap().truncated, None);
}

#[test]
fn a_very_long_prompt_is_cut_and_still_reported_whole() {
    let text = "x".repeat(3_000_000);
    let truncated = clip("!").encode(&format!("{}{text}", "cat ".repeat(75))).unwrap().truncated;
    assert_eq!(truncated, Some(text));
}

/// Real checkpoints write their special tokens with `normalized: true`, so that `<|ENDOFTEXT|>` is found too.
#[test]
fn flags_of_special_tokens_are_respected() {
    let merges = "#version: 0.2\nc a\nca t</w>\n";
    let flagged = |c: &str| json!({"content": c, "lstrip": false, "normalized": true, "rstrip": false, "single_word": false});
    let map = json!({"bos_token": flagged(STARTOFTEXT), "eos_token": flagged(ENDOFTEXT), "pad_token": "!"});
    let load = |files: &[(&str, Value)]| {
        let folder = folder(merges, files);
        ClipTokenizer::load(folder.path(), 8).unwrap()
    };
    let vocab_size = 512 + 2 + 2;
    let (bos, eos, cat) = (vocab_size - 2, vocab_size - 1, 513);
    let tokenizer = load(&[("special_tokens_map.json", map)]);
    assert_eq!(tokenizer.vocab_size(), vocab_size as usize);
    assert_eq!(tokenizer.encode("Cat <|ENDOFTEXT|> cat").unwrap().ids, [bos, cat, eos, cat, eos, 0, 0, 0]);
    let plain = load(&[("special_tokens_map.json", json!({"pad_token": "!"}))]);
    assert_eq!(plain.encode("cat<|endoftext|>").unwrap().ids, [bos, cat, eos, eos, 0, 0, 0, 0]);
    assert_eq!(plain.encode("<|ENDOFTEXT|>").unwrap().truncated.as_deref(), Some("FTEXT|>"));
}

#[test]
fn a_shorter_model_max_length_is_respected_and_a_longer_one_refused() {
    let merges = "c a\n";
    let short = folder(merges, &[("tokenizer_config.json", json!({"model_max_length": 5}))]);
    let tokenizer = ClipTokenizer::load(short.path(), 8).unwrap();
    assert_eq!(tokenizer.encode("ca").unwrap().ids.len(), 5);
    let long = folder(merges, &[("tokenizer_config.json", json!({"model_max_length": 9}))]);
    let error = ClipTokenizer::load(long.path(), 8).unwrap_err().to_string();
    assert!(error.contains("tokenizer_config.json: model_max_length: 9 tokens"), "{error}");
    let none = folder(merges, &[("tokenizer_config.json", json!({"model_max_length": 1e30}))]);
    assert_eq!(ClipTokenizer::load(none.path(), 8).unwrap().length(), 8);
}

#[test]
fn broken_files_are_named() {
    let load = |f: &TempDir| ClipTokenizer::load(f.path(), 8).unwrap_err().to_string();
    let missing = folder("c a\n", &[]);
    fs::remove_file(missing.path().join("vocab.json")).unwrap();
    assert!(load(&missing).contains("vocab.json: no such file"), "{}", load(&missing));
    let odd = folder("c a\n", &[]);
    fs::write(odd.path().join("merges.txt"), "c a\nbroken\n").unwrap();
    assert!(load(&odd).contains("merges.txt: not valid: line 2"), "{}", load(&odd));
    fs::write(odd.path().join("merges.txt"), "c nosuchtoken\n").unwrap();
    assert!(load(&odd).contains("merges.txt: not valid: "), "{}", load(&odd));
    fs::write(odd.path().join("vocab.json"), "{\"a\": \"b\"}").unwrap();
    assert!(load(&odd).contains("vocab.json: not valid: invalid type"), "{}", load(&odd));
    let pad = folder("c a\n", &[("special_tokens_map.json", json!({"pad_token": 3}))]);
    assert!(load(&pad).contains("special_tokens_map.json: not valid: pad_token"), "{}", load(&pad));
}
