//! Pictures of what was measured, for the documentation.

use std::{fs, path::Path};

use anyhow::Context as _;
use image::{
    ExtendedColorType, ImageEncoder as _, Rgb, RgbImage,
    codecs::png::{CompressionType, FilterType, PngEncoder},
};

use super::{
    Figures,
    bench::{Bench, Prompt},
    compare::Comparison,
    fit,
};
use crate::{
    classifier::Raster,
    sheet::{self, Rgb8Picture},
};

/// The most that a picture of the documentation may weigh, in bytes.
const MOST_BYTES: usize = 150_000;

/// Writes `model-*.png` to a folder.
pub(super) fn write(bench: &Bench, figures: &Figures, folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("{}: cannot be made", folder.display()))?;
    let [mixed, related] = &figures.captions.drawn;
    save(&captioned(mixed, 18), 6, &folder.join("model-captions.png"))?;
    save(&captioned(related, 12), 6, &folder.join("model-relations.png"))?;

    let sharpness: Vec<_> = (0..3)
        .flat_map(|i| figures.sharpness.iter().filter_map(move |row| Some((row, row.pictures.get(i)?))))
        .map(|(row, picture)| cell(picture, format!("original {0}x{0}", row.original_size)))
        .collect();
    save(&sharpness, figures.sharpness.len(), &folder.join("model-original-size.png"))?;

    let crops: Vec<_> = figures
        .crops
        .iter()
        .flat_map(|(row, _)| row.iter().filter_map(|crop| Some((crop, crop.pictures.first()?))))
        .map(|(crop, picture)| {
            let [top, left] = crop.crops_coords_top_left;
            cell(picture, format!("top {top}, left {left}"))
        })
        .collect();
    save(&crops, 5, &folder.join("model-crops.png"))?;

    let buckets: Vec<_> = figures
        .buckets
        .iter()
        .flat_map(|bucket| {
            captioned_as(&bucket.drawn, 4, |p| {
                format!("{1}x{2} {0}", p.caption, bucket.size[0], bucket.size[1])
            })
        })
        .collect();
    save(&buckets, 4, &folder.join("model-buckets.png"))?;

    let Some(refined) = &figures.refiner else { return Ok(()) };
    let mut cells = Vec::new();
    for (prompt, [base, refined]) in refined.pairs.iter().take(4) {
        cells.push(cell(base, format!("base: {}", prompt.caption)));
        cells.push(cell(refined, "with the refiner".to_owned()));
        let reading = bench.classifier.read(std::slice::from_ref(refined))?;
        let fitted = reading.first().and_then(|reading| fit::nearest(refined, reading, &prompt.facts));
        let truth = fitted.map_or_else(|| prompt.scene.clone(), |(scene, _)| scene);
        cells.push(cell(&Raster::of_scene(&truth, refined.size), "nearest true rendering".to_owned()));
    }
    save(&cells, 6, &folder.join("model-refiner.png"))
}

/// Writes `model-comparison.png` to a folder: a row of each model, of as many captions as fit.
pub(super) fn write_comparison(comparison: &Comparison, folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("{}: cannot be made", folder.display()))?;
    let most = comparison.models.first().map_or(0, |model| model.pictures.len());
    let mut sheets = (1..=most).rev().map(|columns| {
        let cells = comparison.models.iter().flat_map(|model| {
            let drawn = model.pictures.iter().zip(&comparison.prompts).take(columns);
            drawn.map(|(picture, prompt)| cell(picture, format!("{}: {}", model.name, prompt.caption)))
        });
        fitted(&cells.collect::<Vec<_>>(), columns)
    });
    let fits =
        |sheet: &anyhow::Result<Vec<u8>>| sheet.as_ref().map_or(true, |bytes| bytes.len() <= MOST_BYTES);
    let Some(bytes) = sheets.find(fits).transpose()? else { return Ok(()) };
    let path = folder.join("model-comparison.png");
    fs::write(&path, bytes).with_context(|| format!("{}: cannot be written", path.display()))
}

