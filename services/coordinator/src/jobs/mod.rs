//! Jobs: requests that outlive their callers' connections and the coordinators that take them on. All about a job is in
//! Redis; any coordinator takes it up, saves each picture's latents as it gets them, and ends it once.

mod error;
mod ledger;
mod record;
mod runner;
mod scripts;

pub(crate) use error::JobError;
pub(crate) use record::is_over;

use crate::{
    access::Caller,
    keep::Keep,
    pipeline::GenerateError,
    quota::{Mode, pixel_steps},
    service::Generation,
    store::{self, Store, Up},
};
use ledger::{Ledger, Submission};
use prost::Message;
use record::{Spec, now};
use sdxl_core::{Plan, Tenant, Violations};
use sdxl_proto::v1;
use sdxl_runtime::{Shutdown, propagation};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
};
use tracing::Span;

/// The longest request of a job in bytes, as it is stored.
const MAX_REQUEST_BYTES: usize = 64 * 1024;

/// How jobs are done.
#[derive(Clone, Copy, Debug)]
struct Settings {
    concurrency: usize,
    attempts: u32,
    /// Pixels times steps, over all pictures of a job.
    max_pixel_steps: u64,
}

/// The jobs of the cluster. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Jobs(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// `None` without Redis.
    ledger: Option<Ledger>,
    generation: Generation,
    settings: Settings,
    /// One was submitted here.
    submitted: Notify,
    shutdown: Shutdown,
}

impl Jobs {
    /// Jobs in `store`, done by `generation` until `shutdown`.
    pub(crate) fn new(keep: &Keep, store: Option<Store>, generation: Generation, shutdown: Shutdown) -> Self {
        let ledger = store.map(|store| Ledger {
            store,
            consumer: store::hex(&rand::random::<[u8; 8]>()),
            lease: keep.job_lease,
            ttl: keep.job_ttl,
            max_jobs: keep.max_jobs,
            attempts: keep.job_attempts,
        });
        let settings = Settings {
            concurrency: keep.job_concurrency,
            attempts: keep.job_attempts,
            max_pixel_steps: keep.job_megapixel_steps.saturating_mul(1_000_000),
        };
        Self(Arc::new(Shared { ledger, generation, settings, submitted: Notify::new(), shutdown }))
    }

    /// Takes jobs up until the shutdown, and hands those back then that have not ended. Ends when dropped.
    pub(crate) fn start(&self) -> JoinSet<()> {
        let mut running = JoinSet::new();
        if self.0.ledger.is_some() {
            running.spawn(runner::run(Arc::clone(&self.0)));
        }
        running
    }

    /// Whether jobs can be reached, now and later; `None` without Redis.
    pub(crate) fn up(&self) -> Option<watch::Receiver<Up>> {
        self.0.ledger.as_ref().map(|ledger| ledger.store.up())
    }

    /// When this coordinator stops.
    pub(crate) fn shutdown(&self) -> &Shutdown {
        &self.0.shutdown
    }

    fn ledger(&self) -> Result<&Ledger, JobError> {
        self.0.ledger.as_ref().ok_or(JobError::NoRedis)
    }

    /// Takes a job on. It is paid for now, and once.
    ///
    /// # Errors
    /// [`JobError`]
    pub(crate) async fn submit(
        &self,
        tenant: &Tenant,
        caller: Option<&Caller>,
        request: v1::SubmitJobRequest,
        mut violations: Violations,
    ) -> Result<v1::Job, JobError> {
        let ledger = self.ledger()?;
        let deadline = request.deadline.and_then(|deadline| {
            let milliseconds = record::milliseconds(deadline);
            if milliseconds.is_none() {
                violations.push("deadline", "it is no time from 1970 to 9999");
            }
            milliseconds
        });
        if !violations.is_empty() {
            return Err(JobError::Invalid(violations.into_vec()));
        }
        let mut request = request.request.unwrap_or_default();
        let digest = Sha256::digest(request.encode_to_vec()).into();
        let id = job_id(tenant, request.request_id.as_deref());
        let is_named = request.request_id.is_some();
        if request.priority == i32::from(v1::Priority::Unspecified) {
            request.priority = v1::Priority::Batch.into();
        }
        request.seed.get_or_insert_with(rand::random);
        if request.encoded_len() > MAX_REQUEST_BYTES {
            let length = request.encoded_len();
            let allowed = format!("at most {MAX_REQUEST_BYTES} are allowed");
            violations.push("prompt", format!("the whole request is {length} bytes long; {allowed}"));
        }
        let plan = self.0.generation.plan_only(request.clone(), violations)?;
        self.check_size(&plan)?;
        let num_images = u32::try_from(plan.seeds.len()).unwrap_or(u32::MAX);
        let steps_total = plan.steps().saturating_mul(num_images);
        let created = now();
        let traceparent = propagation::traceparent(&Span::current());
        let spec = Spec { request: Some(request), created, deadline, steps_total, num_images, traceparent };
        let submission = Submission { id: &id, tenant, created, spec: spec.seal(), digest };
        // Which is submitted again is told of, whatever is left of the quotas.
        let is_known = is_named && ledger.get(&id, tenant).await.is_ok();
        let caller = caller.filter(|_| !is_known);
        let charged = self.0.generation.accounts.charge(caller, &plan, Mode::Job).await;
        let mut charge = charged.map_err(GenerateError::from)?;
        let submitted = ledger.submit(submission).await;
        if !matches!(submitted, Ok(true)) {
            charge.give_back().await;
        }
        submitted?;
        self.0.submitted.notify_one();
        self.get(&id, tenant).await
    }

