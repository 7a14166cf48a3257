//! Scenes to pixels. One light shines from the top left: it grades the background, casts each object's soft shadow to
//! the lower right, and rounds the objects a little. All is smooth, as a small autoencoder keeps no fine detail.

use crate::{
    object::{Object, Placed},
    scene::Scene,
};

/// Half the width of an edge's ramp, in pixels.
const EDGE: f32 = 0.9;
/// How far a shadow falls to the right and down, as a fraction of the picture's shorter side.
const SHADOW_OFFSET: [f32; 2] = [0.022, 0.030];
/// Half the width of a shadow's ramp, likewise.
const SHADOW_BLUR: f32 = 0.045;
/// Share of black in the middle of a shadow.
const SHADOW_DEPTH: f32 = 0.30;

impl Scene {
    /// The picture: planar RGB `[3, height, width]`, sRGB in 0..=1.
    #[must_use]
    pub fn render(&self, height: usize, width: usize) -> Vec<f32> {
        let mut canvas = Canvas { pixels: vec![0.0; 3 * height * width], height, width };
        canvas.fill_background(self);
        for object in &self.objects {
            canvas.draw_shadow(&Placed::new(object, height, width));
        }
        for object in &self.objects {
            canvas.draw_object(object);
        }
        canvas.pixels
    }
}

/// A planar picture in the making.
struct Canvas {
    pixels: Vec<f32>,
    height: usize,
    width: usize,
}

impl Canvas {
    fn fill_background(&mut self, scene: &Scene) {
        let (height, width) = (self.height, self.width);
        let colour = scene.background.rgb();
        let gradient = scene.gradient;
        for row in 0..height {
            let down = (row as f32 + 0.5) / height as f32;
            for col in 0..width {
                let right = (col as f32 + 0.5) / width as f32;
                let light = 1.0 - 2.0 * ((1.0 - gradient.slant) * down + gradient.slant * right);
                self.set(row * width + col, lit(colour, gradient.depth * light), 1.0);
            }
        }
    }

    fn draw_shadow(&mut self, object: &Placed<'_>) {
        let short = self.height.min(self.width) as f32;
        let [right, down] = SHADOW_OFFSET.map(|offset| offset * short);
        let blur = SHADOW_BLUR * short;
        let (columns, rows) = object.bounds(blur, [right, down], (self.height, self.width));
        for row in rows {
            for col in columns.clone() {
                let local = object.local(col as f32 + 0.5 - right, row as f32 + 0.5 - down);
                let depth = ramp(object.distance(local) * object.scale, blur);
                if depth > 0.0 {
                    self.set(row * self.width + col, [0.0; 3], SHADOW_DEPTH * depth);
                }
            }
        }
    }

    fn draw_object(&mut self, object: &Object) {
        let placed = Placed::new(object, self.height, self.width);
        let colour = object.thing.colour.rgb();
        let (columns, rows) = placed.bounds(EDGE, [0.0; 2], (self.height, self.width));
        for row in rows {
            for col in columns.clone() {
                let local = placed.local(col as f32 + 0.5, row as f32 + 0.5);
                let distance = placed.distance(local);
                let cover = ramp(distance * placed.scale, EDGE);
                if cover > 0.0 {
                    self.set(row * self.width + col, lit(colour, light(local, distance)), cover);
                }
            }
        }
    }

    /// Lays a colour over a pixel.
    fn set(&mut self, index: usize, colour: [f32; 3], cover: f32) {
        let plane = self.height * self.width;
        for (channel, value) in colour.into_iter().enumerate() {
            let pixel = &mut self.pixels[channel * plane + index];
            *pixel += cover * (value - *pixel);
        }
    }
}

/// How much of an edge's ramp is covered at a distance from the outline: 1 inside, 0 outside, smooth between.
fn ramp(distance: f32, half_width: f32) -> f32 {
    let t = (0.5 - 0.5 * distance / half_width).clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

/// Light that an object's point gets, from -1 for none to 1 for white: it falls to the lower right and to the rim, and
/// has a soft gloss at the upper left.
fn light([x, y]: [f32; 2], distance: f32) -> f32 {
    const RIM: f32 = 0.22;
    let slope = -0.09 * (x + y);
    let rim = (1.0 + distance / RIM).clamp(0.0, 1.0);
    let (gloss_x, gloss_y) = (x + 0.26, y + 0.28);
    let gloss = (1.0 - (gloss_x * gloss_x + gloss_y * gloss_y) / 0.25).max(0.0);
    slope - 0.08 * rim * rim + 0.14 * gloss * gloss
}

/// A colour with white mixed in where light is positive, and black where it is negative.
fn lit(colour: [f32; 3], light: f32) -> [f32; 3] {
    let towards = if light > 0.0 { 1.0 } else { 0.0 };
    colour.map(|channel| channel + light.abs() * (towards - channel))
}
