//! What a server says of its health over `grpc.health.v1`.

use std::sync::Arc;
use tonic_health::{ServingStatus, server::HealthReporter};

/// The health of one server: one status for all its services and for the server as a whole (the empty name). Clones
/// speak for the same server.
#[derive(Clone, Debug)]
pub struct Health {
    reporter: HealthReporter,
    services: Arc<[&'static str]>,
}

impl Health {
    /// A server of these services (full names, as generated `NAME` constants have them), not serving yet. They are
    /// also what reflection lists.
    pub async fn new(services: &[&'static str]) -> Self {
        let health = Self { reporter: HealthReporter::new(), services: services.into() };
        // tonic's reporter begins with the server as a whole serving.
        health.set_not_serving().await;
        health
    }

    /// The services' names.
    #[must_use]
    pub fn services(&self) -> &[&'static str] {
        &self.services
    }

    /// Says that requests are welcome.
    pub async fn set_serving(&self) {
        self.set(ServingStatus::Serving).await;
    }

    /// Says that requests should go elsewhere.
    pub async fn set_not_serving(&self) {
        self.set(ServingStatus::NotServing).await;
    }

    pub(crate) fn reporter(&self) -> HealthReporter {
        self.reporter.clone()
    }

    async fn set(&self, status: ServingStatus) {
        self.reporter.set_service_status("", status).await;
        for service in self.services.iter() {
            self.reporter.set_service_status(service, status).await;
        }
    }
}