    /// A job may ask for so much, lest one of them hold the cluster for a day.
    fn check_size(&self, plan: &Plan) -> Result<(), JobError> {
        let asked = pixel_steps(plan);
        let limit = self.0.settings.max_pixel_steps;
        if asked <= limit {
            return Ok(());
        }
        let mut violations = Violations::default();
        violations.push(
            "request.num_images",
            format!(
                "pictures x pixels x steps are {} million; a job may have {} million",
                asked.div_ceil(1_000_000),
                limit / 1_000_000
            ),
        );
        Err(JobError::Invalid(violations.into_vec()))
    }

    /// A job of `tenant`.
    ///
    /// # Errors
    /// [`JobError`]
    pub(crate) async fn get(&self, id: &str, tenant: &Tenant) -> Result<v1::Job, JobError> {
        Ok(self.ledger()?.get(checked(id)?, tenant).await?.job(id))
    }

    /// A picture of a job, if it is done.
    ///
    /// # Errors
    /// [`JobError`], also where it was done and is not there any more.
    pub(crate) async fn image(
        &self,
        job: &v1::Job,
        image_index: u32,
    ) -> Result<Option<v1::GeneratedImage>, JobError> {
        let image = self.ledger()?.image(&job.id, image_index).await?;
        if image.is_none() && job.state() == v1::JobState::Succeeded {
            return Err(JobError::Lost(image_index));
        }
        Ok(image.map(|image| v1::GeneratedImage { image_index, image: Some(image) }))
    }

    /// Ends a job that has not ended.
    ///
    /// # Errors
    /// [`JobError`]
    pub(crate) async fn cancel(&self, id: &str, tenant: &Tenant) -> Result<v1::Job, JobError> {
        self.get(id, tenant).await?; // whose it is
        self.ledger()?.cancel(id, tenant).await?;
        self.get(id, tenant).await
    }

    /// A page of a tenant's jobs and the token of the next.
    ///
    /// # Errors
    /// [`JobError`]
    pub(crate) async fn list(
        &self,
        tenant: &Tenant,
        token: &str,
        size: usize,
    ) -> Result<(Vec<v1::Job>, String), JobError> {
        let ledger = self.ledger()?;
        let (members, next) = ledger.list(tenant, token, size).await?;
        let mut jobs = Vec::with_capacity(members.len());
        for member in &members {
            let id = member.split_once('-').map_or(member.as_str(), |(_, id)| id);
            match self.get(id, tenant).await {
                Ok(job) => jobs.push(job),
                Err(JobError::NotFound(_)) => ledger.unlist(tenant, member).await?,
                Err(error) => return Err(error),
            }
        }
        Ok((jobs, next))
    }
}

/// Drawn, or made from the request's own id, so that a job that is submitted twice is one.
fn job_id(tenant: &Tenant, request_id: Option<&str>) -> String {
    let Some(request_id) = request_id else { return store::hex(&rand::random::<[u8; 16]>()) };
    let hash =
        Sha256::new().chain_update(tenant.name()).chain_update([0]).chain_update(request_id).finalize();
    store::hex(&hash[..16])
}

/// Only what may be an id becomes part of a key.
fn checked(id: &str) -> Result<&str, JobError> {
    let is_id =
        id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    is_id.then_some(id).ok_or_else(|| JobError::NotFound(id.chars().take(64).collect()))
}
