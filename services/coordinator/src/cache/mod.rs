//! Embeddings of texts, so that a text is encoded once: kept in this process, and in Redis for all coordinators. A text
//! that another request is just having encoded is waited for.

mod lru;

pub(crate) use lru::Lru;

use crate::{
    placement::StageInfo,
    store::{self, Store},
};
use bytes::Bytes;
use prost::Message;
use sdxl_core::TextPlan;
use sdxl_proto::v1::{self, TextEmbedding};
use sha2::{Digest, Sha256};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::{Semaphore, watch};
use tracing::warn;

/// What a value in Redis is.
const KIND: &str = "embedding";
/// Beside an embedding's own bytes.
const OVERHEAD_BYTES: usize = 256;
/// Embeddings on their way to Redis. One more is not written: it is encoded again when it is needed.
const WRITES: usize = 16;

/// What an embedding is kept under: a hash of all that it depends on.
pub(crate) type Key = [u8; 32];

/// Whether an embedding that was kept is what the text encoder at hand would give.
pub(crate) type Check<'a> = &'a (dyn Fn(usize, TextEmbedding) -> Result<TextEmbedding, String> + Sync);

/// How often what was found, since the start.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    /// Texts found in this process, or waited for.
    pub(crate) hits: AtomicU64,
    /// Texts found in Redis.
    pub(crate) shared_hits: AtomicU64,
    /// Texts that had to be encoded.
    pub(crate) misses: AtomicU64,
}

/// The cache. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct EmbeddingCache(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    local: Mutex<Local>,
    store: Option<Store>,
    ttl: Duration,
    writes: Arc<Semaphore>,
    figures: Figures,
    is_off: bool,
}

#[derive(Debug)]
struct Local {
    kept: Lru<Key, TextEmbedding>,
    flights: HashMap<Key, watch::Receiver<Option<TextEmbedding>>>,
}

/// What is known of the texts of a request, by their indices in it.
#[derive(Debug, Default)]
pub(crate) struct Lookup {
    /// At hand.
    pub(crate) found: Vec<(usize, TextEmbedding)>,
    /// Being encoded for another request, which may fail.
    pub(crate) awaited: Vec<(usize, watch::Receiver<Option<TextEmbedding>>)>,
    /// To be encoded by whoever asked.
    pub(crate) missing: Vec<(usize, Flight)>,
}

/// A text that is being encoded. Others wait for it until it lands or is dropped.
#[derive(Debug)]
pub(crate) struct Flight {
    cache: Arc<Shared>,
    key: Key,
    sender: watch::Sender<Option<TextEmbedding>>,
}

/// The key of `text` at a text encoder. Names are preceded by their lengths, so that no two texts share one.
pub(crate) fn key(encoder: &StageInfo, text: &TextPlan) -> Key {
    let conditioner = v1::Conditioner::from(text.conditioner);
    // Other kinds of device round otherwise.
    let device = encoder.device.split(':').next().unwrap_or_default();
    let mut hash = Sha256::new();
    for part in [&encoder.revision, encoder.dtype.as_str_name(), device, &text.prompt, &text.prompt_2] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.update(i32::from(conditioner).to_le_bytes());
    hash.update(text.clip_skip.to_le_bytes());
    hash.finalize().into()
}

impl EmbeddingCache {
    /// Keeps `bytes` of embeddings in this process, and in `store` for `ttl` after they were written. With neither it
    /// is off.
    pub(crate) fn new(bytes: usize, store: Option<Store>, ttl: Duration) -> Self {
        let is_off = bytes == 0 && store.is_none();
        let local = Mutex::new(Local { kept: Lru::new(bytes), flights: HashMap::new() });
        let writes = Arc::new(Semaphore::new(WRITES));
        Self(Arc::new(Shared { local, store, ttl, writes, figures: Figures::default(), is_off }))
    }

    /// How often what was found.
    pub(crate) fn figures(&self) -> &Figures {
        &self.0.figures
    }

    /// Looks texts up by their keys, here and then in Redis.
    pub(crate) async fn look_up(&self, wanted: &[(usize, Key)], check: Check<'_>) -> Lookup {
        let mut lookup = self.look_here(wanted);
        count(&self.0.figures.hits, lookup.found.len() + lookup.awaited.len());
        let shared = self.look_in_store(&lookup.missing, check).await;
        let mut missing = Vec::with_capacity(lookup.missing.len());
        for ((index, flight), found) in lookup.missing.into_iter().zip(shared) {
            match found {
                Some(embedding) => {
                    count(&self.0.figures.shared_hits, 1);
                    flight.land(embedding.clone(), false);
                    lookup.found.push((index, embedding));
                }
                None => missing.push((index, flight)),
            }
        }
        count(&self.0.figures.misses, missing.len());
        lookup.missing = missing;
        lookup
    }

