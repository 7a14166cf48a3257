//! A whole cluster of real processes on loopback.

use crate::{
    client::Clients,
    made::Made,
    process::{Server, Starting},
};
use std::{
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};
use tonic_health::pb::health_check_response::ServingStatus;

/// How long a cluster may take from its start to its being ready, on a busy machine.
const READY: Duration = Duration::from_secs(120);

/// Any free port.
const ANYWHERE: &str = "127.0.0.1:0";

/// What to start.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// The base's pipeline folder.
    pub base: PathBuf,
    /// The refiner's pipeline folder.
    pub refiner: Option<PathBuf>,
    /// How many base UNets.
    pub base_unets: usize,
    /// How many VAEs.
    pub vaes: usize,
    /// Further flags of every denoiser.
    pub denoiser_flags: Vec<String>,
    /// Where given, all stages are simulated by this profile, and the folders are not read.
    pub profile: Option<PathBuf>,
    /// How long work that was begun waits where no replica takes it, in seconds.
    pub patience: u32,
    /// Further flags of the coordinator.
    pub coordinator_flags: Vec<String>,
    /// Variables of every process.
    pub variables: Vec<(String, String)>,
}

impl ClusterConfig {
    /// One replica of each stage for a checkpoint.
    #[must_use]
    pub fn new(made: &Made) -> Self {
        Self {
            base: made.base(),
            refiner: made.refiner().is_dir().then(|| made.refiner()),
            base_unets: 1,
            vaes: 1,
            denoiser_flags: Vec::new(),
            profile: None,
            patience: 0,
            coordinator_flags: Vec::new(),
            variables: Vec::new(),
        }
    }

    /// One simulated replica of each stage.
    #[must_use]
    pub fn simulated(profile: &Path) -> Self {
        Self {
            base: PathBuf::new(),
            refiner: Some(PathBuf::new()),
            base_unets: 1,
            vaes: 1,
            denoiser_flags: Vec::new(),
            profile: Some(profile.to_owned()),
            patience: 0,
            coordinator_flags: Vec::new(),
            variables: Vec::new(),
        }
    }

    /// What a stage is told of its model.
    fn model(&self, flag: &str, folder: &Path) -> Vec<String> {
        match &self.profile {
            None => vec![flag.to_owned(), folder.display().to_string()],
            Some(profile) => {
                let profile = profile.display().to_string();
                ["--engine", "simulated", "--profile", &profile].map(str::to_owned).to_vec()
            }
        }
    }
}

/// A running cluster. All its processes end when it is dropped or the test process ends.
#[derive(Debug)]
pub struct Cluster {
    /// Where requests go.
    pub coordinator: Server,
    /// The text encoder.
    pub text_encoder: Server,
    /// The base UNets.
    pub base_unets: Vec<Server>,
    /// The refiner, if there is one.
    pub refiner: Option<Server>,
    /// The VAEs.
    pub vaes: Vec<Server>,
}

impl Cluster {
    /// Starts a cluster and waits until it is ready, with every replica.
    ///
    /// # Panics
    /// Where a process does not start, or the cluster does not get ready in time; with what all processes wrote.
    #[must_use]
    pub fn start(config: &ClusterConfig) -> Self {
        let variables: Vec<_> = config.variables.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let spawn = |binary: &str, args: &[String]| Starting::spawn_with(binary, args, ANYWHERE, &variables);
        let text_encoder = spawn("sdxl-text-encoder", &text_encoder_args(config));
        let mut denoiser = denoiser_args(config, &config.base);
        let base_unets: Vec<_> = (0..config.base_unets).map(|_| spawn("sdxl-base-unet", &denoiser)).collect();
        let refiner = config.refiner.as_ref().map(|folder| {
            denoiser = denoiser_args(config, folder);
            spawn("sdxl-refiner", &denoiser)
        });
        let vae_args = config.model("--model", &config.base);
        let vaes: Vec<_> = (0..config.vaes).map(|_| spawn("sdxl-vae", &vae_args)).collect();

        let text_encoder = text_encoder.listening();
        let base_unets: Vec<_> = base_unets.into_iter().map(Starting::listening).collect();
        let refiner = refiner.map(Starting::listening);
        let vaes: Vec<_> = vaes.into_iter().map(Starting::listening).collect();
        let mut flags = Vec::new();
        let mut point_at = |flag: &str, servers: &[&Server]| {
            let addresses: Vec<_> = servers.iter().map(|s| s.address()).collect();
            flags.extend([flag.to_owned(), addresses.join(",")]);
        };
        point_at("--text-encoder", &[&text_encoder]);
        point_at("--base-unet", &base_unets.iter().collect::<Vec<_>>());
        point_at("--vae", &vaes.iter().collect::<Vec<_>>());
        if let Some(refiner) = &refiner {
            point_at("--refiner", &[refiner]);
        }
        flags.extend(["--patience".to_owned(), config.patience.to_string()]);
        flags.extend_from_slice(&config.coordinator_flags);
        let coordinator = spawn("sdxl-coordinator", &flags).listening();
        let cluster = Self { coordinator, text_encoder, base_unets, refiner, vaes };
        assert!(cluster.is_ready(READY), "not ready after {READY:?}\n{}", cluster.stderr());
        assert!(cluster.is_complete(READY), "replicas still missing after {READY:?}\n{}", cluster.stderr());
        cluster
    }

    /// Waits for the coordinator to give work to every base UNet and every VAE: it serves as soon as one of each does.
    fn is_complete(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        let ready = |stage: &str, replicas: usize| {
            format!("sdxl_stage_replicas{{stage=\"{stage}\",state=\"ready\"}} {replicas}")
        };
        let wanted = [ready("base-unet", self.base_unets.len()), ready("vae", self.vaes.len())];
        loop {
            let said = self.coordinator.metrics("text/plain");
            if wanted.iter().all(|line| said.lines().any(|said| said == line)) {
                return true;
            }
            if Instant::now() >= end {
                return false;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Clients of the coordinator. To be called inside a tokio runtime.
    #[must_use]
    pub fn clients(&self) -> Clients {
        Clients::new(self.coordinator.address())
    }

    /// Every process.
    pub fn servers(&self) -> impl Iterator<Item = &Server> {
        [&self.coordinator, &self.text_encoder]
            .into_iter()
            .chain(&self.base_unets)
            .chain(&self.refiner)
            .chain(&self.vaes)
    }

    /// What all processes have written to stderr.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.servers().map(Server::stderr).collect()
    }

    /// Waits for the coordinator's health to say that the cluster serves. Works inside and outside a tokio runtime.
    #[must_use]
    pub fn is_ready(&self, limit: Duration) -> bool {
        let address = self.coordinator.address().to_owned();
        let waiting = thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async { Clients::new(&address).becomes(ServingStatus::Serving, limit).await })
        });
        waiting.join().expect("waiting does not panic")
    }
}

fn text_encoder_args(config: &ClusterConfig) -> Vec<String> {
    let mut args = config.model("--base", &config.base);
    if let Some(refiner) = config.refiner.as_ref().filter(|_| config.profile.is_none()) {
        args.extend(["--refiner".to_owned(), refiner.display().to_string()]);
    }
    args
}

fn denoiser_args(config: &ClusterConfig, folder: &Path) -> Vec<String> {
    let mut args = config.model("--model", folder);
    args.extend_from_slice(&config.denoiser_flags);
    args
}
