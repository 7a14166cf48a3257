use super::*;
use crate::scheduler::TimestepSpacing;
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    config: serde_json::Value,
    n: u32,
    steps: usize,
    init_noise_sigma: f64,
    timesteps_sum: f64,
    points: Vec<Point>,
}

#[derive(Deserialize)]
struct Point {
    i: usize,
    t: f64,
    scaled: Vec<f64>,
    prev: Vec<f64>,
    noised: Vec<f64>,
}

/// The sample and the output that golden.py steps with.
const X: [f32; 2] = [0.7, -2.5];
const OUT: [f32; 2] = [-0.3, 1.25];

fn next(c: StepCoefficients, x: f32, out: f32) -> f64 {
    let clipped =
        c.clipped.map_or(0.0, |o| o.weight * (o.sample * x + o.model_output * out).clamp(-o.range, o.range));
    f64::from(c.sample * x + c.model_output * out + clipped)
}

fn close(what: &str, ours: f64, theirs: f64) {
    assert!(
        (ours - theirs).abs() <= 2e-5 * theirs.abs().max(1.0),
        "{what}: {ours} is not diffusers' {theirs}"
    );
}

#[test]
fn every_schedule_is_diffusers_own() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("golden.json")).unwrap();
    assert!(cases.len() > 80);
    for case in cases {
        let name = format!("{} with {} steps", case.config, case.n);
        let config = SchedulerConfig::from_json(&case.config.to_string()).unwrap();
        let schedule = Schedule::new(&config, case.n).unwrap();
        assert_eq!(schedule.len(), case.steps, "{name}");
        close(&name, schedule.init_noise_sigma().into(), case.init_noise_sigma);
        let sum: f64 = (0..schedule.len()).map(|i| f64::from(schedule.timestep(i))).sum();
        close(&name, sum, case.timesteps_sum);
        for p in case.points {
            let name = format!("{name}, step {}", p.i);
            close(&name, schedule.timestep(p.i).into(), p.t);
            for k in 0..2 {
                close(&name, f64::from(X[k] * schedule.input_scale(p.i)), p.scaled[k]);
                close(&name, next(schedule.step(p.i), X[k], OUT[k]), p.prev[k]);
                let level = schedule.noise_level(p.i);
                close(&name, f64::from(X[k] * level.signal + OUT[k] * level.noise), p.noised[k]);
            }
        }
    }
}

fn sdxl() -> SchedulerConfig {
    SchedulerConfig {
        beta_start: Some(0.00085),
        beta_end: Some(0.012),
        beta_schedule: Some(crate::scheduler::BetaSchedule::ScaledLinear),
        timestep_spacing: Some(TimestepSpacing::Leading),
        steps_offset: Some(1),
        ..SchedulerConfig::new(SchedulerKind::Euler)
    }
}

#[test]
fn published_figures_of_sdxl() {
    let schedule = Schedule::new(&sdxl(), 50).unwrap();
    assert_eq!((schedule.timestep(0), schedule.timestep(49)), (981.0, 1.0));
    assert!((schedule.noise_level(0).noise - 13.120_416).abs() < 2e-6);
    assert!((schedule.init_noise_sigma() - 13.158_469).abs() < 2e-6);
}

#[test]
fn experts_hand_over_where_diffusers_does() {
    let split = |n, fraction| Schedule::new(&sdxl(), n).unwrap().split(fraction);
    assert_eq!((split(50, 0.8), split(30, 0.8), split(25, 0.8)), (40, 23, 20));
}

#[test]
fn strength_cuts_as_python_does() {
    let schedule = Schedule::new(&sdxl(), 50).unwrap();
    assert_eq!(schedule.first_step_of_strength(50, 0.3), 35);
    assert_eq!(schedule.first_step_of_strength(10, 0.7), 3);
    assert_eq!(schedule.first_step_of_strength(10, 0.05), 10);
}

#[test]
fn counts_out_of_range_are_named() {
    for n in [0, 1001] {
        let error = Schedule::new(&sdxl(), n).unwrap_err();
        assert_eq!(error.to_string().split(':').next(), Some("num_inference_steps"));
    }
    let ddim = SchedulerConfig { kind: SchedulerKind::Ddim, ..sdxl() };
    let error = Schedule::new(&ddim, 1000).unwrap_err();
    assert!(error.to_string().contains("timestep 1000"), "{error}");
    assert!(Schedule::new(&ddim, 999).is_ok());
}
