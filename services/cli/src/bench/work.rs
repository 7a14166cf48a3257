//! What the requests ask for: each is drawn from the seed and its place in the load alone.

use super::{
    args::WorkArgs,
    baseline::Baseline,
    choice::{Choice, Limit, Span},
};
use crate::{connection::wire_priority, failure::Failure};
use rand::RngExt;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use sdxl_core::{Priority, Size, Tenant, plan::DEFAULT_STEPS};
use sdxl_proto::v1;
use std::{array, time::Duration};

/// How many things of a request are drawn.
const DRAWS: usize = 9;

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Work {
    pub(super) prompt: String,
    pub(super) size: Size,
    pub(super) steps: u32,
    pub(super) num_images: u32,
    pub(super) seed: u64,
    /// The base's part of the schedule, where the refiner has the rest.
    pub(super) refiner_split: Option<f32>,
    pub(super) tenant: Tenant,
    pub(super) priority: Priority,
    /// From the moment at which it is to be sent.
    pub(super) deadline: Option<Duration>,
}

impl Work {
    /// In the wire's words. What is not drawn is left to the cluster.
    pub(super) fn message(&self) -> v1::GenerateRequest {
        v1::GenerateRequest {
            prompt: self.prompt.clone(),
            width: self.size.width,
            height: self.size.height,
            num_inference_steps: self.steps,
            num_images: self.num_images,
            seed: Some(self.seed),
            refiner: self.refiner_split.map(|split| v1::Refiner {
                mode: Some(v1::refiner::Mode::DenoisingSplit(split)),
                ..Default::default()
            }),
            image_format: v1::ImageFormat::Png.into(),
            priority: wire_priority(self.priority).into(),
            ..Default::default()
        }
    }
}

/// What requests are drawn from.
#[derive(Clone, Debug)]
pub(super) struct Mix {
    pub(super) seed: u64,
    sizes: Choice<Size>,
    steps: Choice<Span>,
    num_images: Choice<Span>,
    refiner_share: f64,
    refiner_split: f32,
    tenants: Choice<Tenant>,
    batch_share: f64,
    deadline: Option<Choice<Limit>>,
    repeat_prompts: f64,
    prompt_pool: u32,
}

impl Mix {
    /// What `args` say, and where they say nothing, the defaults of `model`.
    ///
    /// # Errors
    /// Bad input: a refiner where the cluster has none.
    pub(super) fn new(args: &WorkArgs, seed: u64, model: &v1::GetModelResponse) -> Result<Self, Failure> {
        if args.refiner_share > 0.0 && !model.has_refiner {
            return Err(Failure::bad_input(format!(
                "--refiner-share: {} is not 0, and the cluster has no refiner",
                args.refiner_share
            )));
        }
        let size = model.default_size.map_or(Size::new(1024, 1024), |s| Size::new(s.height, s.width));
        let steps = match model.default_num_inference_steps {
            0 => DEFAULT_STEPS,
            steps => steps,
        };
        Ok(Self {
            seed,
            sizes: args.sizes.clone().unwrap_or_else(|| Choice::only(size)),
            steps: args
                .num_inference_steps
                .clone()
                .unwrap_or_else(|| Choice::only(Span { first: steps, last: steps })),
            num_images: args.num_images.clone(),
            refiner_share: args.refiner_share,
            refiner_split: args.refiner_split,
            tenants: args.tenants.clone().unwrap_or_else(|| Choice::only(Tenant::default())),
            batch_share: args.batch_share,
            deadline: args.deadline.clone(),
            repeat_prompts: args.repeat_prompts,
            prompt_pool: args.prompt_pool,
        })
    }

    /// The request at place `index` of the load. `baseline` tells what it would take alone, where its deadline hangs on
    /// that.
    ///
    /// Each request takes the same draws in the same order, so another share of one thing leaves all others as they were.
    pub(super) fn draw(&self, index: u64, baseline: &Baseline) -> Work {
        let mut rng = stream(self.seed, index + 1);
        let seed = rng.random();
        let [size, steps, images, refined, tenant, batch, limit, repeated, favourite]: [f64; DRAWS] =
            array::from_fn(|_| rng.random());
        let (span, into) = self.steps.at(steps);
        let steps = span.at(into);
        let (span, into) = self.num_images.at(images);
        let num_images = span.at(into);
        let favourite = Span { first: 1, last: self.prompt_pool }.at(favourite);
        let repeated = (repeated < self.repeat_prompts).then_some(favourite);
        let mut work = Work {
            prompt: prompt(self.seed, index, repeated),
            size: *self.sizes.at(size).0,
            steps,
            num_images,
            seed,
            refiner_split: (refined < self.refiner_share).then_some(self.refiner_split),
            tenant: self.tenants.at(tenant).0.clone(),
            priority: if batch < self.batch_share { Priority::Batch } else { Priority::Interactive },
            deadline: None,
        };
        work.deadline = self.deadline.as_ref().map(|deadline| {
            let (limit, into) = deadline.at(limit);
            let between = |first: f64, last: f64| first + into * (last - first);
            Duration::from_secs_f64(match *limit {
                Limit::Seconds(first, last) => between(first, last),
                Limit::Times(first, last) => between(first, last) * baseline.expected(&work),
            })
        });
        work
    }

