//! What a server says of its health: over `grpc.health.v1`, and at `/healthz` for whoever speaks plain HTTP.

use serde::Serialize;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::runtime::Handle;
use tonic::body::Body;
use tonic_health::{ServingStatus, server::HealthReporter};

/// Where it is said over plain HTTP.
pub(crate) const PATH: &str = "/healthz";

/// The health of one server: one status for all its services and for the server as a whole (the empty name). Clones
/// speak for the same server.
#[derive(Clone, Debug)]
pub struct Health {
    reporter: HealthReporter,
    services: Arc<[&'static str]>,
    /// Those among them whose health is their own.
    apart: Arc<[&'static str]>,
    said: Arc<Mutex<Said>>,
}

/// What was said last.
#[derive(Debug, Default)]
struct Said {
    is_serving: bool,
    obstacle: Option<String>,
    lasts: bool,
    services: BTreeMap<&'static str, bool>,
    dependencies: BTreeMap<&'static str, bool>,
}

/// The answer over plain HTTP.
#[derive(Serialize)]
struct Page<'a> {
    status: &'static str,
    /// Why it is not serving, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    obstacle: Option<&'a str>,
    /// Whether waiting alone will not take it away.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    lasts: bool,
    services: BTreeMap<&'static str, &'static str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    dependencies: BTreeMap<&'static str, &'static str>,
    /// Of the runtime, alive at this moment.
    tasks: usize,
}

impl Health {
    /// A server of these services (full names, as generated `NAME` constants have them), not serving yet. They are
    /// also what reflection lists.
    pub async fn new(services: &[&'static str]) -> Self {
        let health = Self {
            reporter: HealthReporter::new(),
            services: services.into(),
            apart: Arc::default(),
            said: Arc::default(),
        };
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
        let with = |services: &[&'static str]| services.iter().copied().chain([service]).collect();
        let health = Self { services: with(&self.services), apart: with(&self.apart), ..self };
        health.set_apart(service, false).await;
        health
    }

    /// Says whether a service that is apart is serving.
    pub async fn set_apart(&self, service: &'static str, is_serving: bool) {
        self.lock().services.insert(service, is_serving);
        let status = if is_serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        self.reporter.set_service_status(service, status).await;
    }

    /// Says at `/healthz` whether something that the server uses, such as `redis`, is there. The server serves without.
    pub fn set_dependency(&self, name: &'static str, is_there: bool) {
        self.lock().dependencies.insert(name, is_there);
    }

    /// Says that requests are welcome.
    pub async fn set_serving(&self) {
        self.set(true, None, false).await;
    }

    /// Says that requests should go elsewhere.
    pub async fn set_not_serving(&self) {
        self.set(false, None, false).await;
    }

    /// The same, with the reason.
    pub async fn set_obstacle(&self, obstacle: String) {
        self.set(false, Some(obstacle), false).await;
    }

    /// The same, with a reason that waiting alone does not take away.
    pub async fn set_lasting_obstacle(&self, obstacle: String) {
        self.set(false, Some(obstacle), true).await;
    }

    pub(crate) fn reporter(&self) -> HealthReporter {
        self.reporter.clone()
    }

    /// What there is to say, as JSON: 200 where the server serves, 503 where it does not.
    pub(crate) fn page(&self) -> http::Response<Body> {
        let (is_serving, json) = {
            let said = self.lock();
            let page = Page {
                status: word(said.is_serving),
                obstacle: said.obstacle.as_deref(),
                lasts: said.lasts,
                services: said.services.iter().map(|(name, is)| (*name, word(*is))).collect(),
                dependencies: said.dependencies.iter().map(|(name, is)| (*name, word(*is))).collect(),
                tasks: Handle::try_current().map_or(0, |runtime| runtime.metrics().num_alive_tasks()),
            };
            (said.is_serving, serde_json::to_string(&page).unwrap_or_default())
        };
        let mut response = http::Response::new(Body::new(json));
        let code = if is_serving { http::StatusCode::OK } else { http::StatusCode::SERVICE_UNAVAILABLE };
        *response.status_mut() = code;
        let json = http::HeaderValue::from_static("application/json");
        response.headers_mut().insert(http::header::CONTENT_TYPE, json);
        response
    }

    async fn set(&self, is_serving: bool, obstacle: Option<String>, lasts: bool) {
        let together: Vec<_> = self.services.iter().filter(|service| !self.apart.contains(service)).collect();
        {
            let mut said = self.lock();
            (said.is_serving, said.obstacle, said.lasts) = (is_serving, obstacle, lasts);
            said.services.extend(together.iter().map(|service| (**service, is_serving)));
        }
        let status = if is_serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        self.reporter.set_service_status("", status).await;
        for service in together {
            self.reporter.set_service_status(service, status).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Said> {
        // Nothing that holds it can leave it half changed.
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As `grpc.health.v1` says it.
fn word(is_serving: bool) -> &'static str {
    if is_serving { "SERVING" } else { "NOT_SERVING" }
}
