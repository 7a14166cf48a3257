//! Accounts in this process.

use super::{Price, Quota, Refusal, WINDOW};
use sdxl_core::Tenant;
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// From so many accounts on those that owe nothing are closed.
const MANY: usize = 1024;

/// Accounts by tenant.
#[derive(Debug, Default)]
pub(super) struct Local(Mutex<HashMap<Tenant, Account>>);

#[derive(Clone, Copy, Debug, Default)]
struct Account {
    requests: Bucket,
    pixel_steps: Bucket,
    /// In flight.
    pictures: u32,
}

/// When it will be full; it is if there is no such time or it has passed.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket(Option<Instant>);

impl Bucket {
    /// When it will be full once `cost` is taken.
    fn after(self, now: Instant, cost: Duration) -> Instant {
        self.0.map_or(now, |full| full.max(now)) + cost
    }

    fn wait(self, now: Instant, cost: Duration) -> Duration {
        if cost.is_zero() { Duration::ZERO } else { (self.after(now, cost) - now).saturating_sub(WINDOW) }
    }

    fn take(&mut self, now: Instant, cost: Duration) {
        if !cost.is_zero() {
            self.0 = Some(self.after(now, cost));
        }
    }

    fn give_back(&mut self, cost: Duration) {
        self.0 = self.0.and_then(|full| full.checked_sub(cost));
    }

    fn is_full(self, now: Instant) -> bool {
        self.0.is_none_or(|full| full <= now)
    }
}

impl Local {
    /// Takes all of the price, or nothing; all of it, owed, where it `is_granted` already.
    pub(super) fn take(&self, tenant: &Tenant, price: &Price, is_granted: bool) -> Result<(), Refusal> {
        let now = Instant::now();
        let mut accounts = self.lock();
        if accounts.len() >= MANY {
            accounts.retain(|_, account| {
                account.pictures > 0 || !account.requests.is_full(now) || !account.pixel_steps.is_full(now)
            });
        }
        let mut account = accounts.get(tenant).copied().unwrap_or_default();
        let waits = [
            (Quota::Requests, account.requests.wait(now, price.requests)),
            (Quota::PixelSteps, account.pixel_steps.wait(now, price.pixel_steps)),
        ];
        let pictures = account.pictures.saturating_add(price.pictures);
        if !is_granted {
            if let Some((quota, wait)) =
                waits.into_iter().max_by_key(|(_, wait)| *wait).filter(|(_, wait)| !wait.is_zero())
            {
                return Err(Refusal { quota, wait });
            }
            if price.max_pictures.is_some_and(|most| pictures > most.get()) {
                return Err(Refusal { quota: Quota::Pictures, wait: Duration::ZERO });
            }
        }
        account.requests.take(now, price.requests);
        account.pixel_steps.take(now, price.pixel_steps);
        if price.max_pictures.is_some() {
            account.pictures = pictures;
        }
        accounts.insert(tenant.clone(), account);
        Ok(())
    }

    /// What was taken of the buckets is as if it had not been.
    pub(super) fn give_back(&self, tenant: &Tenant, price: &Price) {
        if let Some(account) = self.lock().get_mut(tenant) {
            account.requests.give_back(price.requests);
            account.pixel_steps.give_back(price.pixel_steps);
        }
    }

    /// The pictures are in flight no more.
    pub(super) fn land(&self, tenant: &Tenant, price: &Price) {
        if price.max_pictures.is_some()
            && let Some(account) = self.lock().get_mut(tenant)
        {
            account.pictures = account.pictures.saturating_sub(price.pictures);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Tenant, Account>> {
        // Nothing that holds it can leave it half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;

    fn price(requests: u64, pixel_steps: u64, pictures: u32) -> Price {
        Price {
            requests: Duration::from_secs(requests),
            pixel_steps: Duration::from_secs(pixel_steps),
            pictures,
            max_pictures: NonZeroU32::new(4),
        }
    }

    #[test]
    fn a_bucket_holds_a_minute_and_says_when_there_is_enough() {
        let (local, tenant): (_, Tenant) = (Local::default(), "one".parse().unwrap());
        for _ in 0..3 {
            local.take(&tenant, &price(20, 5, 0), false).unwrap();
        }
        let refused = local.take(&tenant, &price(20, 5, 0), false).unwrap_err();
        assert_eq!(refused.quota, Quota::Requests);
        assert!(
            (Duration::from_millis(19_900)..=Duration::from_secs(20)).contains(&refused.wait),
            "{refused:?}"
        );
        // Nothing was taken by that.
        assert!(local.take(&tenant, &price(0, 44, 0), false).is_ok());
        let refused = local.take(&tenant, &price(1, 30, 0), false).unwrap_err();
        assert_eq!(refused.quota, Quota::PixelSteps, "the longer wait");
        assert!((Duration::from_secs(28)..=Duration::from_secs(29)).contains(&refused.wait), "{refused:?}");
        local.give_back(&tenant, &price(20, 0, 0));
        assert!(local.take(&tenant, &price(20, 0, 0), false).is_ok());
        assert!(local.take(&"other".parse().unwrap(), &price(60, 60, 0), false).is_ok());
    }

    #[test]
    fn pictures_are_in_flight_until_they_land() {
        let (local, tenant): (_, Tenant) = (Local::default(), "one".parse().unwrap());
        local.take(&tenant, &price(0, 0, 3), false).unwrap();
        assert_eq!(local.take(&tenant, &price(0, 0, 2), false).unwrap_err().quota, Quota::Pictures);
        local.take(&tenant, &price(0, 0, 2), true).unwrap();
        local.land(&tenant, &price(0, 0, 3));
        assert!(local.take(&tenant, &price(0, 0, 2), false).is_ok());
    }

    #[test]
    fn accounts_that_owe_nothing_are_closed() {
        let local = Local::default();
        for number in 0..2 * MANY {
            local.take(&format!("t{number}").parse().unwrap(), &price(0, 0, 0), false).unwrap();
        }
        let (owing, landed): (Tenant, Tenant) = ("owing".parse().unwrap(), "flying".parse().unwrap());
        local.take(&owing, &price(1, 0, 0), false).unwrap();
        local.take(&landed, &price(0, 0, 1), false).unwrap();
        for number in 0..MANY {
            local.take(&format!("u{number}").parse().unwrap(), &price(0, 0, 0), false).unwrap();
        }
        let accounts = local.lock();
        assert!(
            accounts.len() <= MANY + 1 && accounts.contains_key(&owing) && accounts.contains_key(&landed)
        );
    }
}
