//! What a server says of its health over `grpc.health.v1`.

use std::sync::Arc;
use tonic_health::{ServingStatus, server::HealthReporter};

/// The health of one server: one status for all its services and for the server as a whole (the empty name). Clones
/// speak for the same server.
#[derive(Clone, Debug)]
pub struct Health {
    reporter: HealthReporter,
    services: Arc<[&'static str]>,
    /// Those among them whose health is their own.
    apart: Arc<[&'static str]>,
}

impl Health {
    /// A server of these services (full names, as generated `NAME` constants have them), not serving yet. They are
    /// also what reflection lists.
    pub async fn new(services: &[&'static str]) -> Self {
        let health =
            Self { reporter: HealthReporter::new(), services: services.into(), apart: Arc::default() };
        // tonic's reporter begins with the server as a whole serving.
        health.set_not_serving().await;
        health
    }

    /// The services' names.
    #[must_use]
    pub fn services(&self) -> &[&'static str] {
        &self.services
    }

    /// The same with one more service, whose health is its own: [`Health::set_apart`] alone says that it is serving.
    pub async fn apart(self, service: &'static str) -> Self {
        self.reporter.set_service_status(service, ServingStatus::NotServing).await;
        let with = |services: &[&'static str]| services.iter().copied().chain([service]).collect();
        Self { services: with(&self.services), apart: with(&self.apart), reporter: self.reporter }
    }

    /// Says whether a service that is apart is serving.
    pub async fn set_apart(&self, service: &'static str, is_serving: bool) {
        let status = if is_serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        self.reporter.set_service_status(service, status).await;
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
        for service in self.services.iter().filter(|service| !self.apart.contains(service)) {
            self.reporter.set_service_status(service, status).await;
        }
    }
}
