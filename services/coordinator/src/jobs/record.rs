//! A job as Redis keeps it.

use crate::store::{self, Unreadable};
use bytes::Bytes;
use sdxl_core::{Priority, Tenant};
use sdxl_proto::v1::{self, JobState};
use sdxl_runtime::{Deadline, Terms};
use std::{
    collections::HashMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tonic::Code;

/// What the values in Redis are.
const SPEC: &str = "job";
const END: &str = "job-end";

/// What is to be done: written once.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Spec {
    /// With a seed and a priority.
    #[prost(message, optional, tag = "1")]
    pub(super) request: Option<v1::GenerateRequest>,
    /// In milliseconds since 1970, as the deadline.
    #[prost(uint64, tag = "2")]
    pub(super) created: u64,
    #[prost(uint64, optional, tag = "3")]
    pub(super) deadline: Option<u64>,
    #[prost(uint32, tag = "4")]
    pub(super) steps_total: u32,
    #[prost(uint32, tag = "5")]
    pub(super) num_images: u32,
    /// Where its trace goes on, as W3C writes it.
    #[prost(string, optional, tag = "6")]
    pub(super) traceparent: Option<String>,
}

/// What came of it: written once.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct End {
    #[prost(message, optional, tag = "1")]
    pub(super) summary: Option<v1::GenerateSummary>,
    #[prost(message, optional, tag = "2")]
    pub(super) error: Option<v1::JobError>,
}

impl Spec {
    pub(super) fn seal(&self) -> Vec<u8> {
        store::seal(SPEC, self)
    }

    /// On whose behalf and by when.
    pub(super) fn terms(&self, tenant: Tenant) -> Terms {
        let left = self.deadline.map(|deadline| Duration::from_millis(deadline.saturating_sub(now())));
        let priority = self.request.as_ref().map(v1::GenerateRequest::priority);
        let is_interactive = priority == Some(v1::Priority::Interactive);
        Terms {
            deadline: left.and_then(Deadline::after),
            priority: if is_interactive { Priority::Interactive } else { Priority::Batch },
            tenant,
        }
    }
}

impl End {
    pub(super) fn failed(code: Code, message: impl Into<String>) -> Self {
        let error = v1::JobError { code: code.into(), message: message.into() };
        Self { summary: None, error: Some(error) }
    }

    pub(super) fn seal(&self) -> Vec<u8> {
        store::seal(END, self)
    }
}

/// A job's record, field by field.
#[derive(Debug, Default)]
pub(super) struct Record(pub(super) HashMap<String, Bytes>);

impl Record {
    pub(super) fn text(&self, field: &str) -> &str {
        self.0.get(field).and_then(|value| std::str::from_utf8(value).ok()).unwrap_or_default()
    }

    fn number<N: std::str::FromStr + Default>(&self, field: &str) -> N {
        self.text(field).parse().unwrap_or_default()
    }

    pub(super) fn state(&self) -> JobState {
        JobState::from_str_name(&format!("JOB_STATE_{}", self.text("state"))).unwrap_or_default()
    }

    pub(super) fn spec(&self) -> Result<Spec, Unreadable> {
        store::open(SPEC, self.0.get("spec").unwrap_or(&Bytes::new()))
    }

    /// For the job's caller.
    pub(super) fn job(&self, id: &str) -> v1::Job {
        let spec = self.spec().unwrap_or_default();
        let end = self.0.get("end").map(|value| store::open::<End>(END, value));
        let end = end.map(|end| {
            end.unwrap_or_else(|problem| {
                End::failed(Code::DataLoss, format!("how it ended cannot be read: {problem}"))
            })
        });
        let End { summary, error } = end.unwrap_or_default();
        let at = |field| (self.0.contains_key(field)).then(|| timestamp(self.number(field)));
        let is_done = self.state() == JobState::Succeeded;
        let steps_done = if is_done { spec.steps_total } else { self.number("steps") };
        let request = spec.request.as_ref();
        v1::Job {
            id: id.to_owned(),
            state: self.state().into(),
            create_time: Some(timestamp(spec.created)),
            start_time: at("started"),
            end_time: at("ended"),
            deadline: spec.deadline.map(timestamp),
            attempts: self.number("attempts"),
            steps_done,
            steps_total: spec.steps_total,
            images_done: self.number("images"),
            num_images: spec.num_images,
            seed: request.and_then(|request| request.seed).unwrap_or_default(),
            error,
            summary,
        }
    }
}

/// Whether a job in this state will not change any more.
pub(crate) fn is_over(state: JobState) -> bool {
    matches!(state, JobState::Succeeded | JobState::Failed | JobState::Cancelled)
}

/// In milliseconds since 1970, by this machine's clock.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn timestamp(milliseconds: u64) -> prost_types::Timestamp {
    (UNIX_EPOCH + Duration::from_millis(milliseconds)).into()
}

/// In milliseconds since 1970; `None` for what is before that, after the year 9999, or no time at all.
pub(super) fn milliseconds(timestamp: prost_types::Timestamp) -> Option<u64> {
    const END: i64 = 253_402_300_799;
    let is_time = (0..=END).contains(&timestamp.seconds) && (0..1_000_000_000).contains(&timestamp.nanos);
    let seconds = u64::try_from(timestamp.seconds).ok().filter(|_| is_time)?;
    Some(seconds * 1000 + u64::try_from(timestamp.nanos / 1_000_000).ok()?)
}
