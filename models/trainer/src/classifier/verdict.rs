//! A caption's claims held against what a picture shows.

use sdxl_scenes::{Facts, Position, Relation, Shape, Size};
use serde::Serialize;

use super::{Found, Reading};

/// How well an outline fits at least, if the object is to have that shape at all; true renderings reach 0.9.
const LIKENESS: f32 = 0.75;

/// Which claims are true of a picture; none for what the caption does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// There are as many objects as named.
    pub count: bool,
    /// The main object's colour.
    pub main_colour: bool,
    /// The main object's shape.
    pub shape: bool,
    /// The background's colour.
    pub background: Option<bool>,
    /// The only object's size.
    pub size: Option<bool>,
    /// The only object's position.
    pub position: Option<bool>,
    /// The second object's colour.
    pub second_colour: Option<bool>,
    /// The second object's shape.
    pub second_shape: Option<bool>,
    /// How the two lie to one another.
    pub relation: Option<bool>,
}

/// What can be right or wrong about a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Aspect {
    /// See [`Verdict::main_colour`].
    MainColour,
    /// See [`Verdict::background`].
    Background,
    /// See [`Verdict::shape`].
    Shape,
    /// See [`Verdict::position`].
    Position,
    /// See [`Verdict::size`].
    Size,
    /// See [`Verdict::relation`].
    Relation,
    /// See [`Verdict::second_colour`].
    SecondColour,
    /// See [`Verdict::second_shape`].
    SecondShape,
    /// See [`Verdict::count`].
    Count,
    /// All that the caption says.
    Everything,
}

impl Aspect {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::MainColour,
        Self::Background,
        Self::Shape,
        Self::Position,
        Self::Size,
        Self::Relation,
        Self::SecondColour,
        Self::SecondShape,
        Self::Count,
        Self::Everything,
    ];

    /// Its name in a table.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::MainColour => "main colour",
            Self::Background => "background colour",
            Self::Shape => "shape",
            Self::Position => "position",
            Self::Size => "size",
            Self::Relation => "relation of two",
            Self::SecondColour => "second object's colour",
            Self::SecondShape => "second object's shape",
            Self::Count => "number of objects",
            Self::Everything => "everything said",
        }
    }
}

impl Verdict {
    /// Judges a picture by a caption. Of two objects each is looked for by its colour, as these always differ.
    #[must_use]
    pub fn new(reading: &Reading, facts: &Facts) -> Self {
        let pair = facts.second.is_some();
        let largest = reading.objects.first();
        let main = if pair { reading.of_colour(facts.main.colour) } else { largest };
        let second = facts.second.map(|thing| (thing, reading.of_colour(thing.colour)));
        let holds = |found: Option<&Found>, claim: &dyn Fn(&Found) -> bool| found.is_some_and(claim);
        Self {
            count: reading.objects.len() == 1 + usize::from(pair),
            main_colour: holds(main, &|found| found.colour == facts.main.colour),
            shape: holds(main, &|found| is_of(found, facts.main.shape)),
            background: facts.background.map(|colour| reading.background == colour),
            size: facts.size.map(|size| holds(main, &|found| size_of(found) == size)),
            position: facts.position.map(|position| {
                holds(main, &|found| Position::of(found.centre[0], found.centre[1]) == position)
            }),
            second_colour: second.map(|(_, found)| found.is_some()),
            second_shape: second.map(|(thing, found)| holds(found, &|found| is_of(found, thing.shape))),
            relation: facts.relation.map(|relation| {
                let both = main.zip(second.and_then(|(_, found)| found));
                both.is_some_and(|(main, second)| relation_of(main, second) == relation)
            }),
        }
    }

    /// Whether that is right, if it was said.
    #[must_use]
    pub fn get(&self, aspect: Aspect) -> Option<bool> {
        match aspect {
            Aspect::MainColour => Some(self.main_colour),
            Aspect::Background => self.background,
            Aspect::Shape => Some(self.shape),
            Aspect::Position => self.position,
            Aspect::Size => self.size,
            Aspect::Relation => self.relation,
            Aspect::SecondColour => self.second_colour,
            Aspect::SecondShape => self.second_shape,
            Aspect::Count => Some(self.count),
            Aspect::Everything => {
                let others = Aspect::ALL.into_iter().filter(|aspect| *aspect != Aspect::Everything);
                Some(others.filter_map(|aspect| self.get(aspect)).all(|right| right))
            }
        }
    }
}

fn is_of(found: &Found, shape: Shape) -> bool {
    found.shape == shape && found.likeness >= LIKENESS
}

/// The size whose range of radii is nearest.
fn size_of(found: &Found) -> Size {
    let outside = |size: &Size| {
        let (least, greatest) = size.radii();
        (least - found.radius).max(found.radius - greatest)
    };
    Size::ALL.into_iter().min_by(|a, b| outside(a).total_cmp(&outside(b))).unwrap_or(Size::Medium)
}

/// Where `main` lies as seen from `second`, by the axis along which they are further apart.
fn relation_of(main: &Found, second: &Found) -> Relation {
    let [right, down] = [0, 1].map(|axis| main.centre[axis] - second.centre[axis]);
    match (right.abs() > down.abs(), right > 0.0, down > 0.0) {
        (true, true, _) => Relation::RightOf,
        (true, false, _) => Relation::LeftOf,
        (false, _, true) => Relation::Below,
        (false, _, false) => Relation::Above,
    }
}
