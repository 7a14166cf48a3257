//! What coordinators tell each other of requests with an id. A record says which request has the id, with which seed, and
//! what came of it; a lease beside it says who is at work, and ends by itself should that one die.

use super::{Identity, Name};
use crate::store::{self, Store, StoreError};
use bytes::Bytes;
use redis::Script;
use sdxl_proto::v1::GenerateResponse;
use std::{sync::LazyLock, time::Duration};
use tokio::{runtime::Handle, time::sleep};
use tracing::warn;

/// What a value in Redis is.
const KIND: &str = "result";
/// Whoever is at work says so again each third of it.
const LEASE: Duration = Duration::from_secs(10);
/// Between two questions whether another is done.
const POLL: Duration = Duration::from_millis(100);

/// KEYS: record, lease. ARGV: digest, seed, owner, lease in ms, TTL in ms.
static BEGIN: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        local digest = redis.call('HGET', KEYS[1], 'digest')
        if digest and digest ~= ARGV[1] then return {'other'} end
        if not digest then
            redis.call('HSET', KEYS[1], 'digest', ARGV[1], 'seed', ARGV[2])
            redis.call('PEXPIRE', KEYS[1], ARGV[5])
        end
        local result = redis.call('HGET', KEYS[1], 'result')
        if result then return {'done', result} end
        if redis.call('SET', KEYS[2], ARGV[3], 'NX', 'PX', ARGV[4]) then
            return {'ours', redis.call('HGET', KEYS[1], 'seed')}
        end
        return {'wait'}",
    )
});

/// KEYS: record, lease. ARGV: owner, lease in ms, TTL in ms.
static RENEW: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
        redis.call('PEXPIRE', KEYS[2], ARGV[2])
        return redis.call('PEXPIRE', KEYS[1], ARGV[3])",
    )
});

/// KEYS: record, lease. ARGV: owner, result or nothing, TTL in ms.
static END: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
        redis.call('DEL', KEYS[2])
        if ARGV[2] ~= '' and redis.call('EXISTS', KEYS[1]) == 1 then
            redis.call('HSET', KEYS[1], 'result', ARGV[2])
            redis.call('PEXPIRE', KEYS[1], ARGV[3])
        end
        return 1",
    )
});

/// What is to be done about a request.
pub(super) enum Turn {
    /// It is another one's id.
    Other,
    /// It is done.
    Done(GenerateResponse),
    /// It is for us to do, with this seed.
    Ours(u64),
}

/// A request at Redis.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    pub(super) store: Store,
    pub(super) identity: Identity,
    /// Who we are; a new name for each piece of work.
    pub(super) owner: String,
    pub(super) ttl: Duration,
}

impl Claim {
    /// Takes the work on, or waits for whoever has.
    pub(super) async fn begin(&self, seed: u64) -> Result<Turn, StoreError> {
        loop {
            let mut script = BEGIN.prepare_invoke();
            let [record, lease] = keys(&self.identity.name);
            script.key(&record).key(lease).arg(&self.identity.digest[..]).arg(seed).arg(&self.owner);
            script.arg(milliseconds(LEASE)).arg(milliseconds(self.ttl));
            let answer: Vec<Bytes> = self.store.invoke(&script).await?;
            match (answer.first().map_or(&b""[..], |word| word), answer.get(1)) {
                (b"other", _) => return Ok(Turn::Other),
                (b"ours", Some(kept)) => {
                    let kept = std::str::from_utf8(kept).ok().and_then(|kept| kept.parse().ok());
                    return Ok(Turn::Ours(kept.unwrap_or(seed)));
                }
                (b"done", Some(value)) => match store::open(KIND, value) {
                    Ok(result) => return Ok(Turn::Done(result)),
                    Err(problem) => {
                        warn!(key = record, "a result in Redis is dropped: {problem}");
                        let mut drop = redis::cmd("HDEL");
                        self.store.query::<()>(drop.arg(&record).arg("result")).await?;
                    }
                },
                _ => sleep(POLL).await,
            }
        }
    }

    /// Says for as long as it is polled that we are at work.
    pub(super) async fn hold(&self) {
        loop {
            sleep(LEASE / 3).await;
            let mut script = RENEW.prepare_invoke();
            script.key(&keys(&self.identity.name)[..]).arg(&self.owner);
            script.arg(milliseconds(LEASE)).arg(milliseconds(self.ttl));
            // If another took over, both come to the same pictures.
            let _ = self.store.invoke::<i64>(&script).await;
        }
    }

    /// We are done, with a result or without.
    pub(super) async fn end(&self, result: Option<&GenerateResponse>) {
        let value = result.map(|result| store::seal(KIND, result)).unwrap_or_default();
        let mut script = END.prepare_invoke();
        script.key(&keys(&self.identity.name)[..]).arg(&self.owner).arg(value).arg(milliseconds(self.ttl));
        // Without Redis whoever asks again has to have it done again.
        let _ = self.store.invoke::<i64>(&script).await;
    }
}

fn keys(name: &Name) -> [String; 2] {
    let name = store::hex(name);
    [format!("sdxl:request:{name}"), format!("sdxl:request:{name}:lease")]
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// A claim on work that is being done. Dropped, it lets others have it at once.
#[derive(Debug)]
pub(super) struct Held(Option<Claim>);

impl Held {
    pub(super) fn new(claim: Claim) -> Self {
        Self(Some(claim))
    }

    /// Never ends.
    pub(super) async fn hold(&self) {
        match &self.0 {
            Some(claim) => claim.hold().await,
            None => std::future::pending().await,
        }
    }

    pub(super) async fn end(mut self, result: Option<&GenerateResponse>) {
        if let Some(claim) = self.0.take() {
            claim.end(result).await;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let (Some(claim), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn(async move { claim.end(None).await });
        }
    }
}
