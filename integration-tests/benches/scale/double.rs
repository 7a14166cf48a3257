//! Twice the replicas: how much more comes out, while the bottleneck never rests.

use crate::{
    cluster::{Cluster, Size},
    figures::{
        Figures,
        Target::{AtLeast, None as Info},
    },
    load::Load,
};
use std::time::{Duration, Instant};

const BASES: [usize; 4] = [8, 16, 32, 64];
/// Requests at a time for each base; four of them share its steps.
const PLACES: usize = 5;
/// About as long as a picture takes; then that long again, for the loop to settle.
const RAMP: Duration = Duration::from_secs(14);
const MEASURED: Duration = Duration::from_secs(50);

pub(crate) async fn run() -> Figures {
    let mut figures = Figures::default();
    let mut last: Option<f64> = None;
    for bases in BASES {
        let cluster = Cluster::start(Size::of(bases)).await;
        eprintln!("{:?} and a coordinator are ready", cluster.size);
        let (rate, busy) = throughput(&cluster, bases).await;
        figures.add(format!("{bases} bases: pictures a second"), rate, "", Info);
        figures.add(format!("{bases} bases: busy"), busy, "%", Info);
        if let Some(last) = last {
            figures.add(format!("{} to {bases} bases", bases / 2), rate / last, "times", AtLeast(1.9));
        }
        last = Some(rate);
    }
    figures
}

/// Pictures a second, and how busy the bases are.
async fn throughput(cluster: &Cluster, bases: usize) -> (f64, f64) {
    let load = Load::new(cluster.clients(), bases as u64);
    let mut running = load.closed(u32::try_from(PLACES * bases).expect("few"), RAMP);
    tokio::time::sleep(2 * RAMP).await;
    let (from, before) = (Instant::now(), cluster.busy().await);
    tokio::time::sleep(MEASURED).await;
    let (to, after) = (Instant::now(), cluster.busy().await);
    load.stop();
    running.abort_all();
    while running.join_next().await.is_some() {}
    let seconds = (to - from).as_secs_f64();
    let base =
        |busy: &[(&str, f64)]| busy.iter().find(|(stage, _)| *stage == "base-unet").map_or(0.0, |b| b.1);
    let samples = load.samples();
    let pictures = samples.iter().filter(|s| s.answered() && s.ended() >= from && s.ended() <= to).count();
    (pictures as f64 / seconds, 100.0 * (base(&after) - base(&before)) / seconds)
}
