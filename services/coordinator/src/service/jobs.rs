//! `JobService`.

use super::MAX_PICTURES_BYTES;
use crate::{
    access::Caller,
    jobs::{JobError, Jobs, is_over},
};
use futures::Stream;
use sdxl_core::{Tenant, Violations};
use sdxl_proto::{
    status::status,
    v1::{self, job_service_server::JobService, watch_job_response::Event},
};
use sdxl_runtime::Terms;
use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{sync::mpsc, task::JoinSet, time::sleep};
use tonic::{Request, Response, Status, metadata::MetadataMap};

/// Between two looks at a job that is watched.
const POLL: Duration = Duration::from_millis(200);
/// States and pictures that wait for a slow reader.
const CAPACITY: usize = 4;
const DEFAULT_PAGE: u32 = 50;
const MAX_PAGE: u32 = 1000;

/// The public service of jobs.
#[derive(Clone, Debug)]
pub(crate) struct JobCalls(pub(crate) Jobs);

type Item = Result<v1::WatchJobResponse, Status>;

#[tonic::async_trait]
impl JobService for JobCalls {
    type WatchJobStream = Watching;

    async fn submit_job(
        &self,
        request: Request<v1::SubmitJobRequest>,
    ) -> Result<Response<v1::SubmitJobResponse>, Status> {
        let mut violations = Violations::default();
        let tenant = tenant(request.metadata(), &mut violations);
        let caller = request.extensions().get::<Caller>().cloned();
        let job = Box::pin(self.0.submit(&tenant, caller.as_ref(), request.into_inner(), violations)).await;
        Ok(Response::new(v1::SubmitJobResponse { job: Some(job.map_err(|error| status(&error))?) }))
    }

    async fn get_job(
        &self,
        request: Request<v1::GetJobRequest>,
    ) -> Result<Response<v1::GetJobResponse>, Status> {
        let tenant = known_tenant(request.metadata())?;
        let v1::GetJobRequest { job_id, include_images } = request.into_inner();
        let answer = async {
            let job = self.0.get(&job_id, &tenant).await?;
            let (mut images, mut bytes) = (Vec::new(), 0);
            for index in 0..if include_images { job.num_images } else { 0 } {
                let image = self.0.image(&job, index).await?;
                bytes += image
                    .iter()
                    .filter_map(|image| image.image.as_ref())
                    .map(|i| i.data.len())
                    .sum::<usize>();
                let limit = MAX_PICTURES_BYTES;
                if bytes > limit {
                    return Err(JobError::TooLarge { limit });
                }
                images.extend(image);
            }
            Ok(v1::GetJobResponse { job: Some(job), images })
        };
        answer.await.map(Response::new).map_err(|error| status(&error))
    }

    async fn watch_job(&self, request: Request<v1::WatchJobRequest>) -> Result<Response<Watching>, Status> {
        let tenant = known_tenant(request.metadata())?;
        let id = request.into_inner().job_id;
        let job = self.0.get(&id, &tenant).await.map_err(|error| status(&error))?;
        let (sender, receiver) = mpsc::channel(CAPACITY);
        let mut watching = JoinSet::new();
        let jobs = self.0.clone();
        watching.spawn(async move {
            let stopped = jobs.shutdown().triggered();
            let watched = tokio::select! {
                watched = watch(&jobs, &tenant, job, &sender) => watched,
                () = stopped => Err(JobError::Stopping),
            };
            if let Err(error) = watched {
                // Nobody is left to hear of it where this fails.
                let _ = sender.send(Err(status(&error))).await;
            }
        });
        Ok(Response::new(Watching { receiver, _watching: watching }))
    }

    async fn cancel_job(
        &self,
        request: Request<v1::CancelJobRequest>,
    ) -> Result<Response<v1::CancelJobResponse>, Status> {
        let tenant = known_tenant(request.metadata())?;
        let job = self.0.cancel(&request.into_inner().job_id, &tenant).await;
        Ok(Response::new(v1::CancelJobResponse { job: Some(job.map_err(|error| status(&error))?) }))
    }

    async fn list_jobs(
        &self,
        request: Request<v1::ListJobsRequest>,
    ) -> Result<Response<v1::ListJobsResponse>, Status> {
        let mut violations = Violations::default();
        let tenant = tenant(request.metadata(), &mut violations);
        let v1::ListJobsRequest { page_size, page_token } = request.into_inner();
        if page_size > MAX_PAGE {
            violations.add("page_size", page_size, format!("in 0..={MAX_PAGE}"));
        }
        if page_token.len() > 64 || !page_token.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-') {
            violations.push("page_token", "not the next_page_token of a page before");
        }
        refuse(violations)?;
        let size = if page_size == 0 { DEFAULT_PAGE } else { page_size } as usize;
        let page = self.0.list(&tenant, &page_token, size).await;
        let (jobs, next_page_token) = page.map_err(|error| status(&error))?;
        Ok(Response::new(v1::ListJobsResponse { jobs, next_page_token }))
    }
}

/// Sends the job whenever it has changed and each picture that is done, until it is over.
async fn watch(
    jobs: &Jobs,
    tenant: &Tenant,
    mut job: v1::Job,
    sender: &mpsc::Sender<Item>,
) -> Result<(), JobError> {
    let (mut said, mut seen) = (None, Vec::new());
    let send = async |event| sender.send(Ok(v1::WatchJobResponse { event: Some(event) })).await.is_ok();
    loop {
        let mut heard = true;
        if job.images_done as usize > seen.len() {
            for index in (0..job.num_images).filter(|index| !seen.contains(index)).collect::<Vec<_>>() {
                if let Some(image) = jobs.image(&job, index).await? {
                    seen.push(index);
                    heard &= send(Event::Image(image)).await;
                }
            }
        }
        if said.as_ref() != Some(&job) {
            heard &= send(Event::Job(job.clone())).await;
        }
        if !heard || is_over(job.state()) {
            return Ok(());
        }
        said = Some(job);
        sleep(POLL).await;
        job = jobs.get(&said.as_ref().map(|job| job.id.clone()).unwrap_or_default(), tenant).await?;
    }
}

fn tenant(metadata: &MetadataMap, violations: &mut Violations) -> Tenant {
    let terms =
        Terms::from_metadata(metadata).map_err(|wrong| violations.push(&wrong.field, wrong.description));
    terms.unwrap_or_default().tenant
}

fn known_tenant(metadata: &MetadataMap) -> Result<Tenant, Status> {
    let mut violations = Violations::default();
    let tenant = tenant(metadata, &mut violations);
    refuse(violations).map(|()| tenant)
}

fn refuse(violations: Violations) -> Result<(), Status> {
    if violations.is_empty() { Ok(()) } else { Err(status(&JobError::Invalid(violations.into_vec()))) }
}

/// What a watcher reads. When it goes away this is dropped, and with it the watching.
#[derive(Debug)]
pub(crate) struct Watching {
    receiver: mpsc::Receiver<Item>,
    _watching: JoinSet<()>,
}

impl Stream for Watching {
    type Item = Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        self.receiver.poll_recv(cx)
    }
}
