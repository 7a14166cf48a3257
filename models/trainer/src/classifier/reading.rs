//! From what the network says of each cell to objects: its cells say what colours there are, their pixels where each
//! object is, how large, and of which shape.

use candle_core::{D, DType};
use candle_nn::ops::softmax;
use sdxl_scenes::{Colour, Shape};

use super::{
    Raster,
    mask::{self, Mask},
    network::Logits,
    outline::{Fit, Outlines},
};
use crate::TrainError;

/// Cells that make an object: the smallest one fills three at least.
const LEAST_CELLS: f32 = 2.0;
/// Its radius at least, as a fraction of the shorter side: the seam of two colours can look like a third.
const LEAST_RADIUS: f32 = 0.12;

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
    /// The shape that fits best.
    pub shape: Shape,
    /// How well: pixels in both object and outline, as a share of those in either.
    pub likeness: f32,
    /// The centre of its pixels, as fractions of width and height.
    pub centre: [f32; 2],
    /// Its pixels, as a fraction of all.
    pub area: f32,
    /// The radius of its shape with this area, as a fraction of the shorter side.
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
pub(super) fn read(
    pictures: &[Raster],
    logits: &Logits,
    outlines: &Outlines,
) -> Result<Vec<Reading>, TrainError> {
    let colours = softmax(&logits.colours, D::Minus1)?.to_dtype(DType::F32)?.to_vec3::<f32>()?;
    let backgrounds = logits.background.argmax(D::Minus1)?.to_vec1::<u32>()?;
    let pictures = pictures.iter().zip(&colours).zip(backgrounds);
    Ok(pictures
        .map(|((picture, cells), background)| {
            objects(picture, Colour::OF_BACKGROUNDS[background as usize], cells, outlines)
        })
        .collect())
}

/// `cells` has the probability of each object's colour in each cell.
pub(super) fn objects(
    picture: &Raster,
    background: Colour,
    cells: &[Vec<f32>],
    outlines: &Outlines,
) -> Reading {
    let (mut palette, mut filled) = (Vec::new(), Vec::new());
    for (i, colour) in Colour::OF_OBJECTS.into_iter().enumerate() {
        if cells.iter().map(|cell| cell[i]).sum::<f32>() >= LEAST_CELLS {
            palette.push(colour);
            filled.push(cells.iter().map(|cell| cell[i] > 0.4).collect());
        }
    }
    let masks = mask::masks(picture, background, &palette, &filled);
    let found = palette.iter().zip(&masks).map(|(colour, mask)| found_by(*colour, mask, outlines));
    let mut objects: Vec<_> = found.filter(|found| found.radius >= LEAST_RADIUS).collect();
    objects.sort_by(|a, b| b.area.total_cmp(&a.area));
    Reading { background, objects }
}

fn found_by(colour: Colour, mask: &Mask, outlines: &Outlines) -> Found {
    let [height, width] = mask.size();
    let [x, y] = mask.centre();
    let Fit { shape, likeness, radius } = outlines.best(mask);
    Found {
        colour,
        shape,
        likeness,
        centre: [x / width as f32, y / height as f32],
        area: mask.pixels() as f32 / (height * width) as f32,
        radius: radius / height.min(width) as f32,
        whole: !mask.at_border(),
    }
}
