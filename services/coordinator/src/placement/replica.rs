//! One replica, and the work that was given to it.

use super::source::Address;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tonic::transport::{Channel, Endpoint};

/// Between two HTTP/2 pings, and for how long an answer is waited for, before a silent peer counts as dead. A process
/// that is killed closes its sockets and is noticed at once; this is for machines that vanish.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Embeddings and latents of one request fit into a stream's window, so that they need no second round trip.
const STREAM_WINDOW: u32 = 4 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;

/// A replica of a stage.
#[derive(Debug)]
pub struct Replica {
    address: Address,
    channel: Channel,
    outstanding: AtomicU64,
}

impl Replica {
    /// The replica at `address`, which is connected to when it is first called, and again after a connection broke.
    ///
    /// # Errors
    /// Where the address makes no URI.
    pub fn new(address: Address, connect_timeout: Duration) -> Result<Self, tonic::transport::Error> {
        let channel = Endpoint::from_shared(address.url())?
            .connect_timeout(connect_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .connect_lazy();
        Ok(Self { address, channel, outstanding: AtomicU64::new(0) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// For a client of one of its services; cheap.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Work that was given to it and is not done, in the stage's own unit.
    #[must_use]
    pub fn outstanding(&self) -> u64 {
        self.outstanding.load(Ordering::Relaxed)
    }
}

/// A unit of work on a replica, counted as outstanding until it is done or dropped.
#[derive(Debug)]
pub struct Lease {
    replica: Arc<Replica>,
    left: u64,
}

impl Lease {
    pub(super) fn new(replica: Arc<Replica>, work: u64) -> Self {
        replica.outstanding.fetch_add(work, Ordering::Relaxed);
        Self { replica, left: work }
    }

    /// The replica.
    #[must_use]
    pub fn replica(&self) -> &Arc<Replica> {
        &self.replica
    }

    /// Gives back a part of the work that is done.
    pub fn done(&mut self, work: u64) {
        let work = work.min(self.left);
        self.left -= work;
        self.replica.outstanding.fetch_sub(work, Ordering::Relaxed);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.done(self.left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_is_outstanding_until_it_is_done_or_dropped() {
        let replica = Arc::new(Replica::new("127.0.0.1:1".parse().unwrap(), Duration::from_secs(1)).unwrap());
        let mut lease = Lease::new(Arc::clone(&replica), 10);
        let other = Lease::new(Arc::clone(&replica), 5);
        assert_eq!(replica.outstanding(), 15);
        lease.done(4);
        assert_eq!(replica.outstanding(), 11);
        lease.done(100);
        assert_eq!(replica.outstanding(), 5, "never more than was taken");
        drop((lease, other));
        assert_eq!(replica.outstanding(), 0);
    }
}
