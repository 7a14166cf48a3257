//! Requests with a `request_id` are done once: whoever asks again joins the work that is under way, here or at another
//! coordinator, or gets what came of it. The seed is fixed when the id is first seen, so that work which has to be begun
//! anew comes to the same pictures.

mod shared;

use crate::{
    cache::Lru,
    pipeline::GenerateError,
    store::{self, Store},
};
use prost::Message;
use sdxl_core::Tenant;
use sdxl_proto::{status::status, v1};
use sha2::{Digest, Sha256};
use shared::{Claim, Held, Turn};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};
use tokio::{sync::watch, task::AbortHandle};
use tonic::{Code, Status};

/// Beside a result's own bytes.
const OVERHEAD_BYTES: usize = 256;

/// A hash of tenant and id.
type Name = [u8; 32];

type Answer = Result<v1::GenerateResponse, Status>;

/// What came of a request, and whether it was done for that here.
#[derive(Clone, Debug)]
struct Told {
    answer: Answer,
    was_done: bool,
}

/// Which request is meant.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    name: Name,
    /// Of all that the request says but its id.
    digest: [u8; 32],
    /// That the request names, or one for it.
    seed: u64,
}

impl Identity {
    /// Of a request of `tenant`; `None` where it has no id.
    pub(crate) fn of(tenant: &Tenant, request: &v1::GenerateRequest) -> Option<Self> {
        let id = request.request_id.as_deref()?;
        let name = Sha256::new().chain_update(tenant.name()).chain_update([0]).chain_update(id);
        let anonymous = v1::GenerateRequest { request_id: None, ..request.clone() };
        Some(Self {
            name: name.finalize().into(),
            digest: Sha256::digest(anonymous.encode_to_vec()).into(),
            seed: request.seed.unwrap_or_else(rand::random),
        })
    }
}

/// Requests with an id, those at work and those done. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Once(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    local: Mutex<Local>,
    store: Option<Store>,
    ttl: Duration,
}

#[derive(Debug)]
struct Local {
    known: Lru<Name, Known>,
    running: HashMap<Name, Weak<Work>>,
}

/// A request that was seen.
#[derive(Clone, Debug)]
struct Known {
    digest: [u8; 32],
    seed: u64,
    result: Option<v1::GenerateResponse>,
    since: Instant,
}

/// Work under way. Whoever waits for it holds it; it is given up with the last of them.
#[derive(Debug)]
struct Work {
    digest: [u8; 32],
    answer: watch::Receiver<Option<Told>>,
    task: AbortHandle,
}

impl Drop for Work {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What a caller finds.
enum Entry {
    Done(v1::GenerateResponse),
    Under(Arc<Work>, bool),
}

impl Once {
    /// Keeps results for `ttl`: `bytes` of them in this process, and all in `store`.
    pub(crate) fn new(bytes: usize, store: Option<Store>, ttl: Duration) -> Self {
        let local = Mutex::new(Local { known: Lru::new(bytes), running: HashMap::new() });
        Self(Arc::new(Shared { local, store, ttl }))
    }

    /// The answer to a request, and whether it is `work` of this very call that led to it. `work` is called with the seed,
    /// by one of all that ask at the same time; it goes on for as long as one of them waits.
    pub(crate) async fn answer<F>(
        &self,
        identity: &Identity,
        work: impl Fn(u64) -> F + Clone + Send + Sync + 'static,
    ) -> (Answer, bool)
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        loop {
            let (held, is_ours) = match self.enter(identity, &work) {
                Err(error) => return (Err(status(&error)), false),
                Ok(Entry::Done(response)) => return (Ok(response), false),
                Ok(Entry::Under(held, is_ours)) => (held, is_ours),
            };
            let mut receiver = held.answer.clone();
            let told = receiver.wait_for(Option::is_some).await.ok().and_then(|told| told.clone());
            match told {
                // Another caller's deadline is not ours: neither that it has passed nor that it would be missed.
                Some(Told { answer: Err(error), .. })
                    if !is_ours
                        && [Code::DeadlineExceeded, Code::ResourceExhausted].contains(&error.code()) => {}
                Some(Told { answer, was_done }) => return (answer, is_ours && was_done),
                None if is_ours => return (Err(Status::internal("the work ended without an answer")), true),
                None => {}
            }
        }
    }

