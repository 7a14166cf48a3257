use super::*;
use crate::bench::work::Work;
use sdxl_core::Size;
use std::time::Duration;

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

fn work(tenant: &str, num_images: u32, deadline: Option<f64>) -> Work {
    Work {
        prompt: String::new(),
        size: Size::new(512, 768),
        steps: 10,
        num_images,
        seed: 0,
        refiner_split: None,
        tenant: tenant.parse().unwrap_or_default(),
        priority: Priority::Interactive,
        deadline: deadline.map(seconds),
    }
}

fn sample(work: Work, planned: f64, latency: f64, outcome: Outcome) -> Sample {
    let (planned, latency) = (seconds(planned), seconds(latency));
    Sample { measured: planned >= seconds(10.0), work, planned, lag: seconds(0.001), latency, outcome }
}

/// An answer with `run` seconds in the base's ten steps, and a text that was or was not cached.
fn answer(pictures: u32, run: f64, text: bool) -> Outcome {
    let timing = |stage, image_index, run, steps| Timing {
        stage,
        image_index,
        queue: 0.5,
        run,
        total: run + 0.5,
        steps,
    };
    let mut timings = vec![timing(StageKind::TextEncoder, None, if text { 0.25 } else { 0.0 }, 0)];
    timings.extend((0..pictures).map(|index| timing(StageKind::BaseUnet, Some(index), run, 10)));
    Outcome::Answered { pictures, timings }
}

fn failed(code: Code) -> Outcome {
    Outcome::Failed { code, message: format!("{code:?}") }
}

fn report(samples: Vec<Sample>, unfinished: u64) -> Report {
    let setup = Setup {
        endpoint: "http://127.0.0.1:1".into(),
        model: "micro".into(),
        seed: 7,
        load: Load {
            pace: Pace::Open { rate: 0.5, max_in_flight: 9 },
            warm_up: WarmUp::Time(seconds(10.0)),
            duration: Some(seconds(20.0)),
            requests: None,
        },
        replicas: BTreeMap::from([
            (StageKind::TextEncoder, 1),
            (StageKind::BaseUnet, 2),
            (StageKind::Vae, 1),
        ]),
        baseline: Baseline::default(),
    };
    let (from, to) = (seconds(10.0), seconds(30.0));
    Report::new(&setup, &Run { samples, from, to, sent_until: to, unfinished, interrupted: false })
}

fn mixed() -> Report {
    report(
        vec![
            sample(work("a", 1, None), 5.0, 1.0, answer(1, 1.0, true)), // warm-up, over before the measurement
            sample(work("a", 1, None), 9.0, 4.0, answer(1, 2.0, true)), // warm-up, answered in the measured time
            sample(work("a", 1, Some(5.0)), 11.0, 4.0, answer(1, 2.0, true)),
            sample(work("b", 2, Some(5.0)), 12.0, 8.0, answer(2, 4.0, false)), // late
            sample(work("b", 1, Some(5.0)), 13.0, 5.0, failed(Code::DeadlineExceeded)),
            sample(work("", 1, None), 14.0, 0.01, failed(Code::ResourceExhausted)),
            sample(work("", 1, None), 15.0, 0.03, failed(Code::ResourceExhausted)),
            sample(work("a", 1, None), 28.0, 3.0, answer(1, 1.0, true)), // answered after the measured time
            sample(work("a", 1, None), 29.0, 0.0, Outcome::Dropped),
            sample(work("a", 1, None), 29.0, 600.0, Outcome::NoAnswer),
        ],
        1,
    )
}

