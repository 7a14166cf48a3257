//! Each stage's replicas count on their own: more of the stage that all wait for is more pictures, more of another is
//! nothing, and KEDA is told so beforehand.
//!
//! Stages sleep for their steps, fifty milliseconds each, so that a busy machine has time enough to be late without being
//! too late: the simulated device's next step begins where the last one ended.

use integration_tests::{Cluster, ClusterConfig, Profile, fox};
use sdxl_proto::{
    externalscaler::{GetMetricsRequest, ScaledObjectRef, external_scaler_client::ExternalScalerClient},
    v1::GenerateRequest,
};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{task::JoinSet, time::sleep};
use tonic::transport::Channel;

const STEP_SECONDS: f64 = 0.05;
const STEPS: u32 = 4;
/// Enough for twice the replicas to have each a picture at work and one that waits.
const CALLERS: u64 = 16;
/// For the callers to settle, and the coordinator to learn how fast its stages are.
const SETTLE: Duration = Duration::from_secs(3);
const MEASURED: Duration = Duration::from_secs(12);
/// Of work that a replica should have, for KEDA.
const TARGET_SECONDS: f64 = 0.5;

/// Pictures from a cluster, asked for by callers that each wait for the last before the next.
#[derive(Default)]
struct Load {
    seeds: AtomicU64,
    done: Mutex<Vec<Instant>>,
}

impl Load {
    fn start(self: &Arc<Self>, cluster: &Cluster) -> JoinSet<()> {
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            let (load, clients) = (Arc::clone(self), cluster.clients());
            callers.spawn(async move {
                loop {
                    let seed = Some(load.seeds.fetch_add(1, Ordering::Relaxed));
                    let request = GenerateRequest { seed, num_inference_steps: STEPS, ..fox() };
                    clients.images().generate(request).await.unwrap();
                    load.done.lock().unwrap().push(Instant::now());
                }
            });
        }
        callers
    }

    /// Pictures a second between two moments.
    fn rate(&self, from: Instant, to: Instant) -> f64 {
        let done = self.done.lock().unwrap();
        done.iter().filter(|done| (from..to).contains(*done)).count() as f64 / (to - from).as_secs_f64()
    }
}

/// KEDA, at a coordinator.
struct Keda(ExternalScalerClient<Channel>);

impl Keda {
    async fn of(cluster: &Cluster) -> Self {
        Self(ExternalScalerClient::connect(cluster.coordinator.address().to_owned()).await.unwrap())
    }

    /// The seconds of work that a stage has outstanding, and the replicas that KEDA's autoscaler would give it for that:
    /// `ceil(value / target)`, one at least.
    async fn asks(&mut self, stage: &str) -> (f64, f64) {
        let metadata = [("stage", stage.to_owned()), ("targetSeconds", TARGET_SECONDS.to_string())];
        let object = ScaledObjectRef {
            name: format!("sdxl-{stage}"),
            namespace: "sdxl".to_owned(),
            scaler_metadata: metadata.map(|(key, value)| (key.to_owned(), value)).into(),
        };
        let spec = self.0.get_metric_spec(object.clone()).await.unwrap().into_inner().metric_specs.remove(0);
        let metric_name = format!("s0-{}", spec.metric_name);
        let request = GetMetricsRequest { scaled_object_ref: Some(object), metric_name };
        let value = self.0.get_metrics(request).await.unwrap().into_inner().metric_values.remove(0);
        (value.metric_value_float, (value.metric_value_float / spec.target_size_float).ceil().max(1.0))
    }
}

/// What a cluster of so many bases and VAEs does under the load.
struct Seen {
    pictures_a_second: f64,
    /// Seconds of work outstanding and replicas wanted, of the base and of the VAE.
    base: (f64, f64),
    vae: (f64, f64),
}

async fn see(profile: &Profile, base_unets: usize, vaes: usize) -> Seen {
    let alone = ["--max-batch", "1"].map(str::to_owned).to_vec();
    let simulated = ClusterConfig::simulated(profile.path());
    let cluster = Cluster::start(&ClusterConfig { base_unets, vaes, denoiser_flags: alone, ..simulated });
    let (load, mut keda) = (Arc::new(Load::default()), Keda::of(&cluster).await);
    let mut callers = load.start(&cluster);
    sleep(SETTLE).await;
    let from = Instant::now();
    let (base, vae) = (keda.asks("base-unet").await, keda.asks("vae").await);
    tokio::select! {
        () = sleep(MEASURED) => {}
        Some(ended) = callers.join_next() => panic!("{ended:?}\n{}", cluster.stderr()),
    }
    let pictures_a_second = load.rate(from, Instant::now());
    let of = |asked: (f64, f64), replicas: usize| {
        format!("{replicas} with {:.2} s of work each, {} wanted", asked.0 / replicas as f64, asked.1)
    };
    println!("base {}; VAE {}: {pictures_a_second:.2} pictures/s", of(base, base_unets), of(vae, vaes));
    Seen { pictures_a_second, base, vae }
}

#[tokio::test]
async fn throughput_follows_the_replicas_of_the_stage_that_all_wait_for() {
    let profile = Profile::quick(STEP_SECONDS);
    let first = see(&profile, 2, 1).await;
    // Before anything is added: two bases have far more to do than they should, the VAE next to nothing.
    assert!(first.base.0 / 2.0 > 2.0 * TARGET_SECONDS && first.base.1 >= 4.0, "{:?}", first.base);
    assert!(first.vae.0 < TARGET_SECONDS / 4.0 && first.vae.1 == 1.0, "{:?}", first.vae);

    let vaes = see(&profile, 2, 2).await;
    let more = vaes.pictures_a_second / first.pictures_a_second;
    println!("twice the VAEs: x{more:.3}");
    assert!((0.95..=1.05).contains(&more), "x{more:.3}");

    let bases = see(&profile, 4, 1).await;
    let more = bases.pictures_a_second / first.pictures_a_second;
    println!("twice the bases: x{more:.3}");
    assert!(more >= 1.9, "x{more:.3}");
    assert!(bases.base.0 / 4.0 < first.base.0 / 2.0, "{:?} of {:?}", bases.base, first.base);
}
