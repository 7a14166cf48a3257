//! Many pictures on one, in rows, with a few words below each.

mod text;

use image::{Rgb, RgbImage, imageops};

/// Pixels between pictures, and around them.
const GAP: u32 = 8;
/// What is around pictures.
const PAPER: Rgb<u8> = Rgb([255; 3]);

/// A picture of a sheet.
#[derive(Clone, Debug)]
pub struct Rgb8Picture {
    /// What to show.
    pub image: RgbImage,
    /// What to write below it, in ASCII; may be nothing.
    pub label: String,
}

impl Rgb8Picture {
    /// Of pixels `[3, H, W]` in -1..=1, those beyond cut off; `size` is `[height, width]`.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "pictures are small, and bytes within 0..=255")]
    pub fn new(pixels: &[f32], [height, width]: [usize; 2], label: impl Into<String>) -> Self {
        let byte = |v: f32| ((v * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round() as u8;
        let image = RgbImage::from_fn(width as u32, height as u32, |x, y| {
            let at = |plane: usize| byte(pixels[(plane * height + y as usize) * width + x as usize]);
            Rgb([at(0), at(1), at(2)])
        });
        Self { image, label: label.into() }
    }
}

/// All of them, `columns` in a row, on white. Columns are as wide as the widest picture and rows as high as their
/// highest, each picture in the middle of its place; labels go over as many lines as they need.
#[must_use]
pub fn grid(pictures: &[Rgb8Picture], columns: usize) -> RgbImage {
    let columns = columns.clamp(1, pictures.len().max(1));
    let width = pictures.iter().map(|p| p.image.width()).max().unwrap_or(0);
    let rows: Vec<Row<'_>> = pictures.chunks(columns).map(|row| Row::new(row, width)).collect();
    let left = |column: usize| GAP + u32::try_from(column).unwrap_or(u32::MAX).saturating_mul(width + GAP);
    let height = GAP + rows.iter().map(|row| row.height + row.label_height + GAP).sum::<u32>();
    let mut sheet = RgbImage::from_pixel(left(columns), height, PAPER);
    let mut top = GAP;
    for row in &rows {
        for (column, (picture, label)) in row.pictures.iter().zip(&row.labels).enumerate() {
            let (own_width, own_height) = picture.image.dimensions();
            let place = [left(column) + (width - own_width) / 2, top + (row.height - own_height) / 2];
            imageops::replace(&mut sheet, &picture.image, place[0].into(), place[1].into());
            text::write(&mut sheet, label, [left(column), top + row.height]);
        }
        top += row.height + row.label_height + GAP;
    }
    sheet
}

struct Row<'a> {
    pictures: &'a [Rgb8Picture],
    labels: Vec<Vec<String>>,
    /// Of the highest picture.
    height: u32,
    label_height: u32,
}

impl<'a> Row<'a> {
    fn new(pictures: &'a [Rgb8Picture], width: u32) -> Self {
        let labels: Vec<_> = pictures.iter().map(|p| text::wrap(&p.label, width)).collect();
        Self {
            height: pictures.iter().map(|p| p.image.height()).max().unwrap_or(0),
            label_height: text::height(labels.iter().map(Vec::len).max().unwrap_or(0)),
            pictures,
            labels,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(width: u32, height: u32, colour: [u8; 3], label: &str) -> Rgb8Picture {
        Rgb8Picture { image: RgbImage::from_pixel(width, height, Rgb(colour)), label: label.to_owned() }
    }

    #[test]
    fn pictures_lie_in_the_middle_of_their_cells() {
        let pictures = [filled(40, 20, [255, 0, 0], ""), filled(20, 40, [0, 0, 255], "")];
        let sheet = grid(&pictures, 9);
        assert_eq!(sheet.dimensions(), (3 * GAP + 2 * 40, 2 * GAP + 40));
        assert_eq!(sheet.get_pixel(GAP, GAP + 10).0, [255, 0, 0]);
        assert_eq!(sheet.get_pixel(GAP, GAP + 9).0, [255; 3]);
        assert_eq!(sheet.get_pixel(2 * GAP + 40 + 10, GAP).0, [0, 0, 255]);
        assert_eq!(grid(&pictures, 1).dimensions(), (2 * GAP + 40, 3 * GAP + 20 + 40));
        assert_eq!(grid(&[], 3).dimensions(), (2 * GAP, GAP));
    }

    #[test]
    fn labels_are_written_below_and_only_there() {
        let plain = grid(&[filled(64, 32, [9; 3], ""), filled(64, 32, [9; 3], "")], 2);
        let labelled = grid(&[filled(64, 32, [9; 3], "a red circle"), filled(64, 32, [9; 3], "")], 2);
        assert!(labelled.height() > plain.height());
        let ink = |x: std::ops::Range<u32>| {
            let dark = |(x, y)| labelled.get_pixel(x, y).0 != [255; 3];
            x.flat_map(|x| (GAP + 32..labelled.height()).map(move |y| (x, y))).filter(|at| dark(*at)).count()
        };
        assert!(ink(GAP..GAP + 64) > 50);
        assert_eq!(ink(GAP + 64..labelled.width()), 0);
    }

    #[test]
    fn values_become_bytes() {
        let picture = Rgb8Picture::new(&[-1.0, 2.0, 0.0, 1.0, 0.5, -9.0], [1, 2], "");
        assert_eq!(picture.image.into_raw(), [0, 128, 191, 255, 255, 0]);
    }
}