    /// Requests, to be sent one by one, that tell what any of this mix takes alone; none where no deadline hangs on it.
    pub(super) fn calibration(&self) -> Vec<Work> {
        let factors = self.deadline.iter().flat_map(Choice::values).any(|l| matches!(l, Limit::Times(..)));
        if !factors {
            return Vec::new();
        }
        let refiner_split = (self.refiner_share > 0.0).then_some(self.refiner_split);
        // A refined request has all stages, and steps enough for both denoisers.
        let least = self.steps.values().map(|span| span.first).min().unwrap_or(DEFAULT_STEPS).max(2);
        let work = |(index, size): (usize, &Size)| Work {
            prompt: format!("a calm sea under a clear sky, trial {} of load {}", index + 1, self.seed),
            size: *size,
            steps: least,
            num_images: 1,
            seed: self.seed,
            refiner_split,
            tenant: self.tenants.at(0.0).0.clone(),
            priority: Priority::Interactive,
            deadline: None,
        };
        self.sizes.values().enumerate().map(work).collect()
    }
}

/// The moments at which requests of an open loop are sent: a Poisson process.
#[derive(Debug)]
pub(super) struct Arrivals {
    rng: ChaCha8Rng,
    rate: f64,
    seconds: f64,
}

impl Arrivals {
    /// `rate` a second on average.
    pub(super) fn new(seed: u64, rate: f64) -> Self {
        Self { rng: stream(seed, 0), rate, seconds: 0.0 }
    }

    /// The next moment, from the load's start.
    pub(super) fn next(&mut self) -> Duration {
        // 1 - u is above 0 and at most 1, so its logarithm is a number.
        let u: f64 = self.rng.random();
        self.seconds -= (1.0 - u).ln() / self.rate;
        Duration::from_secs_f64(self.seconds)
    }
}

/// The random numbers of one purpose: times have number 0, requests the numbers from 1.
fn stream(seed: u64, number: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(number);
    rng
}

