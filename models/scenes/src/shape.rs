//! The outlines as signed distance fields. Units are bounding radii and y points down: an outline fits into the square
//! from -1 to 1 even when turned by [`MAX_ROTATION`](crate::MAX_ROTATION).

use crate::word::Shape;

/// Corners are rounded by this much, as the autoencoder would round them anyway.
const ROUNDING: f32 = 0.04;

impl Shape {
    /// Signed distance of a point from the outline: negative inside. The sizes give all shapes about one area.
    pub(crate) fn distance(self, x: f32, y: f32) -> f32 {
        match self {
            Self::Circle => length(x, y) - 0.80,
            Self::Square => square(x, y) - ROUNDING,
            Self::Triangle => triangle(x, y) - ROUNDING,
            Self::Star => star(x, y) - ROUNDING,
            Self::Cross => cross(x, y) - ROUNDING,
        }
    }
}

fn length(x: f32, y: f32) -> f32 {
    (x * x + y * y).sqrt()
}

/// Distance of a point from the segment between two points.
fn to_segment(point: [f32; 2], from: [f32; 2], to: [f32; 2]) -> f32 {
    let (px, py) = (point[0] - from[0], point[1] - from[1]);
    let (sx, sy) = (to[0] - from[0], to[1] - from[1]);
    let along = ((px * sx + py * sy) / (sx * sx + sy * sy)).clamp(0.0, 1.0);
    length(px - along * sx, py - along * sy)
}

fn square(x: f32, y: f32) -> f32 {
    const HALF: f32 = 0.66;
    let (qx, qy) = (x.abs() - HALF, y.abs() - HALF);
    length(qx.max(0.0), qy.max(0.0)) + qx.max(qy).min(0.0)
}

fn triangle(x: f32, y: f32) -> f32 {
    const TOP: [f32; 2] = [0.0, -0.86];
    const CORNER: [f32; 2] = [0.88, 0.664];
    let x = x.abs();
    let distance = to_segment([x, y], TOP, CORNER).min(to_segment([x, y], CORNER, [-CORNER[0], CORNER[1]]));
    let left_of_side = (x - TOP[0]) * (CORNER[1] - TOP[1]) < (y - TOP[1]) * (CORNER[0] - TOP[0]);
    if left_of_side && y < CORNER[1] { -distance } else { distance }
}

/// The star is its own mirror image in five lines, which fold the plane into a wedge that one edge crosses.
fn star(x: f32, y: f32) -> f32 {
    const TIP: [f32; 2] = [0.0, 0.96];
    const WAIST: f32 = 0.47;
    const SIN_36: f32 = 0.587_785_25;
    const COS_36: f32 = 0.809_017;
    const SIN_72: f32 = 0.951_056_5;
    const COS_72: f32 = 0.309_017;
    // Angles count from the upper tip. First 180 degrees are left, then 72, then 36.
    let (x, y) = (x.abs(), -y);
    let beyond = (x * COS_72 - y * SIN_72).max(0.0);
    let (x, y) = ((x - 2.0 * beyond * COS_72).abs(), y + 2.0 * beyond * SIN_72);
    let beyond = (x * COS_36 - y * SIN_36).max(0.0);
    let (x, y) = (x - 2.0 * beyond * COS_36, y + 2.0 * beyond * SIN_36);
    let notch = [WAIST * SIN_36, WAIST * COS_36];
    let distance = to_segment([x, y], TIP, notch);
    let inside = (notch[0] - TIP[0]) * (y - TIP[1]) < (notch[1] - TIP[1]) * (x - TIP[0]);
    if inside { -distance } else { distance }
}

fn cross(x: f32, y: f32) -> f32 {
    const REACH: f32 = 0.86;
    const HALF_WIDTH: f32 = 0.27;
    let (x, y) = (x.abs(), y.abs());
    let (x, y) = (x.max(y), x.min(y)); // all four arms look alike
    let end = to_segment([x, y], [REACH, 0.0], [REACH, HALF_WIDTH]);
    let side = to_segment([x, y], [HALF_WIDTH, HALF_WIDTH], [REACH, HALF_WIDTH]);
    let distance = end.min(side);
    if x < REACH && y < HALF_WIDTH { -distance } else { distance }
}
