//! A scene in words: everything about it that has a name, said or not. Also which combinations are held out.

use crate::{
    caption::Facts,
    word::{Colour, Position, Relation, Shape, Size, Thing},
};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// Which combinations of shapes and colours a sample is drawn from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Split {
    /// What a model may see: about nine of ten combinations.
    Train,
    /// The others, to test whether a model composes what it knows. Of single objects, these are triples of shape,
    /// colour and background that no training picture holds, not even beside a second object. Of pairs, they are
    /// couples of things that never meet in training, in whichever order a caption names them; each by itself is known
    /// on its background.
    HeldOut,
}

impl Split {
    fn admits(self, outline: &Outline) -> bool {
        let things = [Some(outline.main), outline.second.map(|(thing, _)| thing)];
        let unseen = things.into_iter().flatten().any(|thing| single_held_out(thing, outline.background));
        let held_out = self == Self::HeldOut;
        match outline.second {
            None => unseen == held_out,
            Some((second, _)) => !unseen && pair_held_out(outline.main, second) == held_out,
        }
    }
}

/// Everything that a caption could say of a scene.
pub(crate) struct Outline {
    pub(crate) main: Thing,
    pub(crate) size: Size,
    pub(crate) position: Position,
    pub(crate) second: Option<(Thing, Relation)>,
    pub(crate) background: Colour,
}

impl Outline {
    /// A random scene of the split; three of ten have two objects.
    pub(crate) fn draw(split: Split, rng: &mut ChaCha8Rng) -> Self {
        let pair = rng.random_bool(0.3);
        loop {
            let main = thing(rng);
            let second = pair.then(|| (thing(rng), pick(&Relation::ALL, rng)));
            let background = pick(&Colour::OF_BACKGROUNDS, rng);
            let visible = main.colour.stands_out_from(background)
                && second
                    .is_none_or(|(s, _)| s.colour != main.colour && s.colour.stands_out_from(background));
            if !visible {
                continue;
            }
            let size = match rng.random_range(0..20u32) {
                0..7 => Size::Small,
                7..14 => Size::Medium,
                _ => Size::Large,
            };
            let outline = Self { main, size, position: position(size, rng), second, background };
            if split.admits(&outline) {
                return outline;
            }
        }
    }

    /// The facts, with what they leave open drawn at random; an unsaid size is medium more often than not, as in
    /// [`Self::draw`] with its captions.
    pub(crate) fn complete(facts: &Facts, rng: &mut ChaCha8Rng) -> Self {
        let size = facts.size.unwrap_or_else(|| match (rng.random_range(0..6u32), facts.position) {
            (0, _) => Size::Small,
            (1, None) => Size::Large,
            _ => Size::Medium,
        });
        let position = facts.position.unwrap_or_else(|| position(size, rng));
        let second =
            facts.second.map(|thing| (thing, facts.relation.unwrap_or_else(|| pick(&Relation::ALL, rng))));
        let background = facts.background.unwrap_or_else(|| {
            let colours = [Some(facts.main.colour), facts.second.map(|thing| thing.colour)];
            let fits = |b: &Colour| colours.into_iter().flatten().all(|c| c.stands_out_from(*b));
            // Two things rule out six of the eight at most.
            let fitting: Vec<_> = Colour::OF_BACKGROUNDS.into_iter().filter(fits).collect();
            pick(&fitting, rng)
        });
        Self { main: facts.main, size, position, second, background }
    }
}

fn position(size: Size, rng: &mut ChaCha8Rng) -> Position {
    if size == Size::Large { Position::Center } else { pick(&Position::ALL, rng) }
}

fn thing(rng: &mut ChaCha8Rng) -> Thing {
    Thing { shape: pick(&Shape::ALL, rng), colour: pick(&Colour::OF_OBJECTS, rng) }
}

/// One of a list that is not empty. Counted in `u32`, so that 32 and 64 bit machines draw the same.
pub(crate) fn pick<T: Copy>(list: &[T], rng: &mut ChaCha8Rng) -> T {
    list[rng.random_range(0..list.len() as u32) as usize]
}

fn code(thing: Thing) -> u64 {
    thing.shape as u64 * 16 + thing.colour as u64
}

fn single_held_out(thing: Thing, background: Colour) -> bool {
    // Of many salts tried, one that spreads the held-out triples well: of the triples with one couple of shape, colour
    // and background, it holds out two at most.
    const SALT: u64 = 8297;
    one_in_ten(SALT << 32 | code(thing) << 8 | background as u64)
}

fn pair_held_out(one: Thing, other: Thing) -> bool {
    let (low, high) = (code(one).min(code(other)), code(one).max(code(other)));
    one_in_ten(2 << 32 | low << 8 | high)
}

/// Scatters a code over the whole range with two odd multipliers, the golden ratio's and a random one. Changing this
/// changes what every trained model has seen.
fn one_in_ten(code: u64) -> bool {
    let mixed = code.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    (mixed ^ (mixed >> 32)).is_multiple_of(10)
}
