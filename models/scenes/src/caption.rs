//! What a caption claims, and the words it is said in.

use crate::{
    outline::pick,
    word::{Colour, Position, Relation, Shape, Size, Thing},
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What a caption claims of its picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Facts {
    /// The object named first.
    pub main: Thing,
    /// Its size, if said: never medium, and never of one of two.
    pub size: Option<Size>,
    /// Its position, if said: never of a large object, nor of one of two.
    pub position: Option<Position>,
    /// The other object, if there are two.
    pub second: Option<Thing>,
    /// Where the main object lies as seen from the other, if said.
    pub relation: Option<Relation>,
    /// The background's colour, if said.
    pub background: Option<Colour>,
}

impl Facts {
    /// A caption that claims just this, in words drawn by the seed.
    #[must_use]
    pub fn caption(&self, seed: u64) -> String {
        self.write(&mut ChaCha8Rng::seed_from_u64(seed))
    }

    pub(crate) fn write(&self, rng: &mut ChaCha8Rng) -> String {
        let articles = rng.random_bool(0.8);
        let mut text = String::new();
        noun(&mut text, self.main, self.size, articles, rng);
        if let Some(position) = self.position {
            say(&mut text, pick(position.words(), rng));
        }
        if let Some(second) = self.second {
            say(&mut text, self.relation.map_or("and", |relation| pick(relation.words(), rng)));
            noun(&mut text, second, None, articles, rng);
        }
        if let Some(background) = self.background {
            match rng.random_range(0..20u32) {
                0..9 => say(&mut text, "on a"),
                9..13 => say(&mut text, "against a"),
                _ => text.push(','),
            }
            say(&mut text, pick(background.words(), rng));
            say(&mut text, "background");
        }
        text
    }
}

fn noun(text: &mut String, thing: Thing, size: Option<Size>, article: bool, rng: &mut ChaCha8Rng) {
    let sizes = size.map_or(&[][..], Size::words);
    let size = (!sizes.is_empty()).then(|| pick(sizes, rng));
    let colour = pick(thing.colour.words(), rng);
    if article {
        let vowel = size.unwrap_or(colour).starts_with(['a', 'e', 'i', 'o', 'u']);
        say(text, if vowel { "an" } else { "a" });
    }
    if let Some(size) = size {
        say(text, size);
    }
    say(text, colour);
    say(text, pick(thing.shape.words(), rng));
}

fn say(text: &mut String, words: &str) {
    if !text.is_empty() {
        text.push(' ');
    }
    text.push_str(words);
}

/// Every word that a caption can hold, sorted. The comma, which can follow any word, is not among them.
#[must_use]
pub fn vocabulary() -> Vec<&'static str> {
    let mut words = vec!["a", "against", "an", "and", "background", "on"];
    let phrases = Shape::ALL
        .iter()
        .flat_map(|s| s.words())
        .chain(Colour::ALL.iter().flat_map(|c| c.words()))
        .chain(Size::ALL.iter().flat_map(|s| s.words()))
        .chain(Position::ALL.iter().flat_map(|p| p.words()))
        .chain(Relation::ALL.iter().flat_map(|r| r.words()));
    words.extend(phrases.flat_map(|phrase| phrase.split(' ')));
    words.sort_unstable();
    words.dedup();
    words
}
