//! A scene: all that a picture is made of.

use crate::{
    caption::Facts,
    object::{MAX_ROTATION, Object, Placed},
    outline::Outline,
    word::{Colour, Relation, Thing},
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Objects keep at least this fraction of a side between themselves and the picture's edge.
const MARGIN: f32 = 0.02;

/// Objects of a pair are so large, that they fit beside each other in a square.
const PAIR_RADII: (f32, f32) = (0.15, 0.20);

/// How a background's lightness falls from the light's side to the other; its colour keeps its name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gradient {
    /// Share of white mixed in at the lit end, and of black at the other.
    pub depth: f32,
    /// 0 for straight down, 0.5 for along the diagonal from the top left.
    pub slant: f32,
}

/// All that a picture is made of, apart from its size.
#[derive(Clone, Debug, PartialEq)]
pub struct Scene {
    /// The background's colour.
    pub background: Colour,
    /// The background's shading.
    pub gradient: Gradient,
    /// One or two objects; the caption's main one first. They are whole, and apart, at every aspect ratio.
    pub objects: Vec<Object>,
}

impl Scene {
    /// A scene that the facts are true of; all that they leave open is drawn at random. The caption's grammar never
    /// says size or position of one of two objects, nor a position of a large one: such facts are followed as far as
    /// the object stays whole.
    #[must_use]
    pub fn from_facts(facts: &Facts, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let outline = Outline::complete(facts, &mut rng);
        Self::place(&outline, &mut rng)
    }

    /// Gives everything its exact place.
    pub(crate) fn place(outline: &Outline, rng: &mut ChaCha8Rng) -> Self {
        let gradient = Gradient { depth: rng.random_range(0.04..0.10), slant: rng.random_range(0.0..0.5) };
        let objects = match outline.second {
            None => {
                let (x, y) = outline.position.centre();
                let (x, y) = (x + jitter(0.03, rng), y + jitter(0.03, rng));
                vec![object(outline.main, (x, y), outline.size.radii(), rng)]
            }
            Some((second, relation)) => {
                // The centres are at least 0.42 apart along the relation's axis and the radii at most 0.2 each, of
                // the shorter side at that: objects cannot meet, however wide or tall the picture is.
                let near = 0.27 + jitter(0.02, rng);
                let far = 0.73 + jitter(0.02, rng);
                let across = [0.5 + jitter(0.1, rng), 0.5 + jitter(0.1, rng)];
                let (main_at, second_at) = match relation {
                    Relation::LeftOf => ((near, across[0]), (far, across[1])),
                    Relation::RightOf => ((far, across[0]), (near, across[1])),
                    Relation::Above => ((across[0], near), (across[1], far)),
                    Relation::Below => ((across[0], far), (across[1], near)),
                };
                vec![
                    object(outline.main, main_at, PAIR_RADII, rng),
                    object(second, second_at, PAIR_RADII, rng),
                ]
            }
        };
        Self { background: outline.background, gradient, objects }
    }

    /// What fills each cell of a `rows` x `cols` grid laid over the picture, row by row: 0 the background, 1 the
    /// first object, 2 the second. The majority within the cell's middle half decides; the background wins a tie.
    #[must_use]
    pub fn labels(&self, height: usize, width: usize, rows: usize, cols: usize) -> Vec<u8> {
        const PROBES: [f32; 4] = [0.3125, 0.4375, 0.5625, 0.6875];
        let placed: Vec<_> = self.objects.iter().map(|o| Placed::new(o, height, width)).collect();
        let (cell_height, cell_width) = (height as f32 / rows as f32, width as f32 / cols as f32);
        let mut labels = Vec::with_capacity(rows * cols);
        for row in 0..rows {
            for col in 0..cols {
                let covers = |object: &Placed<'_>| {
                    let inside = |v: f32, u: f32| {
                        let (x, y) = ((col as f32 + u) * cell_width, (row as f32 + v) * cell_height);
                        object.distance(object.local(x, y)) < 0.0
                    };
                    let count = PROBES.iter().flat_map(|v| PROBES.iter().map(move |u| (*v, *u)));
                    count.filter(|(v, u)| inside(*v, *u)).count() * 2 > PROBES.len() * PROBES.len()
                };
                // Objects do not overlap, so at most one has the majority.
                labels.push(placed.iter().zip(1u8..).find(|(o, _)| covers(o)).map_or(0, |(_, label)| label));
            }
        }
        labels
    }
}

fn jitter(reach: f32, rng: &mut ChaCha8Rng) -> f32 {
    rng.random_range(-reach..reach)
}

/// An object near a centre. What keeps it whole in a square keeps it whole in any picture, as its radius is a fraction
/// of the shorter side.
fn object(thing: Thing, (x, y): (f32, f32), radii: (f32, f32), rng: &mut ChaCha8Rng) -> Object {
    let radius = rng.random_range(radii.0..radii.1);
    let least = radius + MARGIN;
    Object {
        thing,
        x: x.clamp(least, 1.0 - least),
        y: y.clamp(least, 1.0 - least),
        radius,
        rotation: jitter(MAX_ROTATION, rng),
    }
}
