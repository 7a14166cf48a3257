//! Accounts in Redis, by its own clock, which all coordinators share. Pictures in flight are leases that end by
//! themselves should their coordinator die.

use super::{Price, Quota, Refusal, WINDOW};
use crate::store::{self, Store, StoreError};
use redis::Script;
use sdxl_core::Tenant;
use std::{sync::LazyLock, time::Duration};
use tokio::{runtime::Handle, time::sleep};
use tokio_util::task::AbortOnDropHandle;

/// For so long pictures of a coordinator that says nothing are taken to be in flight.
const LEASE: Duration = Duration::from_secs(10);

/// Takes all of a price or nothing. Times are in microseconds. A Redis that is full goes on counting: this is little, and
/// goes by itself.
///
/// KEYS: requests, pixel-steps, pictures. ARGV: window, cost in requests, cost in pixel-steps, pictures, most pictures or 0,
/// lease, member.
static TAKE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"#!lua flags=allow-oom
        local time = redis.call('TIME')
        local now = time[1] * 1000000 + time[2]
        local full, refused, wait = {}, 0, 0
        for i = 1, 2 do
            local cost = tonumber(ARGV[i + 1])
            if cost > 0 then
                full[i] = math.max(tonumber(redis.call('GET', KEYS[i]) or 0), now) + cost
                local left = full[i] - now - ARGV[1]
                if left > wait then refused, wait = i, left end
            end
        end
        local most = tonumber(ARGV[5])
        if most > 0 and refused == 0 then
            redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)
            local pictures = tonumber(ARGV[4])
            for _, member in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1)) do
                pictures = pictures + tonumber(string.match(member, '%d+'))
            end
            if pictures > most then refused = 3 end
        end
        if refused > 0 then return {refused, wait} end
        for i, at in pairs(full) do
            redis.call('SET', KEYS[i], string.format('%.0f', at), 'PX', math.ceil((at - now) / 1000))
        end
        if most > 0 then
            redis.call('ZADD', KEYS[3], now + ARGV[6], ARGV[7])
            redis.call('PEXPIRE', KEYS[3], math.ceil(ARGV[6] / 1000))
        end
        return {0, 0}",
    )
});

/// The pictures are in flight still.
///
/// KEYS: pictures. ARGV: lease, member.
static RENEW: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"#!lua flags=allow-oom
        local time = redis.call('TIME')
        redis.call('ZADD', KEYS[1], time[1] * 1000000 + time[2] + ARGV[1], ARGV[2])
        redis.call('PEXPIRE', KEYS[1], math.ceil(ARGV[1] / 1000))
        return 1",
    )
});

/// The pictures are in flight no more, and of the buckets so much was not used.
///
/// KEYS: requests, pixel-steps, pictures. ARGV: what was not used of requests, of pixel-steps, member.
static END: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"#!lua flags=allow-oom
        for i = 1, 2 do
            local full, unused = redis.call('GET', KEYS[i]), tonumber(ARGV[i])
            if full and unused > 0 then
                redis.call('SET', KEYS[i], string.format('%.0f', full - unused), 'KEEPTTL')
            end
        end
        redis.call('ZREM', KEYS[3], ARGV[3])
        return 1",
    )
});

/// A request's place in Redis.
#[derive(Clone, Debug)]
pub(super) struct Lease {
    store: Store,
    price: Price,
    keys: [String; 3],
    /// How many pictures, and which request's.
    member: String,
}

impl Lease {
    pub(super) fn new(store: Store, tenant: &Tenant, price: Price) -> Self {
        let id = store::hex(&rand::random::<[u8; 12]>());
        let keys = ["requests", "pixel-steps", "pictures"].map(|of| format!("sdxl:quota:{tenant}:{of}"));
        Self { store, price, keys, member: format!("{}:{id}", price.pictures) }
    }

    /// Takes the price. Should this be dropped before it is known whether it was taken, it is given back.
    pub(super) async fn granted(self) -> Result<Result<Self, Refusal>, StoreError> {
        let taking = tokio::spawn(async move {
            let taken = self.take().await?;
            Ok(taken.map(|()| Granted(Some(self))))
        });
        // A task that is not heard of has taken nothing that anybody knows of.
        match taking.await.unwrap_or(Err(StoreError::Gone))? {
            Ok(mut granted) => granted.0.take().map(Ok).ok_or(StoreError::Gone),
            Err(refusal) => Ok(Err(refusal)),
        }
    }

    async fn take(&self) -> Result<Result<(), Refusal>, StoreError> {
        let mut script = TAKE.prepare_invoke();
        script.key(&self.keys[..]).arg(micros(WINDOW));
        script.arg(micros(self.price.requests)).arg(micros(self.price.pixel_steps));
        script.arg(self.price.pictures).arg(self.price.max_pictures.map_or(0, std::num::NonZeroU32::get));
        script.arg(micros(LEASE)).arg(&self.member);
        let (refused, wait): (u32, u64) = self.store.invoke(&script).await?;
        let quota = match refused {
            0 => return Ok(Ok(())),
            1 => Quota::Requests,
            2 => Quota::PixelSteps,
            _ => Quota::Pictures,
        };
        Ok(Err(Refusal { quota, wait: Duration::from_micros(wait) }))
    }

    /// Says from now on that the pictures are in flight, if that matters.
    pub(super) fn hold(self) -> Held {
        let renewing = self.clone();
        let renewing = self.price.max_pictures.is_some().then(|| {
            AbortOnDropHandle::new(tokio::spawn(async move {
                loop {
                    sleep(LEASE / 3).await;
                    let mut script = RENEW.prepare_invoke();
                    script.key(&renewing.keys[2]).arg(micros(LEASE)).arg(&renewing.member);
                    // Should Redis be gone, it is told once it is back.
                    let _ = renewing.store.invoke::<i64>(&script).await;
                }
            }))
        });
        Held { lease: self, renewing }
    }

    async fn end(&self, unused: bool) {
        let unused = |time| if unused { micros(time) } else { 0 };
        let mut script = END.prepare_invoke();
        script.key(&self.keys[..]);
        script.arg(unused(self.price.requests)).arg(unused(self.price.pixel_steps)).arg(&self.member);
        // Without Redis the lease ends by itself, and what was not used comes back with time.
        let _ = self.store.invoke::<i64>(&script).await;
    }
}

/// A price that was taken for somebody who may have gone meanwhile.
struct Granted(Option<Lease>);

impl Drop for Granted {
    fn drop(&mut self) {
        if let (Some(lease), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn(async move { lease.end(true).await });
        }
    }
}

/// A place that is being held. Dropped, it is free.
#[derive(Debug)]
pub(super) struct Held {
    lease: Lease,
    renewing: Option<AbortOnDropHandle<()>>,
}

impl Held {
    /// Lets it go with all that it cost, also if nobody waits for that.
    pub(super) async fn give_back(mut self) {
        self.renewing = None;
        let lease = self.lease.clone();
        let _ = tokio::spawn(async move { lease.end(true).await }).await;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let (Some(_), Ok(runtime)) = (self.renewing.take(), Handle::try_current()) {
            let lease = self.lease.clone();
            runtime.spawn(async move { lease.end(false).await });
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
