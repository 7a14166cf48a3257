//! Training pictures: scenes drawn at some original size, resized and cropped to a bucket's as the paper does it, with
//! the sizes that condition the denoisers.

use image::{ImageBuffer, Rgb, imageops};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use sdxl_scenes::{Facts, Sample, Scene, Split};

use crate::{
    random,
    recipe::{Data, Recipe},
};

/// What a picture of full sharpness scores: what the refiner is asked for by default.
const AESTHETIC_SCORE: f32 = 6.0;

/// A picture with all that conditions on it. Sizes and places are `[height, width]` and `[top, left]` in pixels.
#[derive(Clone, Debug)]
pub struct Picture {
    /// `[3, H, W]` in -1..=1, of the bucket's size.
    pub pixels: Vec<f32>,
    /// What it shows.
    pub caption: String,
    /// What the caption claims.
    pub facts: Facts,
    /// The size before any resizing (section 2.2 of the paper).
    pub original_size: [usize; 2],
    /// What was cut off at the top and left after resizing.
    pub crops_coords_top_left: [usize; 2],
    /// The bucket's size (section 2.3).
    pub target_size: [usize; 2],
    /// About 6 for what was never enlarged, less in proportion for the rest.
    pub aesthetic_score: f32,
}

/// Endless pictures by index.
#[derive(Clone, Debug)]
pub struct Pictures {
    data: Data,
    seed: u64,
}

/// How a picture comes to its bucket's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Framing {
    /// The size drawn, `[height, width]`.
    pub original_size: [usize; 2],
    /// The size after resizing, which covers the target.
    pub resized: [usize; 2],
    /// What is cut off then.
    pub crops_coords_top_left: [usize; 2],
    /// The size in the end.
    pub target_size: [usize; 2],
}

impl Framing {
    /// Algorithm 1 of the paper: resize, so that the picture just covers the target, and cut along the longer side
    /// only, at a place drawn uniformly: `place` is 0 to less than 1.
    #[must_use]
    pub fn new(original_size: [usize; 2], target_size: [usize; 2], place: f64) -> Self {
        let ratio = |i: usize| target_size[i] as f64 / original_size[i] as f64;
        let scale = ratio(0).max(ratio(1));
        let side = |i: usize| ((original_size[i] as f64 * scale).round() as usize).max(target_size[i]);
        let resized = [side(0), side(1)];
        // One of the two differences is none.
        let cut = |i: usize| (place * (resized[i] - target_size[i] + 1) as f64) as usize;
        Self { original_size, resized, crops_coords_top_left: [cut(0), cut(1)], target_size }
    }

    /// Times that the original was enlarged; 1 where it was not.
    fn enlargement(&self) -> f32 {
        (self.resized[0] as f32 / self.original_size[0] as f32).max(1.0)
    }
}

impl Pictures {
    /// The pictures of a recipe.
    #[must_use]
    pub fn new(recipe: &Recipe) -> Self {
        Self { data: recipe.data.clone(), seed: recipe.model.seed }
    }

    /// The square size, then the others.
    #[must_use]
    pub fn buckets(&self) -> Vec<[usize; 2]> {
        let square = [self.data.sample_size; 2];
        let others = self.data.buckets.iter().copied().filter(|bucket| *bucket != square);
        std::iter::once(square).chain(others).collect()
    }

    /// The picture of that index in a bucket.
    #[must_use]
    pub fn picture(&self, index: usize, bucket: [usize; 2]) -> Picture {
        let mut rng = random::stream(self.seed, "picture", 0, index as u64);
        let sample = Sample::draw(rng.random(), Split::Train);
        let framing = self.framing(&mut rng, bucket);
        let jitter = rng.random_range(-0.5..0.5);
        Picture {
            pixels: frame(&sample.scene, framing),
            caption: sample.caption,
            facts: sample.facts,
            original_size: framing.original_size,
            crops_coords_top_left: framing.crops_coords_top_left,
            target_size: framing.target_size,
            aesthetic_score: AESTHETIC_SCORE / framing.enlargement() + jitter,
        }
    }

    /// Small originals are kept, as in the paper, and enlarged; some have another aspect than the bucket and are
    /// cropped; half of the rest are of the bucket's very size, and half larger.
    fn framing(&self, rng: &mut ChaCha8Rng, bucket: [usize; 2]) -> Framing {
        let (kind, size, aspect, place): (f64, f64, f64, f64) =
            (rng.random(), rng.random(), rng.random(), rng.random());
        let Data { small_original_fraction, small_original_sizes, crop_fraction, .. } = self.data;
        let scaled = |scale: f64| bucket.map(|side| ((side as f64 * scale).round() as usize).max(8));
        let original = if kind < small_original_fraction {
            scaled(
                small_original_sizes.map_or(0.2 + 0.7 * size, |[least, most]| least + (most - least) * size),
            )
        } else if kind < small_original_fraction + crop_fraction {
            let [height, width] = scaled(1.0 + 0.4 * size);
            // Longer by up to 80 %, as often in height as in width.
            let factor = |share: f64| (share * 1.8_f64.ln()).exp();
            let longer = |side: usize, share| (side as f64 * factor(share)).round() as usize;
            if aspect < 0.5 {
                [height, longer(width, 2.0 * aspect)]
            } else {
                [longer(height, 2.0 * aspect - 1.0), width]
            }
        } else if size < 0.5 {
            bucket
        } else {
            scaled(2.0 * size)
        };
        Framing::new(original, bucket, place)
    }
}

