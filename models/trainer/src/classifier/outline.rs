//! Which outline fits an object's pixels: every shape's is laid over them, turned as far as objects are turned.

use sdxl_scenes::{Colour, Gradient, MAX_ROTATION, Object, Scene, Shape, Thing};

use super::mask::Mask;

/// Points along a side of an outline's own square.
const SIDE: usize = 64;

/// A shape at one turn, as the points of a square of two radii that it covers.
#[derive(Clone, Debug)]
struct Outline {
    shape: Shape,
    covered: Vec<bool>,
    /// Area in squared radii.
    area: f32,
    /// Its centre of gravity from its centre, in radii to the right and down.
    offset: [f32; 2],
}

impl Outline {
    fn new(shape: Shape, rotation: f32) -> Self {
        let thing = Thing { shape, colour: Colour::Red };
        let scene = Scene {
            background: Colour::Blue,
            gradient: Gradient { depth: 0.0, slant: 0.0 },
            objects: vec![Object { thing, x: 0.5, y: 0.5, radius: 0.5, rotation }],
        };
        let covered: Vec<bool> =
            scene.labels(SIDE, SIDE, SIDE, SIDE).iter().map(|label| *label == 1).collect();
        let points = covered.iter().enumerate().filter(|(_, covered)| **covered);
        let local = |at: usize| (at as f32 + 0.5) / (0.5 * SIDE as f32) - 1.0;
        let (mut count, mut sum) = (0.0, [0.0, 0.0]);
        for (i, _) in points {
            count += 1.0;
            sum = [sum[0] + local(i % SIDE), sum[1] + local(i / SIDE)];
        }
        let area = count * (2.0 / SIDE as f32).powi(2);
        Self { shape, covered, area, offset: sum.map(|v| v / count) }
    }

    /// Pixels in both, as a share of those in either, where the outline has that centre and radius in pixels.
    fn overlap(&self, mask: &Mask, [x, y]: [f32; 2], radius: f32) -> f32 {
        let [height, width] = mask.size();
        let span = |centre: f32, side: usize| {
            ((centre - radius).max(0.0) as usize)..((centre + radius).ceil().max(0.0) as usize).min(side)
        };
        let place =
            |pixel: usize, centre: f32| ((pixel as f32 + 0.5 - centre) / radius + 1.0) * 0.5 * SIDE as f32;
        let (mut own, mut both) = (0usize, 0usize);
        for row in span(y, height) {
            let v = place(row, y);
            for column in span(x, width) {
                let u = place(column, x);
                let inside = (0.0..SIDE as f32).contains(&u) && (0.0..SIDE as f32).contains(&v);
                if inside && self.covered[v as usize * SIDE + u as usize] {
                    own += 1;
                    both += usize::from(mask.has(row, column));
                }
            }
        }
        both as f32 / (own + mask.pixels() - both).max(1) as f32
    }

    /// In pixels, with the area of `mask`.
    fn radius(&self, mask: &Mask) -> f32 {
        (mask.pixels() as f32 / self.area).sqrt()
    }

    /// The best overlap with outlines of about the mask's area and centre of gravity.
    fn fit(&self, mask: &Mask) -> f32 {
        let radius = self.radius(mask);
        let [x, y] = mask.centre();
        let mut best = 0.0_f32;
        for scale in [0.95, 1.0, 1.05] {
            let radius = radius * scale;
            for (right, down) in [(0.0, 0.0), (0.06, 0.0), (-0.06, 0.0), (0.0, 0.06), (0.0, -0.06)] {
                let centre = [x + (right - self.offset[0]) * radius, y + (down - self.offset[1]) * radius];
                best = best.max(self.overlap(mask, centre, radius));
            }
        }
        best
    }
}

/// What fits a mask best.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fit {
    pub(super) shape: Shape,
    /// Pixels in both, as a share of those in either.
    pub(super) likeness: f32,
    /// The radius with the mask's area, in pixels.
    pub(super) radius: f32,
}

/// The outlines of all shapes.
#[derive(Clone, Debug)]
pub(super) struct Outlines(Vec<Outline>);

impl Outlines {
    pub(super) fn new() -> Self {
        let turns = [-1.0, -0.5, 0.0, 0.5, 1.0].map(|share| share * MAX_ROTATION);
        let all = Shape::ALL.into_iter().flat_map(|shape| turns.map(|turn| Outline::new(shape, turn)));
        Self(all.collect())
    }

    /// The outline that fits best.
    pub(super) fn best(&self, mask: &Mask) -> Fit {
        let fit = |outline: &Outline| Fit {
            shape: outline.shape,
            likeness: outline.fit(mask),
            radius: outline.radius(mask),
        };
        let best = self.0.iter().map(fit).max_by(|a, b| a.likeness.total_cmp(&b.likeness));
        best.unwrap_or(Fit { shape: Shape::Circle, likeness: 0.0, radius: 0.0 })
    }
}
