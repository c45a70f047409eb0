//! A client that stops with its process.

use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Request, Response};
use kube::Client;
use kube::client::Body;
use tower::Service;

use crate::host::gate::Gate;

/// The client of a process: nothing passes while its gate is closed, nothing ever once it is dead.
pub(super) fn behind(client: Client, gate: &Gate) -> Client {
    Client::new(Behind { client, gate: gate.clone() }, "default")
}

struct Behind {
    client: Client,
    gate: Gate,
}

impl Service<Request<Body>> for Behind {
    type Response = Response<Body>;
    type Error = kube::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, kube::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), kube::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (client, gate) = (self.client.clone(), self.gate.clone());
        async move {
            gate.pass().await;
            let answer = client.send(request).await;
            gate.pass().await;
            answer
        }
        .boxed()
    }
}
