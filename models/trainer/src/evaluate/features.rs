//! The fixed space in which sets of pictures are compared: the classifier's features, which tell what is shown and were
//! trained to see through blur, and beside them how sharp a picture is.

use super::sizes::laplacian_energy;
use crate::{
    TrainError,
    classifier::{Classifier, Raster},
};

/// Sharpness is told at full size, at half and at a quarter of it.
pub(super) const SCALES: usize = 3;
/// Below any picture's.
const LEAST_ENERGY: f64 = 1e-9;

/// A point for each picture: the classifier's features, then [`SCALES`] of sharpness.
///
/// # Errors
/// A failed computation.
pub(super) fn features(classifier: &Classifier, pictures: &[Raster]) -> Result<Vec<Vec<f64>>, TrainError> {
    let mut points = classifier.features(pictures)?;
    for (point, picture) in points.iter_mut().zip(pictures) {
        point.extend(sharpness(picture));
    }
    Ok(points)
}

/// The logarithm of the Laplacian's mean square, from fine to coarse: the levels of a Laplacian pyramid (Burt and Adelson
/// 1983), by their energy.
fn sharpness(picture: &Raster) -> [f64; SCALES] {
    let mut scaled = picture.clone();
    std::array::from_fn(|scale| {
        if scale > 0 {
            scaled = halved(&scaled);
        }
        laplacian_energy(&scaled).max(LEAST_ENERGY).ln()
    })
}

/// Each pixel the mean of four.
fn halved(picture: &Raster) -> Raster {
    let [height, width] = picture.size.map(|side| side / 2);
    let plane = picture.size[0] * picture.size[1];
    let mean = |channel: usize, y: usize, x: usize| {
        let at = |y: usize, x: usize| picture.pixels[channel * plane + y * picture.size[1] + x];
        (at(2 * y, 2 * x) + at(2 * y, 2 * x + 1) + at(2 * y + 1, 2 * x) + at(2 * y + 1, 2 * x + 1)) / 4.0
    };
    let rows = (0..3).flat_map(|channel| (0..height).map(move |y| (channel, y)));
    let pixels = rows.flat_map(|(channel, y)| (0..width).map(move |x| mean(channel, y, x))).collect();
    Raster { size: [height, width], pixels }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        data::{self, Framing},
        evaluate::bench::Prompt,
    };

    #[test]
    fn a_halved_picture_is_the_mean_of_four() {
        let pixels: Vec<f32> = (0..24_u8).map(f32::from).collect();
        let half = halved(&Raster { size: [2, 4], pixels });
        assert_eq!((half.size, half.pixels), ([1, 2], vec![2.5, 4.5, 10.5, 12.5, 18.5, 20.5]));
    }

    #[test]
    fn blur_is_seen_first_at_the_finest_scale() {
        let prompt = &Prompt::held_out(1, |_| true)[0];
        let of = |side| {
            let pixels = data::frame(&prompt.scene, Framing::new([side; 2], [128; 2], 0.0));
            sharpness(&Raster { size: [128; 2], pixels })
        };
        let (sharp, blurred) = (of(128), of(48));
        let lost: Vec<f64> = sharp.iter().zip(blurred).map(|(sharp, blurred)| sharp - blurred).collect();
        assert!(lost[0] > 1.0 && lost[0] > lost[1] && lost[1] > lost[2], "{lost:?}");
    }
}
