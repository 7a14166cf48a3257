//! What stands before all services: a caller who shows no key is refused, whatever is called. Services that are added
//! later are behind it too; the open ones are listed here by name.

use super::{Access, AccessError, Caller};
use http::{HeaderMap, Request, Response, header::AUTHORIZATION};
use sdxl_proto::{externalscaler::external_scaler_server, status::status};
use sdxl_runtime::terms::TENANT;
use std::{
    convert::Infallible,
    future::ready,
    pin::Pin,
    task::{Context, Poll},
};
use tonic::{body::Body, codegen::Bytes, codegen::StdError, service::Routes};
use tower::{Layer, Service};

/// KEDA can show no key. Health and reflection are the server's own and are not behind the layer.
const OPEN: [&str; 1] = [external_scaler_server::SERVICE_NAME];

/// `routes` for those only who may call.
pub(crate) fn guarded(routes: Routes, access: Access) -> Routes {
    Routes::from(routes.into_axum_router().layer(Guard(access)))
}

#[derive(Clone, Debug)]
struct Guard(Access);

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, access: self.0.clone() }
    }
}

#[derive(Clone, Debug)]
struct Guarded<S> {
    inner: S,
    access: Access,
}

impl<S, B, A> Service<Request<B>> for Guarded<S>
where
    S: Service<Request<B>, Response = Response<A>, Error = Infallible>,
    S::Future: Send + 'static,
    A: http_body::Body<Data = Bytes> + Send + 'static,
    A::Error: Into<StdError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        if !is_open(request.uri().path()) {
            match admit(&self.access, request.headers_mut()) {
                Ok(caller) => drop(request.extensions_mut().insert(caller)),
                Err(error) => return Box::pin(ready(Ok(status(&error).into_http()))),
            }
        }
        let answer = self.inner.call(request);
        Box::pin(async move { answer.await.map(|answer| answer.map(Body::new)) })
    }
}

fn is_open(path: &str) -> bool {
    let service = path.strip_prefix('/').and_then(|path| path.split_once('/')).map(|(service, _)| service);
    service.is_some_and(|service| OPEN.contains(&service))
}

/// Who calls. The key goes no further than here, and the tenant is the key's from here on.
fn admit(access: &Access, headers: &mut HeaderMap) -> Result<Caller, AccessError> {
    let caller = access.caller(bearer(headers)?)?;
    if headers.get_all(TENANT).iter().any(|named| named != caller.tenant.name()) {
        return Err(AccessError::OtherTenant);
    }
    headers.remove(AUTHORIZATION);
    // A tenant's name is ASCII that can be seen.
    let name = caller.tenant.name().parse().map_err(|_| AccessError::Unknown)?;
    headers.insert(TENANT, name);
    Ok(caller)
}

fn bearer(headers: &HeaderMap) -> Result<&str, AccessError> {
    let mut shown = headers.get_all(AUTHORIZATION).iter();
    let (first, more) = (shown.next().ok_or(AccessError::Missing)?, shown.next());
    let text = first.to_str().ok().filter(|_| more.is_none()).ok_or(AccessError::Malformed)?;
    let (scheme, secret) = text.split_once(' ').ok_or(AccessError::Malformed)?;
    let secret = secret.trim();
    if !scheme.eq_ignore_ascii_case("bearer") || secret.is_empty() {
        return Err(AccessError::Malformed);
    }
    Ok(secret)
}