/// A prompt of about twenty tokens: one of a few, or one that no other request of any seed's load has.
fn prompt(seed: u64, index: u64, favourite: Option<u32>) -> String {
    const SIZES: [&str; 3] = ["tiny", "small", "large"];
    const COLOURS: [&str; 5] = ["red", "green", "blue", "white", "purple"];
    const SHAPES: [&str; 4] = ["circle", "square", "star", "cross"];
    let number = favourite.map_or(index, u64::from);
    let word = |words: &[&'static str], stride: u64| {
        let place = number / stride % words.len() as u64;
        usize::try_from(place).ok().and_then(|place| words.get(place)).copied().unwrap_or_default()
    };
    let (size, colour, shape) = (word(&SIZES, 20), word(&COLOURS, 4), word(&SHAPES, 1));
    let which = if favourite.is_some() { "favourite" } else { "number" };
    format!("a {size} {colour} {shape} on a black background, {which} {number} of load {seed}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser;
    use std::collections::BTreeSet;

    fn mix(seed: u64, flags: &[&str]) -> Mix {
        let model = v1::GetModelResponse { has_refiner: true, ..Default::default() };
        Mix::new(&mix_args(flags), seed, &model).unwrap()
    }

    fn works(mix: &Mix, count: u64) -> Vec<Work> {
        (0..count).map(|index| mix.draw(index, &Baseline::default())).collect()
    }

    const ALL: &[&str] = &[
        "--sizes",
        "512x512=2,768x768=1,1024x1024=1",
        "--steps",
        "20..50",
        "--num-images",
        "1=3,2..4=1",
        "--refiner-share",
        "0.3",
        "--tenants",
        "a=9,b=1",
        "--batch-share",
        "0.25",
        "--deadline",
        "20..60",
        "--repeat-prompts",
        "0.8",
    ];

    fn near(count: usize, of: usize, share: f64) {
        let seen = count as f64 / of as f64;
        assert!((seen - share).abs() < 0.03, "{seen} is far from {share}");
    }

    #[test]
    fn shares_are_what_was_asked_for() {
        let works = works(&mix(5, ALL), 4000);
        let count = |is: &dyn Fn(&Work) -> bool| works.iter().filter(|work| is(work)).count();
        near(count(&|w| w.size == Size::new(512, 512)), 4000, 0.5);
        near(count(&|w| w.size == Size::new(1024, 1024)), 4000, 0.25);
        near(count(&|w| w.steps < 36), 4000, 16.0 / 31.0);
        near(count(&|w| w.num_images == 1), 4000, 0.75);
        near(count(&|w| w.refiner_split == Some(0.8)), 4000, 0.3);
        near(count(&|w| w.tenant.name() == "b"), 4000, 0.1);
        near(count(&|w| w.priority == Priority::Batch), 4000, 0.25);
        near(count(&|w| w.deadline > Some(Duration::from_secs(40))), 4000, 0.5);
        near(count(&|w| w.prompt.contains("favourite")), 4000, 0.8);
        assert!(works.iter().all(|w| (20..=50).contains(&w.steps) && (1..=4).contains(&w.num_images)));
        let prompts: BTreeSet<_> = works.iter().map(|w| &w.prompt).collect();
        assert_eq!(prompts.len(), count(&|w| !w.prompt.contains("favourite")) + 10);
    }

    #[test]
    fn a_seed_is_a_load() {
        assert_eq!(works(&mix(5, ALL), 50), works(&mix(5, ALL), 50));
        assert_ne!(works(&mix(5, ALL), 50), works(&mix(6, ALL), 50));
        let times = |seed| {
            let mut arrivals = Arrivals::new(seed, 2.0);
            (0..50).map(|_| arrivals.next()).collect::<Vec<_>>()
        };
        assert_eq!(times(5), times(5));
        assert_ne!(times(5), times(6));
    }

    #[test]
    fn another_share_of_one_thing_leaves_the_others() {
        let (few, many) =
            (works(&mix(5, ALL), 200), works(&mix(5, &[ALL, &["--prompt-pool", "3"]].concat()), 200));
        assert_ne!(few, many);
        for (one, other) in few.iter().zip(&many) {
            assert_eq!(&Work { prompt: one.prompt.clone(), ..other.clone() }, one);
        }
    }

    #[test]
    fn arrivals_are_a_poisson_process() {
        let mut arrivals = Arrivals::new(1, 4.0);
        let times: Vec<_> = (0..4000).map(|_| arrivals.next().as_secs_f64()).collect();
        let gaps: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = times[3999] / 4000.0;
        assert!((mean - 0.25).abs() < 0.02, "{mean}");
        // Gaps are exponential: memoryless, with e^-1 of them above the mean.
        let above = gaps.iter().filter(|gap| **gap > 0.25).count();
        near(above, gaps.len(), (-1.0_f64).exp());
        assert!(gaps.iter().all(|gap| *gap >= 0.0));
    }

    #[test]
    fn what_is_not_given_is_the_models_own() {
        let model = v1::GetModelResponse {
            default_size: Some(v1::Size { height: 256, width: 128 }),
            default_num_inference_steps: 25,
            ..Default::default()
        };
        let args = mix_args(&[]);
        let work = Mix::new(&args, 1, &model).unwrap().draw(0, &Baseline::default());
        assert_eq!((work.size, work.steps, work.num_images), (Size::new(256, 128), 25, 1));
        assert_eq!((work.deadline, work.refiner_split), (None, None));
        assert!(work.tenant.is_unnamed());
        let message = work.message();
        assert_eq!((message.width, message.height, message.num_inference_steps), (128, 256, 25));
        assert_eq!((message.seed, message.image_format), (Some(work.seed), 1));
    }

    #[test]
    fn a_refiner_that_is_not_there_is_refused_at_once() {
        let model = v1::GetModelResponse::default();
        let failure = Mix::new(&mix_args(&["--refiner-share", "0.5"]), 1, &model).unwrap_err();
        assert_eq!(failure.code(), 2);
    }

    #[test]
    fn factors_ask_for_one_request_of_each_size() {
        assert!(mix(1, ALL).calibration().is_empty());
        let mix = mix(
            1,
            &["--sizes", "64x64,128x128", "--steps", "20..50", "--deadline", "3x", "--refiner-share", "0.1"],
        );
        let works = mix.calibration();
        assert_eq!(
            works.iter().map(|w| w.size).collect::<Vec<_>>(),
            [Size::new(64, 64), Size::new(128, 128)]
        );
        assert!(works.iter().all(|w| w.steps == 20 && w.refiner_split == Some(0.8) && w.deadline.is_none()));
    }

    fn mix_args(flags: &[&str]) -> WorkArgs {
        let fixed = ["sdxl", "bench", "--rate", "1", "--requests", "1"];
        match Cli::try_parse_from(fixed.iter().chain(flags)).unwrap().command {
            Command::Bench(args) => args.work,
            other => panic!("{other:?}"),
        }
    }
}
