//! What guidance intervals and step caching save, and how far they change pictures.

use crate::{
    bare::Bare,
    checkpoint,
    peer::Peers,
    picture::{SIDE, STEPS, prompts},
    table::{Section, Tables, number},
    unet,
};
use integration_tests::Picture;
use sdxl_core::{DeepCache, StepKinds};
use std::{fmt, ops::Range, time::Instant};

/// Skip connections of SDXL's base: the outermost, the first with attention within its reach, and the middle one.
const BRANCHES: [u32; 3] = [0, 3, 5];

/// A way to draw.
struct Way {
    name: &'static str,
    steps: u32,
    guided: Range<u32>,
    /// Interval and branch.
    cache: Option<[u32; 2]>,
}

impl Way {
    const fn new(name: &'static str, steps: u32, guided: Range<u32>, cache: Option<[u32; 2]>) -> Self {
        Self { name, steps, guided, cache }
    }

    fn kinds(&self) -> (u32, StepKinds) {
        let cache =
            |[cache_interval, cache_branch_id]: [u32; 2]| DeepCache { cache_interval, cache_branch_id };
        let deep_cache = self.cache.map(cache);
        (self.steps, StepKinds { begin_step: 0, guided: self.guided.clone(), deep_cache })
    }
}

/// The first is what the others are held against; those with fewer steps are what one could do without approximations.
const WAYS: [Way; 13] = [
    Way::new("all of it", STEPS, 0..STEPS, None),
    Way::new("24 steps", 24, 0..24, None),
    Way::new("15 steps", 15, 0..15, None),
    Way::new("10 steps", 10, 0..10, None),
    Way::new("guidance from 0 to 0.8", STEPS, 0..24, None),
    Way::new("guidance from 0 to 0.5", STEPS, 0..15, None),
    Way::new("guidance from 0.1 to 0.8", STEPS, 3..24, None),
    Way::new("cache_interval 2, cache_branch_id 0", STEPS, 0..STEPS, Some([2, 0])),
    Way::new("cache_interval 3, cache_branch_id 0", STEPS, 0..STEPS, Some([3, 0])),
    Way::new("cache_interval 5, cache_branch_id 0", STEPS, 0..STEPS, Some([5, 0])),
    Way::new("cache_interval 3, cache_branch_id 2", STEPS, 0..STEPS, Some([3, 2])),
    Way::new("cache_interval 3, cache_branch_id 5", STEPS, 0..STEPS, Some([3, 5])),
    Way::new("guidance from 0 to 0.8, cache_interval 3, cache_branch_id 0", STEPS, 0..24, Some([3, 0])),
];

/// Rows of one width.
struct Sheet {
    heading: String,
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl fmt::Display for Sheet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", self.heading)?;
        writeln!(f, "| {} |", self.columns.join(" | "))?;
        writeln!(f, "|{}", " --- |".repeat(self.columns.len()))?;
        self.rows.iter().try_for_each(|row| writeln!(f, "| {} |", row.join(" | ")))
    }
}

impl Section for Sheet {}

pub(crate) fn run(_: &Peers) -> Tables {
    vec![Box::new(pictures()), Box::new(steps())]
}

fn pictures() -> Sheet {
    let bare = Bare::load(&checkpoint::shipped()).expect("the shipped model");
    let prompts = prompts();
    let mut drawn: Vec<(f64, Vec<Picture>)> = WAYS.iter().map(|_| (f64::INFINITY, Vec::new())).collect();
    bare.picture(&prompts[0], 0, STEPS, SIDE).expect("a picture");
    for (prompt, seed) in prompts.iter().zip(0..) {
        for (way, (best, pictures)) in WAYS.iter().zip(&mut drawn) {
            let began = Instant::now();
            let png = bare.picture_by(prompt, seed, way.kinds(), SIDE).expect("a picture");
            *best = best.min(began.elapsed().as_secs_f64());
            pictures.push(Picture::decode(&png));
        }
    }
    let (whole, right) = &drawn[0];
    let row = |(way, (best, pictures)): (&Way, &(f64, Vec<Picture>))| {
        let (psnr, mean) = apart(right, pictures);
        vec![way.name.to_owned(), number(best * 1e3), number(best / whole), number(psnr), number(mean)]
    };
    let columns = ["", "ms", "of all of it", "PSNR to all of it, dB", "mean difference, of 255"];
    Sheet {
        heading: format!(
            "Pictures of the shipped model: {STEPS} guided steps where nothing else is said, {SIDE} x {SIDE} pixels, f32, by the \
             engines in one process; best of {} pictures, differences over all of them.",
            prompts.len()
        ),
        columns: columns.map(str::to_owned).to_vec(),
        rows: WAYS.iter().zip(&drawn).map(row).collect(),
    }
}

/// The ratio of 255 to the deviation, in decibel, and the mean difference.
fn apart(right: &[Picture], pictures: &[Picture]) -> (f64, f64) {
    let pairs = || {
        let planes = right.iter().zip(pictures).map(|(a, b)| (a.planes(), b.planes()));
        planes.flat_map(|(a, b)| a.into_iter().zip(b)).map(|(a, b)| f64::from(a.abs_diff(b)))
    };
    let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
    for difference in pairs() {
        (count, sum, squares) = (count + 1.0, sum + difference, squares + difference * difference);
    }
    (10.0 * (255.0 * 255.0 / (squares / count)).log10(), sum / count)
}

fn steps() -> Sheet {
    let mut rows = Vec::new();
    match unet::approximations(&BRANCHES) {
        Ok((whole, unguided, cached)) => {
            let mut add = |name: String, time: f64| rows.push(vec![name, number(time), number(time / whole)]);
            add("guided and whole".to_owned(), whole);
            add("without guidance".to_owned(), unguided);
            for (branch, time) in BRANCHES.iter().zip(cached) {
                add(format!("guided, from the cache at cache_branch_id {branch}"), time);
            }
        }
        Err(why) => rows.push(vec![why, String::new(), String::new()]),
    }
    Sheet {
        heading: "A step of the base UNet, full size, at 64 x 64 latents, f32.".to_owned(),
        columns: ["", "s", "of a guided step"].map(str::to_owned).to_vec(),
        rows,
    }
}