#[test]
fn counts_are_of_what_was_sent_in_the_measured_time() {
    let report = mixed();
    let Requests { arrived, dropped, no_answer, unfinished } = report.requests;
    assert_eq!((arrived, dropped, no_answer, unfinished), (9, 1, 1, 1));
    let outcomes: Vec<_> = report.outcomes.into_iter().collect();
    assert_eq!(outcomes, [("DEADLINE_EXCEEDED", 1), ("OK", 3), ("RESOURCE_EXHAUSTED", 2)]);
    assert_eq!(report.messages["RESOURCE_EXHAUSTED"], "ResourceExhausted");
    assert!(!report.messages.contains_key("OK"));
    assert_eq!(report.load.achieved_rate, Some(8.0 / 20.0));
    let refusal = report.time_to_refusal_s.unwrap();
    assert_eq!((refusal.count, refusal.p50, refusal.max), (2, 0.01, 0.03));
    let latency = report.latency_s.unwrap();
    assert_eq!((latency.count, latency.p50, latency.max), (3, 4.0, 8.0));
}

#[test]
fn rates_are_of_what_was_answered_in_the_measured_time() {
    let report = mixed();
    assert_eq!(report.measured_s, 20.0);
    assert_eq!(report.throughput.requests_per_s, 3.0 / 20.0);
    assert_eq!(report.throughput.pictures_per_s, 4.0 / 20.0);
    assert_eq!(report.throughput.steps_per_s, 40.0 / 20.0);
    // One of them was late, with two pictures.
    assert_eq!(report.goodput.pictures_per_s, 2.0 / 20.0);
    // Of the nine pictures that were asked for, two came in time.
    assert_eq!(report.goodput.share, Some(2.0 / 9.0));
}

#[test]
fn stages_are_told_apart_and_cached_texts_are_no_calls() {
    let report = mixed();
    let stage = |name: &str| report.stages.iter().find(|s| s.stage == name).unwrap();
    let names: Vec<_> = report.stages.iter().map(|s| s.stage).collect();
    assert_eq!(names, ["text-encoder", "base-unet", "vae"], "the cluster has no refiner");
    assert_eq!((report.text_encoder.requests, report.text_encoder.calls), (3, 2));
    assert_eq!(stage("text-encoder").calls, 2);
    assert_eq!(stage("text-encoder").utilisation, Some((0.25 + 0.25) / 20.0));
    assert_eq!(stage("base-unet").calls, 4);
    assert_eq!(stage("base-unet").utilisation, Some((2.0 + 2.0 + 4.0 + 4.0) / (2.0 * 20.0)));
    assert_eq!(stage("base-unet").run_s.unwrap().max, 4.0);
    assert_eq!(stage("base-unet").total_s.unwrap().max, 4.5);
    assert_eq!((stage("vae").calls, stage("vae").utilisation), (0, Some(0.0)));
}

#[test]
fn slowdown_is_by_what_a_request_would_have_taken_alone() {
    let report = mixed();
    // The least of a step was 0.1 s, seen in the warm-up, and of a text 0.25 s.
    let slowdown = report.slowdown.unwrap();
    let near = |value: f64, wanted: f64| assert!((value - wanted).abs() < 1e-9, "{value} is not {wanted}");
    near(slowdown.max, 8.0); // 8 s for two pictures side by side and a cached text
    near(slowdown.p50, 4.0 / 1.25);
    let tenant = |name: &str| report.by_tenant.iter().find(|group| group.name == name).unwrap();
    near(tenant("b").slowdown.unwrap().p95, 8.0);
    assert_eq!((tenant("a").requests, tenant("a").answered), (4, 2));
    assert_eq!((tenant("").requests, tenant("").refused), (2, 2));
    near(tenant("a").in_time, 0.5);
    assert_eq!(report.by_size.len(), 1);
    assert_eq!(report.by_size[0].name, "512x768");
    assert_eq!(report.by_priority[0].name, "interactive");
}

#[test]
fn a_load_without_answers_has_figures_all_the_same() {
    let empty = report(Vec::new(), 0);
    assert_eq!((empty.latency_s, empty.slowdown, empty.goodput.share), (None, None, None));
    assert_eq!(empty.throughput.pictures_per_s, 0.0);
    let json = serde_json::to_value(&empty).unwrap();
    assert!(json["latency_s"].is_null());
    assert_eq!(json["throughput"]["steps_per_s"].to_string(), "0.0", "and not -0.0");
    assert_eq!(json["load"]["requested_rate"], 0.5);
    assert_eq!(json["stages"][1]["utilisation"], 0.0);
}