    /// What there is for the request: its result, its work, or new work.
    fn enter<F>(
        &self,
        identity: &Identity,
        work: &(impl Fn(u64) -> F + Clone + Send + Sync + 'static),
    ) -> Result<Entry, GenerateError>
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        let mut local = self.0.lock();
        local.known.drop_stale(|known| known.since.elapsed() > self.0.ttl);
        let mut identity = identity.clone();
        if let Some(known) = local.known.get(&identity.name).filter(|k| k.since.elapsed() <= self.0.ttl) {
            if known.digest != identity.digest {
                return Err(GenerateError::OtherRequest);
            }
            if let Some(result) = &known.result {
                return Ok(Entry::Done(result.clone()));
            }
            identity.seed = known.seed;
        }
        if let Some(held) = local.running.get(&identity.name).and_then(Weak::upgrade) {
            if held.digest != identity.digest {
                return Err(GenerateError::OtherRequest);
            }
            return Ok(Entry::Under(held, false));
        }
        let (sender, answer) = watch::channel(None);
        let (name, digest) = (identity.name, identity.digest);
        let task = tokio::spawn(Box::pin(run(Arc::clone(&self.0), identity, work.clone(), sender)));
        let held = Arc::new(Work { digest, answer, task: task.abort_handle() });
        local.running.insert(name, Arc::downgrade(&held));
        Ok(Entry::Under(held, true))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Local> {
        // Nothing that holds it can leave it half changed.
        self.local.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, identity: &Identity, seed: u64, result: Option<v1::GenerateResponse>) {
        let bytes = result.as_ref().map_or(0, Message::encoded_len) + OVERHEAD_BYTES;
        let known = Known { digest: identity.digest, seed, result, since: Instant::now() };
        self.lock().known.put(identity.name, known, bytes);
    }
}

/// Does the work, or waits for another coordinator that does; then nobody is at it any more, however it ended.
async fn run<F>(
    shared: Arc<Shared>,
    identity: Identity,
    work: impl Fn(u64) -> F + Send + Sync,
    sender: watch::Sender<Option<Told>>,
) where
    F: Future<Output = Answer> + Send,
{
    let _running = Running { shared: &shared, name: identity.name };
    let told = decide(&shared, &identity, work).await;
    sender.send_replace(Some(told));
}

async fn decide<F>(shared: &Shared, identity: &Identity, work: impl Fn(u64) -> F + Send + Sync) -> Told
where
    F: Future<Output = Answer> + Send,
{
    let owner = store::hex(&rand::random::<[u8; 16]>());
    let claim =
        shared.store.clone().map(|store| Claim { store, identity: identity.clone(), owner, ttl: shared.ttl });
    let mut seed = identity.seed;
    let held = claim.map(Held::new);
    if let Some(held) = &held {
        match held.begin(&mut seed).await {
            Ok(Turn::Other) => {
                return Told { answer: Err(status(&GenerateError::OtherRequest)), was_done: false };
            }
            Ok(Turn::Done(response)) => {
                shared.note(identity, seed, Some(response.clone()));
                return Told { answer: Ok(response), was_done: false };
            }
            // Without Redis it is done here.
            Ok(Turn::Ours) | Err(_) => {}
        }
    }
    // Before anything is done: should it be begun anew, then with this seed.
    shared.note(identity, seed, None);
    let answer = match &held {
        None => work(seed).await,
        Some(held) => tokio::select! {
            answer = work(seed) => answer,
            () = held.hold() => Err(Status::internal("holding ended")),
        },
    };
    if let Ok(response) = &answer {
        shared.note(identity, seed, Some(response.clone()));
    }
    if let Some(held) = held {
        held.end(answer.as_ref().ok().cloned());
    }
    Told { answer, was_done: true }
}

/// Work that is being done; its end is noted when this is dropped.
struct Running<'a> {
    shared: &'a Shared,
    name: Name,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut local = self.shared.lock();
        // If all who waited have gone, others may have begun anew by now: that stays.
        let over = |work: &Weak<Work>| work.upgrade().is_none_or(|work| work.answer.borrow().is_some());
        if local.running.get(&self.name).is_some_and(over) {
            local.running.remove(&self.name);
        }
    }
}
