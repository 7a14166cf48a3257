//! Jobs in Redis: a stream that coordinators take them from, and for each job a record and its work.

use super::{
    JobError,
    record::{End, Record, now},
    scripts,
};
use crate::{
    pipeline::{Part, Piece, Unsaved},
    store::{self, Store, StoreError},
};
use bytes::Bytes;
use sdxl_core::Tenant;
use sdxl_proto::v1::{Image, JobState};
use std::{collections::HashMap, time::Duration};
use tracing::{info, warn};

const QUEUE: &str = "sdxl:jobs";
const GROUP: &str = "coordinators";
/// A coordinator that was not heard of for so many leases is gone.
pub(super) const SILENT: u32 = 10;
/// What a piece of work in Redis is.
const PIECE: &str = "piece";

/// The jobs of a Redis.
#[derive(Clone, Debug)]
pub(super) struct Ledger {
    pub(super) store: Store,
    /// What this coordinator is called among those that take jobs.
    pub(super) consumer: String,
    pub(super) lease: Duration,
    pub(super) ttl: Duration,
    pub(super) max_jobs: usize,
}

/// A job that this coordinator is to do.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) id: String,
    pub(super) fence: i64,
    /// How often in a row it was taken up, this time included, without getting on.
    pub(super) stalled: u32,
    pub(super) tenant: Tenant,
    pub(super) record: Record,
    pub(super) pieces: HashMap<Part, Piece>,
}

/// What is to be submitted.
pub(super) struct Submission<'a> {
    pub(super) id: &'a str,
    pub(super) tenant: &'a Tenant,
    pub(super) created: u64,
    pub(super) spec: Vec<u8>,
    pub(super) digest: [u8; 32],
}

type Entries = Vec<(String, Vec<String>)>;

impl Ledger {
    pub(super) async fn submit(&self, job: Submission<'_>) -> Result<(), JobError> {
        let mut script = scripts::SUBMIT.prepare_invoke();
        script.key(key(job.id)).key(QUEUE).key(list(job.tenant));
        script.arg(job.id).arg(job.tenant.name()).arg(job.spec).arg(&job.digest[..]);
        script.arg(format!("{:016}-{}", job.created, job.id)).arg(self.max_jobs).arg(milliseconds(self.ttl));
        match self.store.invoke::<String>(&script).await?.as_str() {
            "other" => Err(JobError::OtherJob),
            "full" => Err(JobError::Full(self.max_jobs)),
            _ => Ok(()),
        }
    }

    /// The job's record, if it is one of `tenant`.
    pub(super) async fn get(&self, id: &str, tenant: &Tenant) -> Result<Record, JobError> {
        let record = self.record(id).await?;
        if record.0.is_empty() || record.text("tenant") != tenant.name() {
            return Err(JobError::NotFound(id.chars().take(64).collect()));
        }
        Ok(record)
    }

    async fn record(&self, id: &str) -> Result<Record, StoreError> {
        Ok(Record(self.store.query(redis::cmd("HGETALL").arg(key(id))).await?))
    }

    /// Pictures of a job that are done, of those with the given indices.
    pub(super) async fn images(&self, id: &str, indices: &[u32]) -> Result<Vec<(u32, Image)>, StoreError> {
        if indices.is_empty() {
            return Ok(Vec::new());
        }
        let mut command = redis::cmd("HMGET");
        command.arg(work(id));
        for index in indices {
            command.arg(Part::Image(*index).to_string());
        }
        let values: Vec<Option<Bytes>> = self.store.query(&command).await?;
        let opened = indices.iter().zip(values).filter_map(|(index, value)| {
            Some((*index, piece(id, &Part::Image(*index).to_string(), &value?)?.image?))
        });
        Ok(opened.collect())
    }

    /// A tenant's jobs, the newest first, after `token`, as they are listed; and the token of the next page.
    pub(super) async fn list(
        &self,
        tenant: &Tenant,
        token: &str,
        size: usize,
    ) -> Result<(Vec<String>, String), StoreError> {
        let from = if token.is_empty() { "+".to_owned() } else { format!("({token}") };
        let mut command = redis::cmd("ZREVRANGEBYLEX");
        command.arg(list(tenant)).arg(from).arg("-").arg("LIMIT").arg(0).arg(size + 1);
        let mut members: Vec<String> = self.store.query(&command).await?;
        let is_last = members.len() <= size;
        members.truncate(size);
        let next = if is_last { String::new() } else { members.last().cloned().unwrap_or_default() };
        Ok((members, next))
    }

    /// A job that ended so long ago that it is gone goes from its tenant's list too.
    pub(super) async fn unlist(&self, tenant: &Tenant, member: &str) -> Result<(), StoreError> {
        self.store.query(redis::cmd("ZREM").arg(list(tenant)).arg(member)).await
    }

    pub(super) async fn cancel(&self, id: &str, tenant: &Tenant) -> Result<(), StoreError> {
        let mut script = scripts::CANCEL.prepare_invoke();
        script.key(key(id)).key(QUEUE).key(work(id)).key(list(tenant));
        script.arg(GROUP).arg(End::default().seal()).arg(now()).arg(milliseconds(self.ttl));
        self.store.invoke::<i64>(&script).await.map(drop)
    }

    /// The next job to do: one whose owner was not heard of for the length of the lease, or else one that nobody has.
    pub(super) async fn take(&self) -> Result<Option<Taken>, StoreError> {
        match self.next_entry().await {
            Ok(Some((entry, id))) => self.begin(&entry, &id).await,
            Ok(None) => Ok(None),
            Err(error) if error.code() == Some("NOGROUP") => {
                // From the stream's beginning on: what is in it has not ended.
                let mut create = redis::cmd("XGROUP");
                create.arg("CREATE").arg(QUEUE).arg(GROUP).arg("0").arg("MKSTREAM");
                match self.store.query::<()>(&create).await {
                    Err(error) if error.code() != Some("BUSYGROUP") => Err(error),
                    _ => Ok(None),
                }
            }
            Err(error) => Err(error),
        }
    }

