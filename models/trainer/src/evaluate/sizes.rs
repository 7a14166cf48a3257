//! Whether the sizes that condition the model do what they should (sections 2.2 and 2.3 of the paper): an original size
//! makes a picture as blurred as an enlarged one, a crop moves what is shown, and every bucket's pictures are whole.

use std::path::Path;

use sdxl_scenes::{Position, Size};
use serde::Serialize;

use super::{
    bench::{Bench, Prompt},
    captions::{Rate, rates},
    draw::Options,
    figures::Estimate,
    quality,
};
use crate::{
    TrainError,
    classifier::{Found, Raster},
    data::{self, Framing},
};

/// Sharpness at one original size, as a share of the same pictures' at the target's.
#[derive(Clone, Debug, Serialize)]
pub struct Sharpness {
    /// Side of the original, in pixels.
    pub original_size: usize,
    /// Of drawn pictures.
    pub drawn: Estimate,
    /// Of true renderings so small, and enlarged.
    pub rendered: Estimate,
    /// Of those, once they have gone through the autoencoder: blur that it does not keep cannot be drawn.
    pub decoded: Estimate,
    /// What was drawn.
    #[serde(skip)]
    pub pictures: Vec<Raster>,
}

/// The same captions and seeds at several original sizes, the last the target's. True renderings that were enlarged
/// from as small an original say how blurred they should be.
///
/// # Errors
/// A broken file or a failed computation.
pub fn sharpness(bench: &Bench, model: &Path, count: usize) -> Result<Vec<Sharpness>, TrainError> {
    let target = bench.square();
    let prompts = Prompt::held_out(count, |facts| facts.second.is_none());
    let sides = [0.125, 0.1875, 0.25, 0.375, 0.5, 0.75, 1.0].map(|share| (share * target[0] as f64) as usize);
    let mut measured = Vec::new();
    for side in sides {
        let options = Options { original_size: Some([side; 2]), ..Options::new(target) };
        let pictures = bench.draw(&prompts, &options)?;
        let framing = Framing::new([side; 2], target, 0.0);
        let render = |prompt: &Prompt| {
            let pixels = data::frame(&prompt.scene, framing).into_iter().map(|v| 0.5 * v + 0.5).collect();
            Raster { size: target, pixels }
        };
        let rendered: Vec<_> = prompts.iter().map(render).collect();
        let decoded = quality::decoded(bench, model, &rendered)?;
        let energies = [&pictures, &rendered, &decoded]
            .map(|pictures| pictures.iter().map(laplacian_energy).collect::<Vec<_>>());
        measured.push((side, energies, pictures));
    }
    let Some((_, sharp, _)) = measured.last().cloned() else { return Ok(Vec::new()) };
    let row = |(original_size, energies, pictures): (usize, [Vec<f64>; 3], Vec<Raster>)| {
        let [drawn, rendered, decoded] = std::array::from_fn(|i| Estimate::ratio(&energies[i], &sharp[i]));
        Sharpness { original_size, drawn, rendered, decoded, pictures }
    };
    Ok(measured.into_iter().map(row).collect())
}

/// Mean square of the Laplacian of brightness: what blur takes away.
pub(super) fn laplacian_energy(picture: &Raster) -> f64 {
    let [height, width] = picture.size;
    let bright = |row, column| picture.at(row, column).iter().map(|v| f64::from(*v)).sum::<f64>() / 3.0;
    let values: Vec<f64> = (0..height).flat_map(|y| (0..width).map(move |x| bright(y, x))).collect();
    let mut sum = 0.0;
    for y in 1..height - 1 {
        for x in 1..width - 1 {
            let at = y * width + x;
            let around = values[at - 1] + values[at + 1] + values[at - width] + values[at + width];
            sum += (around - 4.0 * values[at]).powi(2);
        }
    }
    sum / ((height - 2) * (width - 2)) as f64
}

/// Where objects are at one crop.
#[derive(Clone, Debug, Serialize)]
pub struct Crop {
    /// `[top, left]` of the crop, in pixels.
    pub crops_coords_top_left: [usize; 2],
    /// The objects' mean place along the axis of the crop, in pixels.
    pub place: Estimate,
    /// Where they should be: in the original's middle, less the crop.
    pub expected: f64,
    /// What was drawn.
    #[serde(skip)]
    pub pictures: Vec<Raster>,
}

