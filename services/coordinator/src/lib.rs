//! The coordinator: the public API of an SDXL cluster. It makes a plan of each request, sends the plan's parts to the
//! replicas with the least to do, and hands the pictures back. It moves tensors and pictures as bytes and never looks
//! at a number in them.

mod access;
mod admission;
mod args;
mod cache;
mod cluster;
mod config;
mod jobs;
mod keep;
mod once;
mod pipeline;
pub mod placement;
mod quota;
mod readiness;
mod service;
mod stage_tls;
mod store;
mod telemetry;

pub use access::{AccessArgs, AccessArgsError, AccessConfig, JwtConfig};
pub use args::Args;
pub use config::{Config, ConfigError};
pub use keep::{Keep, KeepArgs, KeepError, Redis};
pub use pipeline::GenerateError;
pub use quota::{Quota, QuotaError};
pub use stage_tls::StageTlsArgs;

use access::Access;
use anyhow::Context;
use cache::EmbeddingCache;
use jobs::Jobs;
use once::Once;
use placement::Fleets;
use quota::Accounts;
use readiness::Readiness;
use sdxl_proto::{
    FILE_DESCRIPTOR_SET, MAX_MESSAGE_BYTES,
    externalscaler::external_scaler_server::{self as external_scaler, ExternalScalerServer},
    v1::{
        image_generation_service_server::{self as image_generation, ImageGenerationServiceServer},
        job_service_server::{self as job, JobServiceServer},
        model_service_server::{self as model, ModelServiceServer},
    },
};
use sdxl_runtime::{
    Health, Shutdown,
    server::{self, Listener, Server},
    tls::ClientTls,
};
use service::{Generation, JobCalls, Model, Scaler, Settings};
use std::sync::Arc;
use std::time::Duration;
use store::Store;
use tokio::{task::JoinSet, time::timeout};
use tonic::service::Routes;

/// For jobs to be handed back once all calls are answered.
const HAND_BACK: Duration = Duration::from_secs(2);

/// Serves on `listener` until `shutdown`, then lets running requests finish.
///
/// Who may not call hears so whatever service is called, but for health, reflection and KEDA's scaler.
///
/// Health says SERVING for every service (and for the empty name) while each needed stage has a replica that is ready; that of
/// jobs is so while Redis is there, and that of KEDA's scaler always.
///
/// Needs a subscriber for its log lines and trace ids ([`sdxl_runtime::telemetry::init`]), but does without.
///
/// # Errors
/// Where serving cannot begin or the listener breaks.
pub async fn serve(config: Config, listener: impl Into<Listener>, shutdown: Shutdown) -> anyhow::Result<()> {
    let access = Access::start(&config.access)?;
    let health = Health::new(&[image_generation::SERVICE_NAME, model::SERVICE_NAME])
        .await
        .apart(job::SERVICE_NAME)
        .await
        .apart(external_scaler::SERVICE_NAME)
        .await;
    health.set_apart(external_scaler::SERVICE_NAME, true).await;
    let kubernetes = match config.uses_kubernetes() {
        true => Some(kube::Client::try_default().await.context("Kubernetes cannot be asked for replicas")?),
        false => None,
    };
    let _following_tls = config.stage_tls.as_ref().map(ClientTls::follow);
    let fleets = Arc::new(Fleets::start(&config, kubernetes.as_ref()));
    // Both follow the stages until the last request is done.
    let readiness = Readiness::start(&fleets, health.clone(), shutdown.clone());
    let settings = Settings {
        max_requests: config.max_requests,
        checkpoint_interval: config.checkpoint_interval,
        patience: config.patience,
    };
    let keep = &config.keep;
    let store = keep.redis.clone().map(|redis| Store::start(redis.0)).transpose()?;
    let cache = EmbeddingCache::new(keep.embedding_cache_bytes, store.clone(), keep.embedding_cache_ttl);
    let accounts = Accounts::new(store.clone());
    let once = Once::new(keep.result_bytes, store.clone(), keep.result_ttl);
    let generation = Generation::new(Arc::clone(&fleets), readiness.model(), cache, once, accounts, settings);
    telemetry::observe(&fleets, &generation.admission, &generation.cache, store.as_ref());
    let jobs = Jobs::new(keep, store, generation.clone(), shutdown.clone());
    let mut running = jobs.start();
    let _following = follow_jobs(&jobs, health.clone());
    let scaler = Scaler {
        fleets: Arc::clone(&fleets),
        admission: generation.admission.clone(),
        shutdown: shutdown.clone(),
    };
    let routes = Routes::new(
        ImageGenerationServiceServer::new(generation).max_decoding_message_size(MAX_MESSAGE_BYTES),
    )
    .add_service(ExternalScalerServer::new(scaler))
    .add_service(ModelServiceServer::new(Model::new(fleets, readiness.model())))
    .add_service(JobServiceServer::new(JobCalls(jobs)).max_decoding_message_size(MAX_MESSAGE_BYTES));
    let routes = match access {
        Some(access) => access::guarded(routes, access),
        None => routes,
    };
    let server = Server {
        listener: listener.into(),
        health,
        descriptors: &[FILE_DESCRIPTOR_SET],
        drain_timeout: config.drain_timeout,
        shutdown,
    };
    server::serve(server, routes).await?;
    // Jobs are handed back by now, or Redis does not answer.
    let _ = timeout(HAND_BACK, running.join_next()).await;
    Ok(())
}

/// Health says SERVING for jobs while Redis is there, whatever the stages do: they wait for those. `/healthz` names Redis.
fn follow_jobs(jobs: &Jobs, health: Health) -> JoinSet<()> {
    let (up, stopped) = (jobs.up(), jobs.shutdown().triggered());
    let mut following = JoinSet::new();
    let Some(mut up) = up else { return following };
    following.spawn(async move {
        let follow = async {
            loop {
                let is_up = up.borrow_and_update().is_up;
                health.set_dependency("redis", is_up);
                health.set_apart(job::SERVICE_NAME, is_up).await;
                if up.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = follow => {}
            () = stopped => health.set_apart(job::SERVICE_NAME, false).await,
        }
    });
    following
}
