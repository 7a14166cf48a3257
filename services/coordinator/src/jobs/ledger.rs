//! Jobs in Redis: a stream that coordinators take them from, and for each job a record and its work.

use super::{
    JobError,
    record::{End, Record, now},
    scripts,
};
use crate::{
    pipeline::{Part, Piece, Unsaved},
    store::{self, Store, StoreError, milliseconds},
};
use bytes::Bytes;
use sdxl_core::Tenant;
use sdxl_proto::v1::{Image, JobState};
use std::{collections::HashMap, time::Duration};
use tracing::{info, warn};

const QUEUE: &str = "sdxl:jobs";
const OPEN: &str = "sdxl:jobs:open";
const GROUP: &str = "coordinators";
/// A coordinator that was not heard of for so many leases is gone.
pub(super) const SILENT: u32 = 10;
/// What has not ended is kept for so many times as long as what has.
const UNENDED: u32 = 7;
/// After Redis was away its owners get so much time to say that they still have their jobs, or the lease if that is less.
const GRACE: Duration = Duration::from_secs(3);
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
    /// A job that was taken up more often in a row without getting on is given up.
    pub(super) attempts: u32,
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

/// An entry of the queue.
#[derive(Debug)]
struct Entry {
    id: String,
    job: String,
    tenant: String,
}

