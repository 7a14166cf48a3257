//! `sdxl bench`'s flags.

use super::choice::{Choice, Limit, Span};
use crate::{
    connection::{EndpointArgs, tenant},
    generate,
};
use clap::{Args, value_parser};
use sdxl_core::{
    Size, Tenant,
    plan::{MAX_IMAGES, MAX_STEPS},
    size::{MAX_SIDE, MIN_SIDE, SIDE_MULTIPLE},
};
use std::{path::PathBuf, time::Duration};

const EXAMPLES: &str = "\
Examples:
  sdxl bench --concurrency 1 --requests 10           what one request takes alone
  sdxl bench --rate 2 --duration 120 --warm-up 30    requests that come whether or not others are done
  sdxl bench --rate 2 --duration 120 --seed 7 --json --output bench.json
  sdxl bench --rate 4 --duration 300 --sizes 512x512=2,1024x1024=1 --steps 20..50 --deadline 60
  sdxl bench --rate 4 --duration 300 --tenants big=99,small=1 --refiner-share 0.3 --repeat-prompts 0.8
  sdxl bench --rate 4 --duration 300 --deadline 3x   three times what a request takes alone

A list such as 512x512=2,1024x1024=1 is drawn from by weight; a range such as 20..50 holds both its ends.
The same --seed and work give the same requests in the same order at the same times, and so hit the caches
that an earlier run of them has filled.

Each request is measured from the moment at which it was to be sent, so that a client that is late shows as well
as a cluster that is slow.

  goodput      pictures of requests that were answered in whole before their deadlines
  refused      RESOURCE_EXHAUSTED
  slowdown     latency over what the request would have taken alone: run times of its stages, each at the least
               for a step (denoisers) or a call (others) that was seen at its size; of several pictures the longest
  utilisation  run times over replicas x measured time; above 1 where pictures share steps
  percentiles  the least value that so many per cent of all values do not exceed

Measured time goes from the end of the warm-up to the end of --duration, or to the last answer where --requests
ends the run. Rates and utilisation are of what was answered in it, all else is of the requests sent in it.

Exit codes: 0 measured, whatever the cluster answered; 130 Ctrl-C, after the report on what there is; 2 bad
input; 1 anything else.";

/// What `sdxl bench` is told.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    pub(super) load: LoadArgs,
    #[command(flatten)]
    pub(super) work: WorkArgs,
    #[command(flatten)]
    pub(super) report: ReportArgs,
    #[command(flatten)]
    pub(super) endpoint: EndpointArgs,
}

/// When requests are sent.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Load (one of --rate and --concurrency, and an end)")]
pub(super) struct LoadArgs {
    #[command(flatten)]
    pub(super) pace: PaceArgs,
    #[command(flatten)]
    pub(super) end: EndArgs,
    #[command(flatten)]
    pub(super) warm_up: WarmUpArgs,

    /// Requests of an open loop that may wait for their answers; what comes above that is dropped, and counted
    #[arg(
        long,
        env = "SDXL_MAX_IN_FLIGHT",
        value_name = "N",
        default_value_t = 10_000,
        value_parser = value_parser!(u32).range(1..=1_000_000)
    )]
    pub(super) max_in_flight: u32,

    /// Give a request up after this time where no deadline has ended it
    #[arg(long, env = "SDXL_TIMEOUT", value_name = "SECONDS", default_value = "600", value_parser = some_seconds)]
    pub(super) timeout: Duration,

    /// Connections that requests go over by turns
    #[arg(
        long,
        env = "SDXL_CONNECTIONS",
        value_name = "N",
        default_value_t = 4,
        value_parser = value_parser!(u32).range(1..=1000)
    )]
    pub(super) connections: u32,

    /// What times and work are drawn from [default: drawn, and printed]
    #[arg(long, env = "SDXL_SEED", value_name = "N")]
    pub(super) seed: Option<u64>,
}

/// An open loop or a closed one.
#[derive(Args, Clone, Debug)]
#[group(id = "pace", required = true, multiple = false)]
pub(super) struct PaceArgs {
    /// Open loop: requests a second on average, as a Poisson process, whether or not others are done
    #[arg(long, env = "SDXL_RATE", value_name = "PER_SECOND", value_parser = rate)]
    pub(super) rate: Option<f64>,

    /// Closed loop: so many requests at a time, each sent when another is done, or 0.1 s after one has failed
    #[arg(
        long,
        env = "SDXL_CONCURRENCY",
        value_name = "N",
        value_parser = value_parser!(u32).range(1..=100_000)
    )]
    pub(super) concurrency: Option<u32>,
}

/// When no more requests are sent; what is in flight then is waited for.
#[derive(Args, Clone, Debug)]
#[group(id = "end", required = true, multiple = true)]
pub(super) struct EndArgs {
    /// Send requests for so long, after the warm-up
    #[arg(long, env = "SDXL_DURATION", value_name = "SECONDS", value_parser = some_seconds)]
    pub(super) duration: Option<Duration>,

    /// Send so many requests, after the warm-up; with --duration, whichever ends first
    #[arg(long, env = "SDXL_REQUESTS", value_name = "N", value_parser = value_parser!(u64).range(1..))]
    pub(super) requests: Option<u64>,
}

/// What is sent before the measurement.
#[derive(Args, Clone, Debug)]
#[group(id = "warming", multiple = false)]
pub(super) struct WarmUpArgs {
    /// Leave out what is sent in the first seconds; at least as long as a request takes, for the rates to be right
    #[arg(
        long,
        env = "SDXL_WARM_UP",
        value_name = "SECONDS",
        value_parser = sdxl_runtime::args::seconds
    )]
    pub(super) warm_up: Option<Duration>,

    /// Leave out the first requests
    #[arg(long, env = "SDXL_WARM_UP_REQUESTS", value_name = "N")]
    pub(super) warm_up_requests: Option<u64>,
}

