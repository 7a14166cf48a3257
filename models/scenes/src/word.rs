//! The kinds of thing that a caption can name, each with the words for it.

/// What an object looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Shape {
    /// A full circle.
    Circle,
    /// A square on its side.
    Square,
    /// An equilateral triangle that points up.
    Triangle,
    /// A star with five points, one of them up.
    Star,
    /// A cross of two equal bars.
    Cross,
}

impl Shape {
    /// Every shape.
    pub const ALL: [Self; 5] = [Self::Circle, Self::Square, Self::Triangle, Self::Star, Self::Cross];

    /// The words for it, the plainest first.
    #[must_use]
    pub fn words(self) -> &'static [&'static str] {
        match self {
            Self::Circle => &["circle", "disc"],
            Self::Square => &["square", "box"],
            Self::Triangle => &["triangle"],
            Self::Star => &["star"],
            Self::Cross => &["cross", "plus"],
        }
    }
}

/// The colour of an object or a background.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Colour {
    /// Of objects and backgrounds.
    Red,
    /// Of objects only: too near to red and yellow for a whole background.
    Orange,
    /// Of objects and backgrounds.
    Yellow,
    /// Of objects and backgrounds.
    Green,
    /// Of objects and backgrounds.
    Blue,
    /// Of objects and backgrounds.
    Purple,
    /// Of objects and backgrounds.
    White,
    /// Of objects and backgrounds.
    Black,
    /// Of backgrounds only: a shaded white object would come near it.
    Gray,
}

impl Colour {
    /// Every colour.
    pub const ALL: [Self; 9] = [
        Self::Red,
        Self::Orange,
        Self::Yellow,
        Self::Green,
        Self::Blue,
        Self::Purple,
        Self::White,
        Self::Black,
        Self::Gray,
    ];

    /// The colours of objects.
    pub const OF_OBJECTS: [Self; 8] = [
        Self::Red,
        Self::Orange,
        Self::Yellow,
        Self::Green,
        Self::Blue,
        Self::Purple,
        Self::White,
        Self::Black,
    ];

    /// The colours of backgrounds.
    pub const OF_BACKGROUNDS: [Self; 8] = [
        Self::Red,
        Self::Yellow,
        Self::Green,
        Self::Blue,
        Self::Purple,
        Self::White,
        Self::Black,
        Self::Gray,
    ];

    /// The words for it; there is one only, so that a colour's text says nothing else.
    #[must_use]
    pub fn words(self) -> &'static [&'static str] {
        match self {
            Self::Red => &["red"],
            Self::Orange => &["orange"],
            Self::Yellow => &["yellow"],
            Self::Green => &["green"],
            Self::Blue => &["blue"],
            Self::Purple => &["purple"],
            Self::White => &["white"],
            Self::Black => &["black"],
            Self::Gray => &["gray"],
        }
    }

    /// Its middle tone in sRGB, each channel in 0..=1; light and shadow stay nearer to it than to any other colour.
    #[must_use]
    pub fn rgb(self) -> [f32; 3] {
        match self {
            Self::Red => [0.86, 0.13, 0.13],
            Self::Orange => [0.98, 0.52, 0.08],
            Self::Yellow => [0.98, 0.86, 0.15],
            Self::Green => [0.13, 0.62, 0.25],
            Self::Blue => [0.14, 0.32, 0.85],
            Self::Purple => [0.52, 0.20, 0.68],
            Self::White => [0.96, 0.96, 0.96],
            Self::Black => [0.07, 0.07, 0.07],
            Self::Gray => [0.50, 0.50, 0.50],
        }
    }

    /// Whether an object of this colour can be told from a background of that one.
    #[must_use]
    pub fn stands_out_from(self, background: Self) -> bool {
        let too_near = self == Self::Orange && matches!(background, Self::Red | Self::Yellow);
        self != background && !too_near
    }
}

/// How large the only object of a scene is. The ranges leave gaps, so that no object is between two words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Size {
    /// "small".
    Small,
    /// No word is said for it.
    Medium,
    /// "large"; only in the picture's middle.
    Large,
}

impl Size {
    /// Every size.
    pub const ALL: [Self; 3] = [Self::Small, Self::Medium, Self::Large];