impl Ledger {
    /// Whether the job is a new one.
    pub(super) async fn submit(&self, job: Submission<'_>) -> Result<bool, JobError> {
        let mut script = scripts::SUBMIT.prepare_invoke();
        script.key(key(job.id)).key(QUEUE).key(list(job.tenant)).key(OPEN);
        script.arg(job.id).arg(job.tenant.name()).arg(job.spec).arg(&job.digest[..]);
        script.arg(format!("{:016}-{}", job.created, job.id)).arg(self.max_jobs);
        script.arg(milliseconds(self.ttl * UNENDED));
        match self.store.invoke::<String>(&script).await?.as_str() {
            "other" => Err(JobError::OtherJob),
            "full" => Err(JobError::Full(self.max_jobs)),
            answer => Ok(answer == "new"),
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

    /// A picture of a job, if it is done.
    pub(super) async fn image(&self, id: &str, index: u32) -> Result<Option<Image>, JobError> {
        let name = Part::Image(index).to_string();
        let value: Option<Bytes> =
            self.store.query_value(redis::cmd("HGET").arg(work(id)).arg(&name)).await?;
        let Some(value) = value else { return Ok(None) };
        let image = store::open::<Piece>(PIECE, &value).ok().and_then(|piece| piece.image);
        image.map(Some).ok_or(JobError::Lost(index))
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
        self.ended(id, tenant, None, "CANCELLED", &End::default()).await.map(drop)
    }

    /// The next job to do: one whose owner was not heard of for the length of the lease, or else one that nobody has.
    pub(super) async fn take(&self) -> Result<Option<Taken>, StoreError> {
        match self.next_entry().await {
            Ok(Some(entry)) => self.begin(&entry).await,
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

    async fn next_entry(&self) -> Result<Option<Entry>, StoreError> {
        // Nobody could be heard of while Redis was away.
        if self.store.up().borrow().since.elapsed() >= self.lease.min(GRACE)
            && let Some(entry) = self.idle_entry().await?
        {
            return Ok(Some(entry));
        }
        let mut new = redis::cmd("XREADGROUP");
        new.arg("GROUP").arg(GROUP).arg(&self.consumer).arg("COUNT").arg(1);
        let streams: Option<Vec<(String, Entries)>> =
            self.store.query(new.arg("STREAMS").arg(QUEUE).arg(">")).await?;
        Ok(streams.into_iter().flatten().find_map(|(_, entries)| first(entries)))
    }

    /// Redis looks at ten entries at a time; whoever has those before may well be alive.
    async fn idle_entry(&self) -> Result<Option<Entry>, StoreError> {
        let mut from = "0-0".to_owned();
        loop {
            let mut claim = redis::cmd("XAUTOCLAIM");
            claim.arg(QUEUE).arg(GROUP).arg(&self.consumer).arg(milliseconds(self.lease)).arg(&from);
            let (next, entries, _): (String, Entries, Vec<String>) =
                self.store.query(claim.arg("COUNT").arg(1)).await?;
            let entry = first(entries);
            if entry.is_some() || next == "0-0" {
                return Ok(entry);
            }
            from = next;
        }
    }

    async fn begin(&self, entry: &Entry) -> Result<Option<Taken>, StoreError> {
        let id = &entry.job;
        let tenant: Tenant = entry.tenant.parse().unwrap_or_default();
        let mut script = scripts::BEGIN.prepare_invoke();
        script.key(key(id)).key(QUEUE).key(work(id)).key(list(&tenant)).key(OPEN);
        script.arg(&entry.id).arg(GROUP).arg(tenant.name()).arg(now()).arg(milliseconds(self.ttl * UNENDED));
        let [fence, stalled] = self.store.invoke::<Vec<i64>>(&script).await?[..] else { return Ok(None) };
        let stalled = u32::try_from(stalled).unwrap_or(0);
        let record = self.record(id).await?;
        let mut pieces = HashMap::new();
        // One that is given up needs none, and they may be why it does not get on.
        let names: Vec<String> = match stalled > self.attempts {
            true => Vec::new(),
            false => self.store.query(redis::cmd("HKEYS").arg(work(id))).await?,
        };
        for name in names {
            let value: Option<Bytes> =
                self.store.query_value(redis::cmd("HGET").arg(work(id)).arg(&name)).await?;
            if let (Ok(part), Some(value)) = (name.parse(), value) {
                pieces.extend(piece(id, &name, &value).map(|piece| (part, piece)));
            }
        }
        Ok(Some(Taken { id: id.clone(), fence, stalled, tenant, record, pieces }))
    }

    /// Saves what is new and says that the job is being done; whether it is still for us to do.
    pub(super) async fn save(&self, job: &Taken, unsaved: &Unsaved) -> Result<bool, StoreError> {
        // One by one, so that nobody waits for long in between.
        let mut pieces = unsaved.pieces.iter();
        let mut useless = &unsaved.useless[..];
        loop {
            let mut script = scripts::SAVE.prepare_invoke();
            script.key(key(&job.id)).key(QUEUE).key(work(&job.id)).key(list(&job.tenant));
            script.arg(job.fence).arg(GROUP).arg(&self.consumer).arg(milliseconds(self.ttl * UNENDED));
            script.arg(unsaved.steps_done).arg(unsaved.images_done).arg(useless.len());
            for part in std::mem::take(&mut useless) {
                script.arg(part.to_string());
            }
            let next = pieces.next();
            if let Some((part, piece)) = next {
                script.arg(part.to_string()).arg(store::seal(PIECE, piece));
            }
            let is_ours = match next {
                Some(_) => self.store.invoke_value::<i64>(&script).await? == 1,
                None => self.store.invoke::<i64>(&script).await? == 1,
            };
            if !is_ours || pieces.len() == 0 {
                return Ok(is_ours);
            }
        }
    }

    /// Ends the job; whether that was for us to do.
    pub(super) async fn end(&self, job: &Taken, state: JobState, end: &End) -> Result<bool, StoreError> {
        let state = state.as_str_name().trim_start_matches("JOB_STATE_");
        self.ended(&job.id, &job.tenant, Some(job.fence), state, end).await
    }

    async fn ended(
        &self,
        id: &str,
        tenant: &Tenant,
        fence: Option<i64>,
        state: &str,
        end: &End,
    ) -> Result<bool, StoreError> {
        let mut script = scripts::END.prepare_invoke();
        script.key(key(id)).key(QUEUE).key(work(id)).key(list(tenant)).key(OPEN);
        script.arg(fence.map(|fence| fence.to_string()).unwrap_or_default()).arg(GROUP).arg(tenant.name());
        script.arg(state).arg(end.seal()).arg(now()).arg(milliseconds(self.ttl));
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

fn first(entries: Entries) -> Option<Entry> {
    let (id, fields) = entries.into_iter().next()?;
    let mut values = fields.into_iter().skip(1).step_by(2);
    Some(Entry { id, job: values.next()?, tenant: values.next()? })
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
