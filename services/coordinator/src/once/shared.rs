//! What coordinators tell each other of requests with an id. A record says which request has the id, with which seed, and
//! what came of it; a lease beside it says who is at work, and ends by itself should that one die.

use super::{Identity, Name};
use crate::store::{self, Store, StoreError, milliseconds};
use bytes::Bytes;
use redis::Script;
use sdxl_proto::v1::GenerateResponse;
use std::{
    sync::{
        LazyLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
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
        local seed = redis.call('HGET', KEYS[1], 'seed')
        if redis.call('HEXISTS', KEYS[1], 'result') == 1 then return {'done', seed} end
        if redis.call('SET', KEYS[2], ARGV[3], 'NX', 'PX', ARGV[4]) then
            return {'ours', seed}
        end
        return {'wait', seed}",
    )
});

/// A lease that has ended, as while Redis was away, is taken again unless another has one.
///
/// KEYS: record, lease. ARGV: owner, lease in ms, TTL in ms.
static RENEW: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        local owner = redis.call('GET', KEYS[2])
        if owner and owner ~= ARGV[1] then return 0 end
        redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
        return redis.call('PEXPIRE', KEYS[1], ARGV[3])",
    )
});

/// KEYS: record, lease. ARGV: owner, result or nothing, TTL in ms.
static END: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        local owner = redis.call('GET', KEYS[2])
        if owner and owner ~= ARGV[1] then return 0 end
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
    /// It is for us to do.
    Ours,
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
    /// Takes the work on, or waits for whoever has. `seed` becomes that which the request was first seen with.
    async fn begin(&self, seed: &mut u64) -> Result<Turn, StoreError> {
        loop {
            let mut script = BEGIN.prepare_invoke();
            let [record, lease] = keys(&self.identity.name);
            script.key(&record).key(lease).arg(&self.identity.digest[..]).arg(*seed).arg(&self.owner);
            script.arg(milliseconds(LEASE)).arg(milliseconds(self.ttl));
            let answer: Vec<String> = self.store.invoke(&script).await?;
            if let Some(kept) = answer.get(1).and_then(|kept| kept.parse().ok()) {
                *seed = kept;
            }
            match answer.first().map_or("", String::as_str) {
                "other" => return Ok(Turn::Other),
                "ours" => return Ok(Turn::Ours),
                "done" => {
                    let mut get = redis::cmd("HGET");
                    let value: Option<Bytes> = self.store.query_value(get.arg(&record).arg("result")).await?;
                    match value.map(|value| store::open(KIND, &value)) {
                        Some(Ok(result)) => return Ok(Turn::Done(result)),
                        Some(Err(problem)) => {
                            warn!(key = record, "a result in Redis is dropped: {problem}");
                            let mut drop = redis::cmd("HDEL");
                            self.store.query::<()>(drop.arg(&record).arg("result")).await?;
                        }
                        None => {}
                    }
                }
                _ => sleep(POLL).await,
            }
        }
    }

    /// Says for as long as it is polled that we are at work.
    async fn hold(&self) {
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
    async fn end(&self, result: Option<GenerateResponse>) {
        let value = result.map(|result| store::seal(KIND, &result)).unwrap_or_default();
        let mut script = END.prepare_invoke();
        script.key(&keys(&self.identity.name)[..]).arg(&self.owner).arg(value).arg(milliseconds(self.ttl));
        // Without Redis whoever asks again has to have it done again.
        let _ = self.store.invoke_value::<i64>(&script).await;
    }
}

fn keys(name: &Name) -> [String; 2] {
    let name = store::hex(name);
    [format!("sdxl:request:{name}"), format!("sdxl:request:{name}:lease")]
}

/// A claim on work, from before it is made to when it is done with. Dropped, it lets others have the work at once.
#[derive(Debug)]
pub(super) struct Held {
    claim: Claim,
    /// It is nobody's to give up.
    is_over: AtomicBool,
}

