//! The pixels of an object, told by their colour.

use sdxl_scenes::Colour;

use super::{Raster, network::CELL};

/// The pixels of an object.
#[derive(Clone, Debug)]
pub(super) struct Mask {
    size: [usize; 2],
    covered: Vec<bool>,
    pixels: usize,
    rows: usize,
    columns: usize,
    at_border: bool,
}

impl Mask {
    fn new(size: [usize; 2]) -> Self {
        let covered = vec![false; size[0] * size[1]];
        Self { size, covered, pixels: 0, rows: 0, columns: 0, at_border: false }
    }

    fn add(&mut self, row: usize, column: usize) {
        let [height, width] = self.size;
        self.covered[row * width + column] = true;
        self.pixels += 1;
        self.rows += row;
        self.columns += column;
        self.at_border |= row == 0 || column == 0 || row + 1 == height || column + 1 == width;
    }

    /// `[height, width]` of the picture.
    pub(super) fn size(&self) -> [usize; 2] {
        self.size
    }

    pub(super) fn has(&self, row: usize, column: usize) -> bool {
        self.covered[row * self.size[1] + column]
    }

    /// How many there are.
    pub(super) fn pixels(&self) -> usize {
        self.pixels
    }

    /// Their centre of gravity, in pixels from the left and from the top.
    pub(super) fn centre(&self) -> [f32; 2] {
        [self.columns, self.rows].map(|sum| sum as f32 / self.pixels.max(1) as f32 + 0.5)
    }

    /// Whether some lie on the picture's border.
    pub(super) fn at_border(&self) -> bool {
        self.at_border
    }
}

/// The pixels of objects of these colours, each looked for in cells that the object is in, by `filled`, and in those
/// around them.
pub(super) fn masks(
    picture: &Raster,
    background: Colour,
    palette: &[Colour],
    filled: &[Vec<bool>],
) -> Vec<Mask> {
    let [height, width] = picture.size;
    let columns = width / CELL;
    let near: Vec<_> = filled.iter().map(|filled| widened(filled, columns)).collect();
    let mut masks = vec![Mask::new(picture.size); palette.len()];
    for row in 0..height {
        for column in 0..width {
            let cell = row / CELL * columns + column / CELL;
            if near.iter().any(|near| near[cell])
                && let Some(object) = nearest(picture.at(row, column), background, palette)
                && near[object][cell]
            {
                masks[object].add(row, column);
            }
        }
    }
    masks
}

/// The cells that are filled or have a neighbour that is.
fn widened(filled: &[bool], columns: usize) -> Vec<bool> {
    let rows = filled.len() / columns.max(1);
    let around = |place: usize, end: usize| place.saturating_sub(1)..(place + 2).min(end);
    let near = |row: usize, column: usize| {
        around(row, rows).any(|row| around(column, columns).any(|column| filled[row * columns + column]))
    };
    (0..filled.len()).map(|cell| near(cell / columns, cell % columns)).collect()
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
