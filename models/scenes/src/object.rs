//! One object, and where its pixels are.

use crate::word::{Size, Thing};
use std::ops::Range;

/// The greatest turn of an object to either side, in radians: six degrees.
pub const MAX_ROTATION: f32 = 0.104_72;

/// One object of a scene.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Object {
    /// Its shape and colour.
    pub thing: Thing,
    /// Its centre, as a fraction of the picture's width from the left.
    pub x: f32,
    /// Its centre, as a fraction of the picture's height from the top.
    pub y: f32,
    /// Half the side of the square that it fits into, as a fraction of the picture's shorter side.
    pub radius: f32,
    /// Its turn, clockwise, in radians, at most [`MAX_ROTATION`] to either side.
    pub rotation: f32,
}

impl Object {
    /// The size whose range holds the radius; none for radii between the ranges, which only objects of pairs have.
    #[must_use]
    pub fn size(&self) -> Option<Size> {
        Size::ALL.into_iter().find(|s| (s.radii().0..=s.radii().1).contains(&self.radius))
    }
}

/// An object laid onto a picture's pixels.
pub(crate) struct Placed<'a> {
    object: &'a Object,
    centre: [f32; 2],
    /// Pixels to a radius.
    pub(crate) scale: f32,
    sin: f32,
    cos: f32,
}

impl<'a> Placed<'a> {
    pub(crate) fn new(object: &'a Object, height: usize, width: usize) -> Self {
        let turn = object.rotation;
        let sin = turn - turn * turn * turn / 6.0; // the library's sine may differ between machines
        Self {
            object,
            centre: [object.x * width as f32, object.y * height as f32],
            scale: object.radius * height.min(width) as f32,
            sin,
            cos: (1.0 - sin * sin).sqrt(),
        }
    }

    /// A point of the picture, in pixels, as seen from the object's centre, in radii and not turned.
    pub(crate) fn local(&self, x: f32, y: f32) -> [f32; 2] {
        [(x - self.centre[0]) / self.scale, (y - self.centre[1]) / self.scale]
    }

    /// Signed distance in radii of a local point from the outline.
    pub(crate) fn distance(&self, [x, y]: [f32; 2]) -> f32 {
        let (x, y) = (x * self.cos + y * self.sin, y * self.cos - x * self.sin);
        self.object.thing.shape.distance(x, y)
    }

    /// Columns and rows that can lie within `reach` pixels of the object moved by `(right, down)` pixels.
    pub(crate) fn bounds(
        &self,
        reach: f32,
        [right, down]: [f32; 2],
        (height, width): (usize, usize),
    ) -> (Range<usize>, Range<usize>) {
        let reach = self.scale + reach;
        // A cast saturates, so what is left of the picture becomes its edge.
        let span = |centre: f32, side: usize| {
            let end = ((centre + reach).ceil() as usize).min(side);
            ((centre - reach).floor() as usize).min(end)..end
        };
        (span(self.centre[0] + right, width), span(self.centre[1] + down, height))
    }
}