fn captioned(drawn: &(Vec<Prompt>, Vec<Raster>), count: usize) -> Vec<Rgb8Picture> {
    captioned_as(drawn, count, |prompt| prompt.caption.clone())
}

fn captioned_as(
    (prompts, pictures): &(Vec<Prompt>, Vec<Raster>),
    count: usize,
    label: impl Fn(&Prompt) -> String,
) -> Vec<Rgb8Picture> {
    prompts.iter().zip(pictures).take(count).map(|(prompt, picture)| cell(picture, label(prompt))).collect()
}

fn cell(picture: &Raster, label: String) -> Rgb8Picture {
    let pixels: Vec<f32> = picture.pixels.iter().map(|v| 2.0 * v - 1.0).collect();
    Rgb8Picture::new(&pixels, picture.size, label)
}

/// As true to the colours as fits into the size allowed: the last bits are mostly noise, and most of the file. Rows that
/// do not fit even so are left out.
fn save(pictures: &[Rgb8Picture], columns: usize, path: &Path) -> anyhow::Result<()> {
    let mut rows = pictures.len().div_ceil(columns.max(1));
    let bytes = loop {
        let bytes = fitted(&pictures[..pictures.len().min(rows * columns)], columns)?;
        if bytes.len() <= MOST_BYTES || rows <= 1 {
            break bytes;
        }
        rows -= 1;
    };
    fs::write(path, bytes).with_context(|| format!("{}: cannot be written", path.display()))
}

/// A sheet as a file, made coarser if it is too large.
fn fitted(pictures: &[Rgb8Picture], columns: usize) -> anyhow::Result<Vec<u8>> {
    let sheet = sheet::grid(pictures, columns);
    let mut bytes = png(&sheet)?;
    for bits in [6, 5] {
        if bytes.len() > MOST_BYTES {
            bytes = png(&coarser(&sheet, bits))?;
        }
    }
    Ok(bytes)
}

fn png(picture: &RgbImage) -> image::ImageResult<Vec<u8>> {
    let mut bytes = Vec::new();
    let encoder = PngEncoder::new_with_quality(&mut bytes, CompressionType::Best, FilterType::Adaptive);
    encoder.write_image(picture, picture.width(), picture.height(), ExtendedColorType::Rgb8)?;
    Ok(bytes)
}

/// Only so many bits of each value, from black to white still.
fn coarser(picture: &RgbImage, bits: u32) -> RgbImage {
    let most = (1u32 << bits) - 1;
    let step = |value: u8| ((u32::from(value) * most + 127) / 255 * 255 / most).min(255) as u8;
    RgbImage::from_fn(picture.width(), picture.height(), |x, y| Rgb(picture.get_pixel(x, y).0.map(step)))
}

#[cfg(test)]
mod tests {
    use rand::RngExt as _;

    use super::*;
    use crate::random;

    #[test]
    fn a_noisy_sheet_is_made_to_fit() {
        let mut rng = random::stream(1, "sheet", 0, 0);
        let noisy = |_| {
            let grey = (0..128 * 128).map(|_| 0.5 + 0.01 * rng.random::<f32>()).collect::<Vec<_>>();
            cell(&Raster { size: [128; 2], pixels: grey.repeat(3) }, "a gray square".to_owned())
        };
        let cells: Vec<_> = (0..30).map(noisy).collect();
        assert!(png(&sheet::grid(&cells, 6)).unwrap().len() > MOST_BYTES);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.png");
        save(&cells, 6, &path).unwrap();
        assert!(fs::metadata(&path).unwrap().len() <= MOST_BYTES as u64);
        let read = image::open(&path).unwrap().into_rgb8();
        assert_eq!(read.get_pixel(0, 0).0, [255; 3]);
        let middle = read.get_pixel(60, 60).0;
        assert!(middle.iter().all(|v| (120..=140).contains(v)), "{middle:?}");
    }
}