/// What is asked for.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Work (drawn for each request)")]
pub(super) struct WorkArgs {
    /// Sizes in pixels, height first [default: the model's]
    #[arg(long, env = "SDXL_SIZES", value_name = "HxW=WEIGHT,…", value_parser = sizes)]
    pub(super) sizes: Option<Choice<Size>>,

    /// Denoising steps, such as 20..50 or 30=3,50=1 [default: the model's]
    #[arg(
        long,
        visible_alias = "steps",
        env = "SDXL_NUM_INFERENCE_STEPS",
        value_name = "N=WEIGHT,…",
        value_parser = steps
    )]
    pub(super) num_inference_steps: Option<Choice<Span>>,

    /// Pictures of a request, such as 1 or 1=9,4=1
    #[arg(
        long,
        env = "SDXL_NUM_IMAGES",
        value_name = "N=WEIGHT,…",
        default_value = "1",
        value_parser = images
    )]
    pub(super) num_images: Choice<Span>,

    /// Share of requests that go through the refiner, 0 to 1
    #[arg(
        long,
        env = "SDXL_REFINER_SHARE",
        value_name = "F",
        default_value_t = 0.0,
        allow_negative_numbers = true,
        value_parser = share
    )]
    pub(super) refiner_share: f64,

    /// The part of those requests' schedule that the base runs, between 0 and 1
    #[arg(
        long,
        env = "SDXL_REFINER_SPLIT",
        value_name = "F",
        default_value_t = 0.8,
        allow_negative_numbers = true,
        value_parser = split
    )]
    pub(super) refiner_split: f32,

    /// On whose behalf requests are made, such as a=99,b=1 [default: nobody's]
    #[arg(long, env = "SDXL_TENANTS", value_name = "NAME=WEIGHT,…", value_parser = tenants)]
    pub(super) tenants: Option<Choice<Tenant>>,

    /// Share of requests that are for hours that are not busy (--priority batch of sdxl generate), 0 to 1
    #[arg(
        long,
        env = "SDXL_BATCH_SHARE",
        value_name = "F",
        default_value_t = 0.0,
        allow_negative_numbers = true,
        value_parser = share
    )]
    pub(super) batch_share: f64,

    /// Deadlines: seconds such as 30, 20..60 or 10=1,60=3, or factors such as 3x of what a request takes alone, which
    /// is then measured first, with one request of each size [default: none]
    #[arg(long, env = "SDXL_DEADLINE", value_name = "SECONDS|Fx", value_parser = deadlines)]
    pub(super) deadline: Option<Choice<Limit>>,

    /// Share of requests whose prompt is one of a few, 0 to 1; all others have one of their own
    #[arg(
        long,
        env = "SDXL_REPEAT_PROMPTS",
        value_name = "F",
        default_value_t = 0.0,
        allow_negative_numbers = true,
        value_parser = share
    )]
    pub(super) repeat_prompts: f64,

    /// How many prompts are repeated
    #[arg(
        long,
        env = "SDXL_PROMPT_POOL",
        value_name = "N",
        default_value_t = 10,
        value_parser = value_parser!(u32).range(1..=1_000_000)
    )]
    pub(super) prompt_pool: u32,
}

/// How the result is told.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Output")]
pub(super) struct ReportArgs {
    /// Print one JSON object in place of the tables; times are in seconds
    #[arg(long, env = "SDXL_JSON")]
    pub(super) json: bool,

    /// File to write the JSON object to as well, replacing what was there
    #[arg(short, long, env = "SDXL_OUTPUT", value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse::<f64>().ok().filter(|rate| *rate >= 1e-3 && *rate <= 1e5);
    rate.ok_or_else(|| "not a number of requests a second from 0.001 to 100000".to_owned())
}

fn some_seconds(text: &str) -> Result<Duration, String> {
    let duration = sdxl_runtime::args::seconds(text)?;
    if duration.is_zero() { Err("not a time above 0".to_owned()) } else { Ok(duration) }
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse::<f64>().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "not a share from 0 to 1".to_owned())
}

fn split(text: &str) -> Result<f32, String> {
    let split = text.parse::<f32>().ok().filter(|split| *split > 0.0 && *split < 1.0);
    split.ok_or_else(|| "not between 0 and 1, both excluded".to_owned())
}

fn sizes(text: &str) -> Result<Choice<Size>, String> {
    let side = |side: u32| side.is_multiple_of(SIDE_MULTIPLE) && (MIN_SIDE..=MAX_SIDE).contains(&side);
    Choice::parse(text, |part| {
        let size = generate::size(part).map_err(|error| format!("{part}: {error}"))?;
        if side(size.height) && side(size.width) {
            return Ok(size);
        }
        Err(format!("{part}: sides are multiples of {SIDE_MULTIPLE} from {MIN_SIDE} to {MAX_SIDE}"))
    })
}

fn steps(text: &str) -> Result<Choice<Span>, String> {
    Choice::parse(text, |part| Span::parse(part, &(1..=MAX_STEPS)))
}

fn images(text: &str) -> Result<Choice<Span>, String> {
    Choice::parse(text, |part| Span::parse(part, &(1..=MAX_IMAGES)))
}

fn tenants(text: &str) -> Result<Choice<Tenant>, String> {
    Choice::parse(text, tenant)
}

fn deadlines(text: &str) -> Result<Choice<Limit>, String> {
    Choice::parse(text, Limit::parse)
}

#[cfg(test)]
mod tests;
