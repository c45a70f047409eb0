//! Counts every request to the API server, below all code that could forget to.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use http::{Method, Request, Response};
use tower::{Layer, Service};

use crate::observed::Observed;

/// Counts what passes through a client.
#[derive(Clone, Debug)]
pub struct CountRequests(pub Arc<Observed>);

impl<S> Layer<S> for CountRequests {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted { inner, observed: Arc::clone(&self.0) }
    }
}

/// A client's service whose requests are counted.
#[derive(Clone, Debug)]
pub struct Counted<S> {
    inner: S,
    observed: Arc<Observed>,
}

impl<S, B, R> Service<Request<B>> for Counted<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
    S::Error: 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let query = request.uri().query().unwrap_or_default();
        let (resource, named) = resource(request.uri().path());
        let verb = match *request.method() {
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ if query.split('&').any(|pair| pair == "watch=true" || pair == "watch=1") => "watch",
            _ if named => "get",
            _ => "list",
        };
        let observed = Arc::clone(&self.observed);
        let call = self.inner.call(request);
        Box::pin(async move {
            let answer = call.await;
            let code = answer.as_ref().map_or(0, |answer| answer.status().as_u16());
            observed.request(verb, &resource, code);
            answer
        })
    }
}

/// The resource of a path, with its subresource, and whether one object is named.
fn resource(path: &str) -> (String, bool) {
    let mut words: Vec<&str> = path.split('/').filter(|word| !word.is_empty()).collect();
    // /api/v1/… or /apis/<group>/<version>/…
    let prefix = if words.first() == Some(&"apis") { 3 } else { 2 };
    words.drain(..prefix.min(words.len()));
    if words.len() > 2 && words.first() == Some(&"namespaces") && words[2] != "status" {
        words.drain(..2);
    }
    match words.as_slice() {
        [] => ("none".to_owned(), false),
        [resource] => ((*resource).to_owned(), false),
        [resource, _] => ((*resource).to_owned(), true),
        [resource, _, subresource, ..] => (format!("{resource}/{subresource}"), true),
    }
}

#[cfg(test)]
mod tests {
    use super::resource;

    #[test]
    fn a_path_tells_the_resource_without_names() {
        for (path, name, named) in [
            ("/apis/stockade.dev/v1alpha1/hosts", "hosts", false),
            ("/apis/stockade.dev/v1alpha1/hosts/h1/status", "hosts/status", true),
            ("/apis/stockade.dev/v1alpha1/namespaces/d/virtualmachines/a", "virtualmachines", true),
            ("/api/v1/namespaces", "namespaces", false),
            ("/api/v1/namespaces/stockade-host-h1", "namespaces", true),
            ("/api/v1/namespaces/d/secrets/s", "secrets", true),
            ("/apis/coordination.k8s.io/v1/namespaces/d/leases", "leases", false),
            ("/version", "none", false),
        ] {
            assert_eq!(resource(path), (name.to_owned(), named), "{path}");
        }
    }
}