/// Objects in the middle of originals half as long again along an axis (0 down, 1 right), at several crops, with the
/// same captions and seeds; and by how many pixels they move with each pixel cut off, which should be -1.
///
/// # Errors
/// A failed computation.
pub fn crops(bench: &Bench, axis: usize, count: usize) -> Result<(Vec<Crop>, Estimate), TrainError> {
    let target = bench.square();
    let prompts = Prompt::restated(count, |facts| {
        (facts.size, facts.position) = (None, Some(Position::Center));
    });
    let mut original = target;
    original[axis] += target[axis] / 2;
    let mut crops = Vec::new();
    let mut points = vec![Vec::new(); count];
    for step in 0..5 {
        let mut cut = [0, 0];
        cut[axis] = step * target[axis] / 8;
        let options =
            Options { original_size: Some(original), crops_coords_top_left: cut, ..Options::new(target) };
        let pictures = bench.draw(&prompts, &options)?;
        let mut places = Vec::new();
        for ((reading, prompt), points) in
            bench.classifier.read(&pictures)?.iter().zip(&prompts).zip(&mut points)
        {
            if let Some(found) = reading.of_colour(prompt.facts.main.colour) {
                let place = f64::from(found.centre[1 - axis]) * target[axis] as f64;
                places.push(place);
                points.push([cut[axis] as f64, place]);
            }
        }
        let expected = 0.5 * original[axis] as f64 - cut[axis] as f64;
        crops.push(Crop { crops_coords_top_left: cut, place: Estimate::mean(&places), expected, pictures });
    }
    let slope = Estimate::bootstrap(count, |picked| slope(picked.flat_map(|i| &points[i])));
    Ok((crops, slope))
}

/// Of the line through points by least squares.
fn slope<'a>(points: impl Iterator<Item = &'a [f64; 2]>) -> f64 {
    let (mut n, mut x, mut y, mut xx, mut xy) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for [px, py] in points {
        (n, x, y, xx, xy) = (n + 1.0, x + px, y + py, xx + px * px, xy + px * py);
    }
    (n * xy - x * y) / (n * xx - x * x)
}

/// Pictures of one size.
#[derive(Clone, Debug, Serialize)]
pub struct Bucket {
    /// `[height, width]` in pixels.
    pub size: [usize; 2],
    /// How often all objects keep clear of the border.
    pub whole: Estimate,
    /// How often the main object's area is within a quarter of what its size allows.
    pub area: Estimate,
    /// How often each aspect is as said.
    pub rates: Vec<Rate>,
    /// What was drawn.
    #[serde(skip)]
    pub drawn: (Vec<Prompt>, Vec<Raster>),
}

/// The same captions at every size that the model was trained at.
///
/// # Errors
/// A failed computation.
pub fn buckets(bench: &Bench, count: usize) -> Result<Vec<Bucket>, TrainError> {
    let prompts = Prompt::held_out(count, |_| true);
    let bucket = |size: &[usize; 2]| {
        let pictures = bench.draw(&prompts, &Options::new(*size))?;
        let readings = bench.classifier.read(&pictures)?;
        let mut areas = Vec::new();
        for (reading, prompt) in readings.iter().zip(&prompts).filter(|(_, p)| p.facts.second.is_none()) {
            areas.push(reading.objects.first().is_some_and(|found| area_fits(found, prompt.facts.size)));
        }
        let whole = readings.iter().filter(|r| !r.objects.is_empty() && r.objects.iter().all(|o| o.whole));
        Ok(Bucket {
            size: *size,
            whole: Estimate::share(whole.count(), count),
            area: Estimate::share(areas.iter().filter(|fits| **fits).count(), areas.len()),
            rates: rates(&bench.judge(&prompts, &pictures)?),
            drawn: (prompts.clone(), pictures),
        })
    };
    bench.buckets.iter().map(bucket).collect()
}

/// An area goes with the radius squared; a size that is not said may be any.
fn area_fits(found: &Found, size: Option<Size>) -> bool {
    let fits = |size: Size| {
        let (least, greatest) = size.radii();
        (0.75 * least * least..=1.25 * greatest * greatest).contains(&(found.radius * found.radius))
    };
    size.map_or_else(|| Size::ALL.into_iter().any(fits), fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enlarged_pictures_are_less_sharp() {
        let prompt = &Prompt::held_out(1, |_| true)[0];
        let energy = |side| {
            let framing = Framing::new([side; 2], [128; 2], 0.0);
            let pixels = data::frame(&prompt.scene, framing);
            laplacian_energy(&Raster { size: [128; 2], pixels })
        };
        let energies = [128, 96, 64, 32, 24].map(energy);
        assert!(energies.is_sorted_by(|a, b| *a > 1.1 * *b), "{energies:?}");
    }

    #[test]
    fn a_line_has_its_slope() {
        let points = [[0.0, 96.0], [16.0, 80.0], [32.0, 64.0], [64.0, 32.0]];
        assert!((slope(points.iter()) + 1.0).abs() < 1e-12);
    }

    #[test]
    fn areas_are_judged_by_the_size_said() {
        let prompt = &Prompt::held_out(1, |facts| facts.second.is_none())[0];
        let found = |radius| Found {
            colour: prompt.facts.main.colour,
            shape: prompt.facts.main.shape,
            likeness: 0.9,
            centre: [0.5; 2],
            area: 0.1,
            radius,
            whole: true,
        };
        assert!(area_fits(&found(0.16), Some(Size::Small)) && !area_fits(&found(0.24), Some(Size::Small)));
        assert!(area_fits(&found(0.24), None) && !area_fits(&found(0.12), None));
        assert!(!area_fits(&found(0.46), Some(Size::Large)) && area_fits(&found(0.44), Some(Size::Large)));
    }
}