impl Held {
    pub(super) fn new(claim: Claim) -> Self {
        Self { claim, is_over: AtomicBool::new(false) }
    }

    /// As [`Claim::begin`].
    pub(super) async fn begin(&self, seed: &mut u64) -> Result<Turn, StoreError> {
        let turn = self.claim.begin(seed).await?;
        if !matches!(turn, Turn::Ours) {
            self.is_over.store(true, Ordering::Relaxed);
        }
        Ok(turn)
    }

    /// Says for as long as it is polled that we are at work. Never ends.
    pub(super) async fn hold(&self) {
        self.claim.hold().await;
    }

    /// The work is done, with a result or without. Nobody waits for Redis to hear of it.
    pub(super) fn end(self, result: Option<GenerateResponse>) {
        self.is_over.store(true, Ordering::Relaxed);
        self.tell(result);
    }

    fn tell(&self, result: Option<GenerateResponse>) {
        let claim = self.claim.clone();
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move { claim.end(result).await });
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.is_over.load(Ordering::Relaxed) {
            self.tell(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;
    use sdxl_proto::v1::{Image, Stage};

    /// A result as coordinators kept it before its timings had offsets.
    #[derive(Clone, PartialEq, Message)]
    struct Before {
        #[prost(message, repeated, tag = "1")]
        images: Vec<Image>,
        #[prost(message, repeated, tag = "2")]
        timings: Vec<TimingBefore>,
        #[prost(string, tag = "3")]
        trace_id: String,
    }

    #[derive(Clone, PartialEq, Message)]
    struct TimingBefore {
        #[prost(enumeration = "Stage", tag = "1")]
        stage: i32,
        #[prost(uint32, optional, tag = "2")]
        image_index: Option<u32>,
        #[prost(string, tag = "3")]
        replica: String,
        #[prost(message, optional, tag = "5")]
        run_time: Option<prost_types::Duration>,
        #[prost(uint32, tag = "7")]
        steps: u32,
        #[prost(uint32, tag = "9")]
        steps_repeated: u32,
    }

    fn before() -> Before {
        let run_time = Some(prost_types::Duration { seconds: 1, nanos: 5 });
        let timing = TimingBefore {
            stage: Stage::BaseUnet.into(),
            image_index: Some(1),
            replica: "unet-1:50062".into(),
            run_time,
            steps: 30,
            steps_repeated: 4,
        };
        let image = Image { width: 64, height: 96, seed: 7, ..Default::default() };
        Before { images: vec![image], timings: vec![timing], trace_id: "0af7".into() }
    }

    #[test]
    fn what_was_kept_before_timings_had_offsets_is_read() {
        let kept = store::seal(KIND, &before());
        let read: GenerateResponse = store::open(KIND, &kept.into()).unwrap();
        let timing = &read.timings[0];
        assert_eq!((timing.stage(), timing.image_index, timing.steps), (Stage::BaseUnet, Some(1), 30));
        assert_eq!((timing.run_time.unwrap().nanos, timing.steps_repeated), (5, 4));
        assert_eq!((read.images[0].seed, read.trace_id.as_str()), (7, "0af7"));
        assert!(read.request_timing.is_none() && timing.start_time_offset.is_none());
    }

    /// By a coordinator that is not exchanged yet.
    #[test]
    fn what_is_kept_now_is_read_by_those_before() {
        let kept = store::seal(KIND, &before());
        let mut now: GenerateResponse = store::open(KIND, &kept.into()).unwrap();
        now.request_timing = Some(sdxl_proto::v1::RequestTiming { texts: 2, ..Default::default() });
        now.timings[0].start_time_offset = now.timings[0].run_time;
        now.timings[0].lost_attempts.push(sdxl_proto::v1::StageAttempt::default());
        assert_eq!(store::open(KIND, &store::seal(KIND, &now).into()), Ok(before()));
    }
}
