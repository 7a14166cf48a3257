//! How much a tenant may ask for: requests and pixel-steps a minute, and pictures in flight. All coordinators share the
//! accounts in Redis; without it, or while it is gone, each keeps its own.
//!
//! What comes a minute is a bucket that holds one minute's worth and fills evenly, kept as the moment at which it will be
//! full (the generic cell rate algorithm, ITU-T I.371). Each request costs such a bucket some time.

mod error;
mod local;
mod shared;

pub use error::{Quota, QuotaError};

use crate::{
    access::Caller,
    store::{Store, StoreError},
};
use local::Local;
use sdxl_core::{Plan, Tenant};
use shared::Lease;
use std::{num::NonZeroU32, sync::Arc, time::Duration};
use tracing::warn;

/// What a bucket holds.
const WINDOW: Duration = Duration::from_secs(60);
/// Pixel-steps are written in millions.
const MILLION: u128 = 1_000_000;
/// Nobody knows when a picture in flight will be done.
const IN_FLIGHT: Duration = Duration::from_secs(1);

/// A tenant's quotas; what is not there is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Quotas {
    pub(crate) requests_per_minute: Option<NonZeroU32>,
    /// In millions of pictures x pixels x steps.
    pub(crate) pixel_steps_per_minute: Option<NonZeroU32>,
    pub(crate) max_pictures_in_flight: Option<NonZeroU32>,
}

/// Pictures x pixels x steps of a plan.
pub(crate) fn pixel_steps(plan: &Plan) -> u64 {
    let pixels = u64::from(plan.size.height) * u64::from(plan.size.width);
    pixels * u64::from(plan.steps()) * plan.seeds.len() as u64
}

/// How a request is done, and so what it is charged for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// While the caller waits: its pictures are in flight.
    Now,
    /// As a job, whose pictures wait for their turn and are limited as jobs are.
    Job,
}

/// What a request costs: of each bucket so much of the time in which it fills, and so many pictures in flight.
#[derive(Clone, Copy, Debug, Default)]
struct Price {
    requests: Duration,
    pixel_steps: Duration,
    pictures: u32,
    /// `None` for no limit, and for jobs.
    max_pictures: Option<NonZeroU32>,
}

impl Price {
    /// # Errors
    /// [`QuotaError::TooLarge`] for what would not fit if nothing else had been asked for.
    fn of(plan: &Plan, mode: Mode, quotas: &Quotas) -> Result<Self, QuotaError> {
        let (asked, pictures) = (pixel_steps(plan), u32::try_from(plan.seeds.len()).unwrap_or(u32::MAX));
        let mut price = Self {
            requests: quotas.requests_per_minute.map_or(Duration::ZERO, |limit| cost(1, limit.get().into())),
            pictures,
            ..Self::default()
        };
        if let Some(limit) = quotas.pixel_steps_per_minute {
            price.pixel_steps = cost(asked, u128::from(limit.get()) * MILLION);
            if price.pixel_steps > WINDOW {
                return Err(QuotaError::too_large(Quota::PixelSteps, asked.div_ceil(1_000_000), limit.get()));
            }
        }
        if mode == Mode::Now
            && let Some(limit) = quotas.max_pictures_in_flight
        {
            price.max_pictures = Some(limit);
            if pictures > limit.get() {
                return Err(QuotaError::too_large(Quota::Pictures, pictures.into(), limit.get()));
            }
        }
        Ok(price)
    }

    fn is_free(&self) -> bool {
        self.requests.is_zero() && self.pixel_steps.is_zero() && self.max_pictures.is_none()
    }
}

/// How long a bucket that holds `limit` takes to fill by `units`, to the microsecond above.
fn cost(units: u64, limit: u128) -> Duration {
    let micros = (WINDOW.as_micros() * u128::from(units)).div_ceil(limit.max(1));
    Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
}

/// Which quota does not allow a request, and how long it will be until it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Refusal {
    quota: Quota,
    wait: Duration,
}

/// All tenants' accounts. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Accounts {
    local: Arc<Local>,
    store: Option<Store>,
}

impl Accounts {
    pub(crate) fn new(store: Option<Store>) -> Self {
        Self { local: Arc::default(), store }
    }

    /// Charges `caller` for a request, or says why it may not have it; nobody is nobody's account.
    ///
    /// # Errors
    /// [`QuotaError`]
    pub(crate) async fn charge(
        &self,
        caller: Option<&Caller>,
        plan: &Plan,
        mode: Mode,
    ) -> Result<Charge, QuotaError> {
        let Some(Caller { tenant, quotas }) = caller else { return Ok(Charge(None)) };
        let price = Price::of(plan, mode, quotas)?;
        if price.is_free() {
            return Ok(Charge(None));
        }
        let lease = match &self.store {
            None => None,
            Some(store) => match Lease::new(store.clone(), tenant, price).granted().await {
                Ok(Ok(lease)) => Some(lease),
                Ok(Err(refusal)) => return Err(QuotaError::new(refusal, quotas)),
                Err(error) => {
                    if !matches!(error, StoreError::Gone) {
                        warn!("this request is charged here alone: {error}");
                    }
                    None
                }
            },
        };
        // What Redis has granted is noted here too, so that nobody begins anew when it goes.
        let is_granted = lease.is_some();
        self.local.take(tenant, &price, is_granted).map_err(|refusal| QuotaError::new(refusal, quotas))?;
        let charge = Charged { local: Arc::clone(&self.local), tenant: tenant.clone(), price, lease: None };
        let mut charge = Charge(Some(charge));
        if let (Some(charged), Some(lease)) = (&mut charge.0, lease.or_else(|| self.later(tenant, price))) {
            charged.lease = Some(lease.hold());
        }
        Ok(charge)
    }

    /// What Redis is to know of a request that it could not be asked about, once it is back: its pictures.
    fn later(&self, tenant: &Tenant, price: Price) -> Option<Lease> {
        let store = self.store.clone()?;
        let unbilled = Price { requests: Duration::ZERO, pixel_steps: Duration::ZERO, ..price };
        Some(Lease::new(store, tenant, unbilled))
    }
}

/// What a request was charged. Its pictures are in flight until this is dropped.
#[derive(Debug)]
pub(crate) struct Charge(Option<Charged>);

#[derive(Debug)]
struct Charged {
    local: Arc<Local>,
    tenant: Tenant,
    price: Price,
    lease: Option<shared::Held>,
}

impl Charge {
    /// The request was not done, for no fault of its own: it is as if it had not been made.
    pub(crate) async fn give_back(&mut self) {
        let Some(mut charged) = self.0.take() else { return };
        charged.local.give_back(&charged.tenant, &charged.price);
        if let Some(lease) = charged.lease.take() {
            lease.give_back().await;
        }
    }
}

impl Drop for Charged {
    fn drop(&mut self) {
        self.local.land(&self.tenant, &self.price);
    }
}
