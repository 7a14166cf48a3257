//! From a caption back to what it claims.

use crate::{
    caption::Facts,
    word::{Colour, Position, Relation, Shape, Size, Thing},
};

/// What a caption claims, or none if the grammar has no such caption or the world no such picture: a gray object, one
/// that its background hides, two of one colour, a position of a large one.
#[must_use]
pub fn parse(caption: &str) -> Option<Facts> {
    let spaced = caption.replace(',', " , ");
    let words: Vec<_> = spaced.split_whitespace().collect();
    let mut rest = Reader(&words);

    let (size, main) = rest.noun()?;
    let mut facts = Facts { main, size, position: None, second: None, relation: None, background: None };
    facts.position = rest.one_of(&Position::ALL, Position::words);
    facts.relation = rest.one_of(&Relation::ALL, Relation::words);
    if facts.relation.is_some() || rest.skip("and") {
        let (None, second) = rest.noun()? else { return None };
        facts.second = Some(second);
    }
    if !rest.0.is_empty() {
        facts.background = Some(rest.background()?);
    }
    (rest.0.is_empty() && drawable(&facts)).then_some(facts)
}

/// Whether the world has pictures that the facts are true of.
fn drawable(facts: &Facts) -> bool {
    let visible = |thing: Thing| {
        Colour::OF_OBJECTS.contains(&thing.colour)
            && facts.background.is_none_or(|background| thing.colour.stands_out_from(background))
    };
    let background = facts.background.is_none_or(|b| Colour::OF_BACKGROUNDS.contains(&b));
    let lone = facts.size.is_none() && facts.position.is_none();
    let second = facts.second.is_none_or(|s| visible(s) && s.colour != facts.main.colour && lone);
    let room = facts.size != Some(Size::Large) || facts.position.is_none();
    visible(facts.main) && background && second && room
}

/// The words not read yet.
struct Reader<'a>(&'a [&'a str]);

impl Reader<'_> {
    /// Reads past the phrase if it comes next.
    fn skip(&mut self, phrase: &str) -> bool {
        let mut rest = self.0;
        for word in phrase.split(' ') {
            match rest.split_first() {
                Some((first, tail)) if *first == word => rest = tail,
                _ => return false,
            }
        }
        self.0 = rest;
        true
    }

    /// The item one of whose phrases comes next. The longest phrase counts, as "at the top" also begins "at the top
    /// left".
    fn one_of<T: Copy>(&mut self, items: &[T], phrases: fn(T) -> &'static [&'static str]) -> Option<T> {
        let read = |phrase: &str| {
            let mut ahead = Reader(self.0);
            ahead.skip(phrase).then_some(ahead.0)
        };
        let matches = items.iter().flat_map(|item| phrases(*item).iter().map(move |phrase| (*item, phrase)));
        let matches = matches.filter_map(|(item, phrase)| Some((item, read(phrase)?)));
        let (item, rest) = matches.min_by_key(|(_, rest)| rest.len())?;
        self.0 = rest;
        Some(item)
    }

    fn noun(&mut self) -> Option<(Option<Size>, Thing)> {
        let _article = self.skip("a") || self.skip("an");
        let size = self.one_of(&Size::ALL, Size::words);
        let colour = self.one_of(&Colour::ALL, Colour::words)?;
        let shape = self.one_of(&Shape::ALL, Shape::words)?;
        Some((size, Thing { shape, colour }))
    }

    fn background(&mut self) -> Option<Colour> {
        if !(self.skip(",") || self.skip("on a") || self.skip("against a")) {
            return None;
        }
        let colour = self.one_of(&Colour::ALL, Colour::words)?;
        self.skip("background").then_some(colour)
    }
}
