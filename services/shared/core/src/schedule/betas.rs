//! The training schedule: betas and the running product of the alphas.

use crate::scheduler::{BetaSchedule, SchedulerConfig, SchedulerKind};

/// The running product of `1 - beta` over the training timesteps, in f32 as diffusers stores it.
pub(super) fn alphas_cumprod(config: &SchedulerConfig) -> Vec<f32> {
    let mut betas = betas(config);
    let zero_snr = config.rescale_betas_zero_snr.unwrap_or(false);
    if zero_snr {
        rescale_zero_terminal_snr(&mut betas);
    }
    let mut cumprod = products(&betas);
    // Euler's first sigma would be infinite; diffusers puts f16's smallest number there.
    if zero_snr
        && config.kind == SchedulerKind::Euler
        && let Some(last) = cumprod.last_mut()
    {
        *last = 2.0_f32.powi(-24);
    }
    cumprod
}

/// `torch.cumprod(1 - betas)`: multiplied in double precision, stored in single.
#[expect(clippy::cast_possible_truncation, reason = "rounded to f32 where diffusers stores f32")]
fn products(betas: &[f32]) -> Vec<f32> {
    let mut product = 1.0_f64;
    let next = |beta: &f32| {
        product *= f64::from(1.0 - beta);
        product as f32
    };
    betas.iter().map(next).collect()
}

#[expect(clippy::cast_possible_truncation, reason = "rounded to f32 where diffusers stores f32")]
fn betas(config: &SchedulerConfig) -> Vec<f32> {
    let n = config.train_timesteps();
    let (start, end) = (config.beta_start.unwrap_or(0.0001), config.beta_end.unwrap_or(0.02));
    match config.beta_schedule.unwrap_or(BetaSchedule::Linear) {
        BetaSchedule::Linear => linspace(start as f32, end as f32, n),
        BetaSchedule::ScaledLinear => {
            linspace(start.sqrt() as f32, end.sqrt() as f32, n).iter().map(|b| b * b).collect()
        }
        BetaSchedule::SquaredcosCapV2 => {
            let alpha_bar = |t: f64| ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
            let at = |i: u32| alpha_bar(f64::from(i) / f64::from(n));
            (0..n).map(|i| (1.0 - at(i + 1) / at(i)).min(0.999) as f32).collect()
        }
    }
}

/// `torch.linspace` in f32: counted from both ends towards the middle.
#[expect(clippy::cast_precision_loss, reason = "counts of timesteps are small")]
fn linspace(start: f32, end: f32, n: u32) -> Vec<f32> {
    let step = (end - start) / (n.saturating_sub(1).max(1)) as f32;
    (0..n)
        .map(|i| if i < n / 2 { start + step * i as f32 } else { end - step * (n - 1 - i) as f32 })
        .collect()
}

/// Shifts and stretches the square roots of the running product so that the last is 0 and the first stays
/// (Lin et al. 2024, algorithm 1).
fn rescale_zero_terminal_snr(betas: &mut [f32]) {
    let mut roots: Vec<f32> = products(betas).iter().map(|product| product.sqrt()).collect();
    let (Some(&first), Some(&last)) = (roots.first(), roots.last()) else { return };
    for root in &mut roots {
        *root = (*root - last) * (first / (first - last));
    }
    let mut before = 1.0_f32;
    for (beta, root) in betas.iter_mut().zip(&roots) {
        let bar = root * root;
        *beta = 1.0 - bar / before;
        before = bar;
    }
}