/// Draws `scene` at its original size and brings it to the target's: `[3, H, W]` in -1..=1.
#[must_use]
pub fn frame(scene: &Scene, framing: Framing) -> Vec<f32> {
    let [height, width] = framing.original_size;
    let drawn = scene.render(height, width);
    let resized = resize(&drawn, framing.original_size, framing.resized);
    let [[_, full_width], [top, left], [height, width]] =
        [framing.resized, framing.crops_coords_top_left, framing.target_size];
    let plane = framing.resized[0] * full_width;
    let rows = (0..3).flat_map(|c| (top..top + height).map(move |y| c * plane + y * full_width + left));
    rows.flat_map(|row| &resized[row..row + width]).map(|v| 2.0 * v - 1.0).collect()
}

/// `[3, H, W]` to another size: what photographs go through.
#[must_use]
pub fn resize(pixels: &[f32], from: [usize; 2], to: [usize; 2]) -> Vec<f32> {
    if from == to {
        return pixels.to_vec();
    }
    let plane = from[0] * from[1];
    let side = |side: usize| u32::try_from(side).unwrap_or(u32::MAX);
    let picture = ImageBuffer::from_fn(side(from[1]), side(from[0]), |x, y| {
        let at = y as usize * from[1] + x as usize;
        Rgb([pixels[at], pixels[plane + at], pixels[2 * plane + at]])
    });
    let filter =
        if to[0] > from[0] { imageops::FilterType::CatmullRom } else { imageops::FilterType::Triangle };
    let resized = imageops::resize(&picture, side(to[1]), side(to[0]), filter);
    (0..3).flat_map(|c| resized.pixels().map(move |p| p.0[c].clamp(0.0, 1.0))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn algorithm_1_covers_the_target_and_cuts_one_side() {
        let framing = Framing::new([200, 300], [128, 128], 0.5);
        assert_eq!((framing.resized, framing.crops_coords_top_left), ([128, 192], [0, 32]));
        let framing = Framing::new([300, 100], [128, 128], 0.999);
        assert_eq!((framing.resized, framing.crops_coords_top_left), ([384, 128], [256, 0]));
        let small = Framing::new([32, 32], [96, 160], 0.0);
        assert_eq!((small.resized, small.enlargement()), ([160, 160], 5.0));
        for place in [0.0, 0.3, 0.999_999] {
            let Framing { resized, crops_coords_top_left: [top, left], .. } =
                Framing::new([111, 173], [144, 112], place);
            assert!(top == 0 && left + 112 <= resized[1] && resized[0] == 144);
        }
    }

    #[test]
    fn pictures_are_told_their_sizes_before_any_resizing() {
        let path = std::path::Path::new("tiny.toml");
        let recipe = Recipe::parse(include_str!("recipe/example.toml"), path).unwrap();
        let pictures = Pictures::new(&recipe);
        let drawn: Vec<_> = (0..400).map(|i| pictures.picture(i, [128, 128])).collect();
        let small =
            |p: &&Picture| p.original_size.iter().zip(p.target_size).any(|(side, target)| *side < target);
        let share = drawn.iter().filter(small).count() as f64 / drawn.len() as f64;
        assert!((share - recipe.data.small_original_fraction).abs() < 0.08, "{share}");
        for picture in &drawn {
            let Picture { original_size: [height, width], crops_coords_top_left: [top, left], .. } = *picture;
            assert_eq!((picture.target_size, picture.pixels.len()), ([128, 128], 3 * 128 * 128));
            // Cut along the longer side alone, and no further than it reaches.
            assert!(if height > width { left == 0 } else { top == 0 }, "{picture:?}");
            // What was enlarged scores less, in proportion.
            let enlarged = (128.0 / height.min(width) as f32).max(1.0);
            assert!((picture.aesthetic_score - 6.0 / enlarged).abs() <= 0.5, "{}", picture.aesthetic_score);
        }
        let cropped = drawn.iter().filter(|p| p.crops_coords_top_left != [0, 0]).count();
        assert!(cropped > 20, "{cropped}");
    }

    #[test]
    fn small_originals_are_as_small_as_the_recipe_says() {
        let path = std::path::Path::new("tiny.toml");
        let mut recipe = Recipe::parse(include_str!("recipe/example.toml"), path).unwrap();
        let small = |recipe: &Recipe| {
            let pictures = Pictures::new(recipe);
            let sides = (0..300).map(|i| pictures.picture(i, [128, 128]).original_size[0]);
            let small: Vec<_> = sides.filter(|side| *side < 128).collect();
            (small.iter().copied().min().unwrap(), small.iter().copied().max().unwrap())
        };
        let (least, most) = small(&recipe);
        assert!((26..40).contains(&least) && (100..=115).contains(&most), "{least} to {most}");
        recipe.data.small_original_sizes = Some([0.1, 0.2]);
        let (least, most) = small(&recipe);
        assert!((13..=14).contains(&least) && (24..=26).contains(&most), "{least} to {most}");
    }
}
