//! Turns under load, in a time of its own: one device with an H200's times (`profiles/h200.toml`), pictures of three
//! sizes that come at random, and beside it the same load served in batches of whole requests, first come first served.

use super::{Candidate, Turns, due};
use crate::simulated::Profile;
use sdxl_core::{Priority, Size, StageKind, Tenant};
use std::{
    collections::VecDeque,
    path::Path,
    time::{Duration, Instant},
};

const SIZES: [Size; 3] = [Size::new(512, 512), Size::new(768, 768), Size::new(1024, 1024)];
const REQUESTS: usize = 4000;
/// Left out at the start, while the queue fills.
const WARM_UP: usize = 500;
/// As `--max-active` has it.
const MAX_ACTIVE: usize = 32;

/// A request for one guided picture.
#[derive(Clone, Debug)]
struct Request {
    arrival: f64,
    size: Size,
    steps: u32,
    tenant: Tenant,
}

struct Device {
    profile: Profile,
    /// How many times slower it is than its profile.
    slowed: f64,
}

impl Device {
    fn h200() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles/h200.toml");
        Self { profile: Profile::open(&path).unwrap(), slowed: 1.0 }
    }

    /// Seconds of a step of so many guided pictures.
    fn step(&self, size: Size, pictures: usize) -> f64 {
        let base = self.profile.denoiser(StageKind::BaseUnet).unwrap();
        self.slowed * base.step(size, f64::from(2 * u32::try_from(pictures).unwrap())).as_secs_f64()
    }

    fn max_batch(&self, size: Size) -> usize {
        self.profile.denoiser(StageKind::BaseUnet).unwrap().max_batch(size)
    }

    fn alone(&self, request: &Request) -> f64 {
        f64::from(request.steps) * self.step(request.size, 1)
    }

    /// The device's seconds that a request takes of full batches.
    fn cost(&self, request: &Request) -> f64 {
        let batch = self.max_batch(request.size);
        f64::from(request.steps) * self.step(request.size, batch) / f64::from(u32::try_from(batch).unwrap())
    }
}

/// A small generator, so that the load is the same on every machine.
struct Draws(u64);

impl Draws {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        f64::from(u32::try_from(self.0 >> 32).unwrap()) / f64::from(u32::MAX)
    }

    fn below(&mut self, n: u32) -> u32 {
        ((self.uniform() * f64::from(n)) as u32).min(n - 1)
    }
}

/// Requests by a Poisson process at `share` of what full batches could serve; the tenant by `tenant`.
fn load(device: &Device, share: f64, tenant: impl Fn(&mut Draws) -> Tenant) -> Vec<Request> {
    let mut draws = Draws(7);
    let mut requests: Vec<Request> = (0..REQUESTS)
        .map(|_| Request {
            arrival: 0.0,
            size: SIZES[draws.below(3) as usize],
            steps: 20 + draws.below(31),
            tenant: tenant(&mut draws),
        })
        .collect();
    let cost = requests.iter().map(|r| device.cost(r)).sum::<f64>() / REQUESTS as f64;
    let mut now = 0.0;
    for request in &mut requests {
        now -= (1.0 - draws.uniform()).max(1e-12).ln() * cost / share;
        request.arrival = now;
    }
    requests
}

/// The latency of each request, with turns step by step.
fn by_turns(device: &Device, requests: &[Request]) -> Vec<f64> {
    let epoch = Instant::now();
    let at = |seconds: f64| epoch + Duration::from_secs_f64(seconds);
    let dues: Vec<Instant> = requests
        .iter()
        .map(|r| due(at(r.arrival), Duration::from_secs_f64(device.alone(r)), Priority::Interactive, None))
        .collect();
    let (mut turns, mut now, mut next) = (Turns::default(), 0.0, 0);
    let (mut waiting, mut active): (VecDeque<usize>, Vec<(usize, u32)>) = (VecDeque::new(), Vec::new());
    let mut latencies = vec![0.0; requests.len()];
    let mut done = 0;
    while done < requests.len() {
        while next < requests.len() && requests[next].arrival <= now {
            waiting.push_back(next);
            next += 1;
        }
        while let Some(place) = begin(requests, &mut waiting, &active) {
            active.push((place, requests[place].steps));
        }
        if active.is_empty() {
            now = requests[next].arrival;
            continue;
        }
        let candidates: Vec<_> = active
            .iter()
            .map(|(i, _)| Candidate { tenant: &requests[*i].tenant, size: requests[*i].size, due: dues[*i] })
            .collect();
        let chosen = turns.next(&candidates, |size| device.max_batch(size));
        let time = device.step(requests[active[chosen[0]].0].size, chosen.len());
        now += time;
        turns.worked(Duration::from_secs_f64(time), chosen.iter().map(|i| share(&requests[active[*i].0])));
        for i in chosen {
            active[i].1 -= 1;
        }
        active.retain(|(i, left)| {
            if *left == 0 {
                latencies[*i] = now - requests[*i].arrival;
                done += 1;
            }
            *left > 0
        });
    }
    latencies
}

/// What a step of it counts as.
fn share(request: &Request) -> (&Tenant, u64) {
    let Size { height, width } = request.size;
    (&request.tenant, 2 * u64::from(height) * u64::from(width))
}