    async fn next_entry(&self) -> Result<Option<(String, String)>, StoreError> {
        let mut idle = redis::cmd("XAUTOCLAIM");
        idle.arg(QUEUE).arg(GROUP).arg(&self.consumer).arg(milliseconds(self.lease)).arg("0-0");
        let (_, entries, _): (String, Entries, Vec<String>) =
            self.store.query(idle.arg("COUNT").arg(1)).await?;
        if let Some(entry) = first(entries) {
            return Ok(Some(entry));
        }
        let mut new = redis::cmd("XREADGROUP");
        new.arg("GROUP").arg(GROUP).arg(&self.consumer).arg("COUNT").arg(1);
        let streams: Option<Vec<(String, Entries)>> =
            self.store.query(new.arg("STREAMS").arg(QUEUE).arg(">")).await?;
        Ok(streams.into_iter().flatten().find_map(|(_, entries)| first(entries)))
    }

    async fn begin(&self, entry: &str, id: &str) -> Result<Option<Taken>, StoreError> {
        let mut script = scripts::BEGIN.prepare_invoke();
        script.key(key(id)).key(QUEUE).arg(entry).arg(GROUP).arg(now());
        let [fence, stalled] = self.store.invoke::<Vec<i64>>(&script).await?[..] else { return Ok(None) };
        let record = self.record(id).await?;
        let saved: HashMap<String, Bytes> = self.store.query(redis::cmd("HGETALL").arg(work(id))).await?;
        let saved =
            saved.iter().filter_map(|(name, value)| Some((name.parse().ok()?, piece(id, name, value)?)));
        let (id, pieces) = (id.to_owned(), saved.collect());
        let tenant = record.text("tenant").parse().unwrap_or_default();
        Ok(Some(Taken { id, fence, stalled: u32::try_from(stalled).unwrap_or(0), tenant, record, pieces }))
    }

    /// Saves what is new and says that the job is being done; whether it is still for us to do.
    pub(super) async fn save(&self, job: &Taken, unsaved: &Unsaved) -> Result<bool, StoreError> {
        let mut script = scripts::SAVE.prepare_invoke();
        script.key(key(&job.id)).key(QUEUE).key(work(&job.id));
        script.arg(job.fence).arg(GROUP).arg(&self.consumer);
        script.arg(unsaved.steps_done).arg(unsaved.images_done).arg(unsaved.useless.len());
        for part in &unsaved.useless {
            script.arg(part.to_string());
        }
        for (part, piece) in &unsaved.pieces {
            script.arg(part.to_string()).arg(store::seal(PIECE, piece));
        }
        Ok(self.store.invoke::<i64>(&script).await? == 1)
    }

    /// Ends the job; whether that was for us to do.
    pub(super) async fn end(&self, job: &Taken, state: JobState, end: &End) -> Result<bool, StoreError> {
        let mut script = scripts::END.prepare_invoke();
        script.key(key(&job.id)).key(QUEUE).key(work(&job.id)).key(list(&job.tenant));
        let state = state.as_str_name().trim_start_matches("JOB_STATE_");
        script.arg(job.fence).arg(GROUP).arg(state).arg(end.seal()).arg(now()).arg(milliseconds(self.ttl));
        Ok(self.store.invoke::<i64>(&script).await? == 1)
    }

    /// Lets go of the job, so that another may have it at once.
    pub(super) async fn release(&self, job: &Taken) {
        let mut script = scripts::RELEASE.prepare_invoke();
        script.key(key(&job.id)).key(QUEUE);
        script.arg(job.fence).arg(GROUP).arg(&self.consumer).arg(milliseconds(self.lease));
        match self.store.invoke::<i64>(&script).await {
            Ok(_) => info!(job = job.id, "job was handed over"),
            // Then the others have it once the lease is over.
            Err(error) => warn!(job = job.id, "job was not handed over: {error}"),
        }
    }

    /// This coordinator takes no more jobs, and goes from the group if it has none.
    pub(super) async fn leave(&self) {
        self.tidied(&self.consumer).await;
    }

    /// Coordinators that died without a word go from the group once others have their jobs. One that lives and has had
    /// nothing to do for as long goes too, and is back with its next job.
    pub(super) async fn tidy(&self) {
        self.tidied("").await;
    }

    async fn tidied(&self, leaving: &str) {
        let mut script = scripts::TIDY.prepare_invoke();
        script.key(QUEUE).arg(GROUP).arg(leaving).arg(milliseconds(self.lease * SILENT));
        // The next one who tidies up does it too.
        let _ = self.store.invoke::<i64>(&script).await;
    }
}

fn first(entries: Entries) -> Option<(String, String)> {
    let (entry, fields) = entries.into_iter().next()?;
    Some((entry, fields.into_iter().nth(1)?))
}

fn piece(id: &str, name: &str, value: &Bytes) -> Option<Piece> {
    store::open(PIECE, value)
        .inspect_err(|problem| {
            warn!(job = id, piece = name, "a piece of work in Redis is dropped: {problem}");
        })
        .ok()
}

fn key(id: &str) -> String {
    format!("sdxl:job:{id}")
}

fn work(id: &str) -> String {
    format!("sdxl:job:{id}:work")
}

fn list(tenant: &Tenant) -> String {
    format!("sdxl:jobs:of:{tenant}")
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
}