    /// The words for it; medium has none.
    #[must_use]
    pub fn words(self) -> &'static [&'static str] {
        match self {
            Self::Small => &["small", "tiny"],
            Self::Medium => &[],
            Self::Large => &["large", "big"],
        }
    }

    /// The least and greatest radius, as a fraction of the picture's shorter side.
    #[must_use]
    pub fn radii(self) -> (f32, f32) {
        match self {
            Self::Small => (0.15, 0.18),
            Self::Medium => (0.22, 0.26),
            Self::Large => (0.35, 0.40),
        }
    }
}

/// Where in the grid of thirds the only object of a scene sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Position {
    /// Upper row, left column.
    TopLeft,
    /// Upper row, middle column.
    Top,
    /// Upper row, right column.
    TopRight,
    /// Middle row, left column.
    Left,
    /// The middle of both.
    Center,
    /// Middle row, right column.
    Right,
    /// Lower row, left column.
    BottomLeft,
    /// Lower row, middle column.
    Bottom,
    /// Lower row, right column.
    BottomRight,
}

impl Position {
    /// Every position, row by row from the top left: `ALL[3 * row + column]`.
    pub const ALL: [Self; 9] = [
        Self::TopLeft,
        Self::Top,
        Self::TopRight,
        Self::Left,
        Self::Center,
        Self::Right,
        Self::BottomLeft,
        Self::Bottom,
        Self::BottomRight,
    ];

    /// The phrases for it, the plainest first.
    #[must_use]
    pub fn words(self) -> &'static [&'static str] {
        match self {
            Self::TopLeft => &["at the top left", "in the top left corner", "in the upper left corner"],
            Self::Top => &["at the top", "at the top center"],
            Self::TopRight => &["at the top right", "in the top right corner", "in the upper right corner"],
            Self::Left => &["on the left", "on the left side"],
            Self::Center => &["in the center", "in the middle"],
            Self::Right => &["on the right", "on the right side"],
            Self::BottomLeft => {
                &["at the bottom left", "in the bottom left corner", "in the lower left corner"]
            }
            Self::Bottom => &["at the bottom", "at the bottom center"],
            Self::BottomRight => {
                &["at the bottom right", "in the bottom right corner", "in the lower right corner"]
            }
        }
    }

    /// The third that holds a point, given as fractions of the picture's width and height.
    #[must_use]
    pub fn of(x: f32, y: f32) -> Self {
        let third = |v: f32| usize::from(v > 1.0 / 3.0) + usize::from(v > 2.0 / 3.0);
        Self::ALL[3 * third(y) + third(x)]
    }

    /// Where objects in this position have their centre but for some jitter, as fractions of width and height.
    #[must_use]
    pub fn centre(self) -> (f32, f32) {
        const THIRDS: [f32; 3] = [0.24, 0.5, 0.76];
        let index = self as usize;
        (THIRDS[index % 3], THIRDS[index / 3])
    }
}

/// Where the first object of two lies as seen from the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Relation {
    /// The first is on the left.
    LeftOf,
    /// The first is on the right.
    RightOf,
    /// The first is higher.
    Above,
    /// The first is lower.
    Below,
}

impl Relation {
    /// Every relation.
    pub const ALL: [Self; 4] = [Self::LeftOf, Self::RightOf, Self::Above, Self::Below];

    /// The phrases for it, the plainest first.
    #[must_use]
    pub fn words(self) -> &'static [&'static str] {
        match self {
            Self::LeftOf => &["left of", "to the left of"],
            Self::RightOf => &["right of", "to the right of"],
            Self::Above => &["above", "over"],
            Self::Below => &["below", "under"],
        }
    }

    /// The relation as seen from the other object.
    #[must_use]
    pub fn inverse(self) -> Self {
        match self {
            Self::LeftOf => Self::RightOf,
            Self::RightOf => Self::LeftOf,
            Self::Above => Self::Below,
            Self::Below => Self::Above,
        }
    }
}

/// A shape of a colour: what a caption says of one object beside its place and size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Thing {
    /// Its outline.
    pub shape: Shape,
    /// Its colour.
    pub colour: Colour,
}