/// The request to begin next, as the worker's queue has it: of the tenant with the least active, and beyond the limit only
/// of one that has none.
fn begin(requests: &[Request], waiting: &mut VecDeque<usize>, active: &[(usize, u32)]) -> Option<usize> {
    if active.len() >= 2 * MAX_ACTIVE {
        return None;
    }
    let busy =
        |i: usize| active.iter().filter(|(other, _)| requests[*other].tenant == requests[i].tenant).count();
    let has_room = active.len() < MAX_ACTIVE;
    let mut firsts: Vec<usize> = Vec::new();
    for i in waiting.iter() {
        if firsts.iter().all(|first| requests[*first].tenant != requests[*i].tenant) {
            firsts.push(*i);
        }
    }
    let next = firsts.into_iter().filter(|i| has_room || busy(*i) == 0).min_by_key(|i| (busy(*i), *i))?;
    waiting.retain(|i| *i != next);
    Some(next)
}

/// The same in batches of whole requests: the first that waits, with as many like it as there are and as fit. None joins
/// later. Alike are those of one size and one number of steps, as one call of a pipeline takes one schedule; or, which no
/// peer does, of one size, and each leaves with its last step.
fn by_whole_requests(device: &Device, requests: &[Request], any_steps: bool) -> Vec<f64> {
    let (mut now, mut next, mut done) = (0.0, 0, 0);
    let mut waiting: VecDeque<usize> = VecDeque::new();
    let mut latencies = vec![0.0; requests.len()];
    while done < requests.len() {
        while next < requests.len() && requests[next].arrival <= now {
            waiting.push_back(next);
            next += 1;
        }
        let Some(first) = waiting.front().copied() else {
            now = requests[next].arrival;
            continue;
        };
        let (size, steps) = (requests[first].size, requests[first].steps);
        let is_like = |i: &usize| requests[*i].size == size && (any_steps || requests[*i].steps == steps);
        let mut batch: Vec<usize> = waiting.iter().copied().filter(is_like).collect();
        batch.truncate(device.max_batch(size));
        waiting.retain(|i| !batch.contains(i));
        for step in 1..=50 {
            if batch.is_empty() {
                break;
            }
            now += device.step(size, batch.len());
            batch.retain(|i| {
                let is_done = requests[*i].steps == step;
                if is_done {
                    latencies[*i] = now - requests[*i].arrival;
                    done += 1;
                }
                !is_done
            });
        }
    }
    latencies
}

fn p95(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(values.len() * 95).div_ceil(100) - 1]
}

/// Of the requests that `kept` keeps, after the warm-up.
fn of<'a>(
    requests: &'a [Request],
    values: &'a [f64],
    kept: impl Fn(&Request) -> bool + 'a,
) -> impl Iterator<Item = (&'a Request, f64)> + 'a {
    requests.iter().zip(values.iter().copied()).skip(WARM_UP).filter(move |(request, _)| kept(request))
}

#[test]
fn batching_by_step_halves_the_latency_of_whole_requests_and_is_fair_to_sizes() {
    let device = Device::h200();
    let requests = load(&device, 0.9, |_| Tenant::default());
    let (ours, theirs) = (by_turns(&device, &requests), by_whole_requests(&device, &requests, false));
    let idealized = by_whole_requests(&device, &requests, true);
    let latency = |values: &[f64]| p95(of(&requests, values, |_| true).map(|(_, latency)| latency).collect());
    let slowdown = |values: &[f64], size: Size| {
        p95(of(&requests, values, |r| r.size == size).map(|(r, latency)| latency / device.alone(r)).collect())
    };
    let (mine, other) = (latency(&ours), latency(&theirs));
    let slowdowns = SIZES.map(|size| slowdown(&ours, size));
    println!(
        "at 90 %: p95 latency {mine:.2} s by step, {other:.2} s by whole requests, {:.2} s if those could mix numbers of \
         steps; p95 slowdowns by step {slowdowns:.2?}",
        latency(&idealized)
    );
    assert!(mine <= other / 2.0, "{mine} s by step, {other} s by whole requests");
    let (least, most) = slowdowns.iter().fold((f64::MAX, 0.0_f64), |(l, m), s| (l.min(*s), m.max(*s)));
    assert!(most <= 1.5 * least, "{slowdowns:?}");
}

#[test]
fn a_tenant_with_a_hundredth_of_the_load_hardly_feels_anothers_flood() {
    for slowed in [1.0, 7.0, 1000.0] {
        hardly_feels_anothers_flood(&Device { slowed, ..Device::h200() });
    }
}

fn hardly_feels_anothers_flood(device: &Device) {
    let (small, large): (Tenant, Tenant) = ("small".parse().unwrap(), "large".parse().unwrap());
    let p95_of_small = |share: f64| {
        let tenant = |draws: &mut Draws| if draws.below(100) == 0 { small.clone() } else { large.clone() };
        let requests = load(device, share, tenant);
        let latencies = by_turns(device, &requests);
        let of_small = of(&requests, &latencies, |r| r.tenant == small);
        p95(of_small.map(|(r, latency)| latency / device.alone(r)).collect())
    };
    // At 150 % the queue grows without end, as nothing is refused here.
    let flooded = p95_of_small(1.5);
    for share in [0.5, 0.8, 0.9] {
        let calm = p95_of_small(share);
        println!(
            "{} times slower: p95 slowdown of the small tenant: {calm:.2} at {share}, {flooded:.2} at 1.5",
            device.slowed
        );
        assert!(flooded <= 1.2 * calm, "{calm} at {share}, {flooded} at 1.5");
    }
}
