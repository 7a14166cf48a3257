//! From what the network says of each cell to objects: what each is, and by its pixels where it is and how large.

use candle_core::{D, DType};
use candle_nn::ops::softmax;
use sdxl_scenes::{Colour, Shape};

use super::{
    Raster,
    network::{CELL, COLOURS, Logits, SHAPES},
};
use crate::TrainError;

/// Cells that make an object: the smallest ones fill six.
const LEAST_CELLS: f32 = 2.5;
/// The area of every shape, about, in squared radii.
const AREA: f32 = 1.97;

/// What a picture shows.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// What is behind.
    pub background: Colour,
    /// The objects, each of its own colour, the largest first.
    pub objects: Vec<Found>,
}

/// An object.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    /// Its colour.
    pub colour: Colour,
    /// Its shape.
    pub shape: Shape,
    /// The centre of its pixels, as fractions of width and height.
    pub centre: [f32; 2],
    /// Its pixels, as a fraction of all.
    pub area: f32,
    /// The radius that it would have with this area, as a fraction of the shorter side.
    pub radius: f32,
    /// Whether it keeps clear of the picture's border.
    pub whole: bool,
}

impl Reading {
    /// The object of that colour.
    #[must_use]
    pub fn of_colour(&self, colour: Colour) -> Option<&Found> {
        self.objects.iter().find(|found| found.colour == colour)
    }
}

/// Reads pictures of one size by their logits.
pub(super) fn read(pictures: &[Raster], logits: &Logits) -> Result<Vec<Reading>, TrainError> {
    let colours = softmax(&logits.colours, D::Minus1)?.to_dtype(DType::F32)?.to_vec3::<f32>()?;
    let shapes = softmax(&logits.shapes, D::Minus1)?.to_dtype(DType::F32)?.to_vec3::<f32>()?;
    let backgrounds = logits.background.argmax(D::Minus1)?.to_vec1::<u32>()?;
    let cells = colours.iter().zip(&shapes);
    let pictures = pictures.iter().zip(cells).zip(backgrounds);
    Ok(pictures
        .map(|((picture, (colours, shapes)), background)| {
            let background = Colour::OF_BACKGROUNDS[background as usize];
            objects(picture, background, colours, shapes)
        })
        .collect())
}

pub(super) fn objects(picture: &Raster, background: Colour, colours: &[Vec<f32>], shapes: &[Vec<f32>]) -> Reading {
    let mut things: Vec<(Colour, Shape, f32)> = Vec::new();
    for (i, colour) in Colour::OF_OBJECTS.into_iter().enumerate() {
        let cells: f32 = colours.iter().map(|cell| cell[i]).sum();
        if cells >= LEAST_CELLS {
            // Every cell votes, by how sure it is to be of this object.
            let votes = |shape: usize| -> f32 { colours.iter().zip(shapes).map(|(c, s)| c[i] * s[shape]).sum() };
            let best = (0..SHAPES - 1).max_by(|a, b| votes(*a).total_cmp(&votes(*b))).unwrap_or_default();
            things.push((colour, Shape::ALL[best], cells));
        }
    }
    things.sort_by(|a, b| b.2.total_cmp(&a.2));
    let mut masks = vec![Mask::default(); things.len()];
    let palette: Vec<_> = things.iter().map(|(colour, ..)| *colour).collect();
    let [height, width] = picture.size;
    let near = near_objects(colours, width / CELL);
    for row in 0..height {
        for column in 0..width {
            if near[row / CELL * (width / CELL) + column / CELL]
                && let Some(object) = nearest(picture.at(row, column), background, &palette)
            {
                masks[object].add([row, column], picture.size);
            }
        }
    }
    let found = things.iter().zip(&masks).filter(|(_, mask)| mask.pixels > 0);
    Reading { background, objects: found.map(|(thing, mask)| mask.found(*thing, picture.size)).collect() }
}

/// The pixels of an object.
#[derive(Clone, Copy, Debug, Default)]
struct Mask {
    pixels: usize,
    rows: usize,
    columns: usize,
    at_border: bool,
}

impl Mask {
    fn add(&mut self, [row, column]: [usize; 2], [height, width]: [usize; 2]) {
        self.pixels += 1;
        self.rows += row;
        self.columns += column;
        self.at_border |= row == 0 || column == 0 || row + 1 == height || column + 1 == width;
    }

    fn found(&self, (colour, shape, _): (Colour, Shape, f32), [height, width]: [usize; 2]) -> Found {
        let mean = |sum: usize, side: usize| (sum as f32 / self.pixels as f32 + 0.5) / side as f32;
        let shorter = height.min(width) as f32;
        Found {
            colour,
            shape,
            centre: [mean(self.columns, width), mean(self.rows, height)],
            area: self.pixels as f32 / (height * width) as f32,
            radius: (self.pixels as f32 / AREA).sqrt() / shorter,
            whole: !self.at_border,
        }
    }
}

/// Which cells hold an object or have a neighbour that does: only there are pixels looked at.
fn near_objects(colours: &[Vec<f32>], columns: usize) -> Vec<bool> {
    let filled: Vec<bool> = colours.iter().map(|cell| cell[COLOURS - 1] < 0.5).collect();
    let rows = filled.len() / columns.max(1);
    let around = |place: usize, end: usize| place.saturating_sub(1)..(place + 2).min(end);
    let near = |row: usize, column: usize| {
        around(row, rows).any(|row| around(column, columns).any(|column| filled[row * columns + column]))
    };
    (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column))).map(|(r, c)| near(r, c)).collect()
}

/// The object whose colour a pixel has, in light or shadow; none for the background.
fn nearest(pixel: [f32; 3], background: Colour, palette: &[Colour]) -> Option<usize> {
    // How much white and black is mixed in at most: objects are rounded, backgrounds graded and in their shadows.
    const OBJECT: [f32; 2] = [0.22, 0.24];
    const BACKGROUND: [f32; 2] = [0.10, 0.37];
    let objects = palette.iter().map(|colour| distance(pixel, *colour, OBJECT));
    let (object, nearest) = objects.enumerate().min_by(|a, b| a.1.total_cmp(&b.1))?;
    (nearest < distance(pixel, background, BACKGROUND)).then_some(object)
}

/// Squared distance of a pixel from a colour with up to so much white or black mixed in.
fn distance(pixel: [f32; 3], colour: Colour, [white, black]: [f32; 2]) -> f32 {
    let colour = colour.rgb();
    let along = |end: f32, most: f32| {
        let towards = colour.map(|v| end - v);
        let length: f32 = towards.iter().map(|v| v * v).sum();
        let dot: f32 = (0..3).map(|c| (pixel[c] - colour[c]) * towards[c]).sum();
        let share = (dot / length.max(1e-6)).clamp(0.0, most);
        (0..3).map(|c| (pixel[c] - colour[c] - share * towards[c]).powi(2)).sum::<f32>()
    };
    along(1.0, white).min(along(0.0, black))
}
