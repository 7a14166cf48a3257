use super::*;

fn tokenizers() -> Tokenizers {
    Tokenizers::new(&Vocabulary::new()).unwrap()
}

#[test]
fn every_word_is_one_token_of_its_own() {
    let tokenizers = tokenizers();
    let end = Vocabulary::new().len() as u32 - 1;
    let words = sdxl_scenes::vocabulary();
    let mut seen = BTreeSet::new();
    for word in words.iter().copied().chain([","]) {
        let [first, second] = tokenizers.ids(word).unwrap();
        assert_eq!((first[0], first[2]), (end - 1, end), "{word}");
        assert_eq!(first[..3], second[..3]);
        assert_eq!((&first[3..], &second[3..]), ([end; 74].as_slice(), [0; 74].as_slice()));
        assert!(seen.insert(first[1]), "{word}");
    }
    assert_eq!(seen.len(), words.len() + 1);
}

#[test]
fn the_end_is_the_greatest_id_and_exclamation_marks_the_least() {
    let Vocabulary { tokens, merges } = Vocabulary::new();
    assert_eq!((tokens[0].as_str(), tokens[256].as_str()), ("!", "!</w>"));
    assert_eq!(tokens[tokens.len() - 2..], ["<|startoftext|>", "<|endoftext|>"]);
    assert_eq!(tokens.len(), 512 + (merges.lines().count() - 1) + 2);
}

#[test]
fn any_other_text_is_spelt_out() {
    let end = Vocabulary::new().len() as u32 - 1;
    for text in ["", "A RED Circle!", "ein blauer Würfel, 🦀\0", "<|endoftext|>", &"redder ".repeat(500)] {
        for ids in tokenizers().ids(text).unwrap() {
            assert!(ids.len() == LENGTH && ids.iter().all(|id| *id <= end) && ids.contains(&end), "{text}");
        }
    }
    assert_eq!(tokenizers().ids("A RED  circle").unwrap(), tokenizers().ids("a red circle").unwrap());
}

#[test]
fn pairs_are_merged_once_for_each_two_neighbours() {
    let word = ["a", "a", "a", "b</w>"].map(String::from);
    assert_eq!(merge(&word, &["a".into(), "a".into()]), ["aa", "a", "b</w>"]);
    assert_eq!(merges(&["aab", "ab"]), [["a", "b</w>"], ["a", "ab</w>"]]);
    assert!(merges(&["a", ""]).is_empty());
}

/// Made by transformers' `CLIPTokenizer` from the files that `write` writes, without padding. If the grammar gets
/// other words, the ids change and are to be made anew.
#[derive(serde::Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(serde::Deserialize)]
struct Case {
    text: String,
    tokenizer: Vec<u32>,
    tokenizer_2: Vec<u32>,
}

#[test]
fn ids_are_those_of_transformers() {
    let golden: Golden = serde_json::from_str(include_str!("golden.json")).unwrap();
    let (tokenizers, end) = (tokenizers(), Vocabulary::new().len() as u32 - 1);
    assert!(golden.cases.len() > 40);
    for Case { text, mut tokenizer, mut tokenizer_2 } in golden.cases {
        tokenizer.resize(LENGTH, end);
        tokenizer_2.resize(LENGTH, 0);
        assert_eq!(tokenizers.ids(&text).unwrap(), [tokenizer, tokenizer_2], "{text}");
    }
}