    fn look_here(&self, wanted: &[(usize, Key)]) -> Lookup {
        let mut lookup = Lookup::default();
        let mut local = self.0.lock();
        for (index, key) in wanted.iter().copied() {
            if let Some(embedding) = local.kept.get(&key) {
                lookup.found.push((index, embedding.clone()));
            } else if let Some(flight) = local.flights.get(&key) {
                lookup.awaited.push((index, flight.clone()));
            } else {
                let (sender, receiver) = watch::channel(None);
                if !self.0.is_off {
                    local.flights.insert(key, receiver);
                }
                lookup.missing.push((index, Flight { cache: Arc::clone(&self.0), key, sender }));
            }
        }
        lookup
    }

    /// What Redis has of them, in their order. Without Redis, nothing.
    async fn look_in_store(
        &self,
        missing: &[(usize, Flight)],
        check: Check<'_>,
    ) -> Vec<Option<TextEmbedding>> {
        let none = || missing.iter().map(|_| None).collect();
        let Some(store) = self.0.store.as_ref().filter(|_| !missing.is_empty()) else { return none() };
        let mut command = redis::cmd("MGET");
        for (_, flight) in missing {
            command.arg(name(&flight.key));
        }
        // That Redis is gone is said where it is found out.
        let Ok(values) = store.query::<Vec<Option<Bytes>>>(&command).await else { return none() };
        let opened = missing.iter().zip(values).map(|((index, flight), value)| {
            let opened = store::open(KIND, &value?).map_err(|error| error.to_string());
            opened
                .and_then(|embedding| check(*index, embedding))
                .inspect_err(|problem| {
                    warn!(key = name(&flight.key), "an embedding in Redis is dropped: {problem}");
                })
                .ok()
        });
        let opened: Vec<_> = opened.collect();
        if opened.len() == missing.len() { opened } else { none() }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Local> {
        // Nothing that holds it can leave it half changed.
        self.local.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands an embedding to Redis without waiting for it.
    fn write(&self, key: Key, embedding: TextEmbedding) {
        let Some(store) = self.store.clone() else { return };
        let Ok(permit) = Arc::clone(&self.writes).try_acquire_owned() else { return };
        let ttl = store::milliseconds(self.ttl);
        tokio::spawn(async move {
            let mut command = redis::cmd("SET");
            command.arg(name(&key)).arg(store::seal(KIND, &embedding)).arg("PX").arg(ttl);
            // It is only a cache.
            let _ = store.query::<()>(&command).await;
            drop(permit);
        });
    }
}

impl Flight {
    /// The embedding is there: whoever waits gets it, and it is kept; in Redis too, where it `is_new` there.
    pub(crate) fn land(self, embedding: TextEmbedding, is_new: bool) {
        let embedding = apart(embedding);
        let bytes = embedding.encoded_len() + OVERHEAD_BYTES;
        self.cache.lock().kept.put(self.key, embedding.clone(), bytes);
        if is_new {
            self.cache.write(self.key, embedding.clone());
        }
        self.sender.send_replace(Some(embedding));
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.cache.lock().flights.remove(&self.key);
    }
}

/// The embedding with bytes of its own. Those of a reply lie in one piece, which would stay for as long as any of it.
fn apart(mut embedding: TextEmbedding) -> TextEmbedding {
    for tensor in [&mut embedding.prompt_embeds, &mut embedding.pooled_prompt_embeds].into_iter().flatten() {
        tensor.data = Bytes::copy_from_slice(&tensor.data);
    }
    embedding
}

/// What the key is called in Redis.
fn name(key: &Key) -> String {
    format!("sdxl:embedding:{}", store::hex(key))
}

fn count(figure: &AtomicU64, by: usize) {
    figure.fetch_add(by as u64, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_found_is_counted() {
        let cache = EmbeddingCache::new(1000, None, Duration::ZERO);
        let wanted = [(0, [1; 32]), (1, [2; 32])];
        let mut lookup = cache.look_up(&wanted, &|_, kept| Ok(kept)).await;
        lookup.missing.remove(0).1.land(TextEmbedding::default(), true);
        let second = cache.look_up(&wanted, &|_, kept| Ok(kept)).await;
        assert_eq!((second.found.len(), second.awaited.len(), second.missing.len()), (1, 1, 0));
        drop(lookup);
        assert_eq!(cache.look_up(&wanted, &|_, kept| Ok(kept)).await.missing.len(), 1, "the flight is over");
        let figures = cache.figures();
        let all = [&figures.hits, &figures.shared_hits, &figures.misses].map(|n| n.load(Ordering::Relaxed));
        assert_eq!(all, [3, 0, 3]);
    }
}
