//! The controller's HTTP endpoints: /metrics, /healthz and /readyz.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use stockade_controller::Observed;
use tokio::net::TcpListener;

/// What Prometheus asks for: the OpenMetrics text format.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Binds the address; what comes back serves until it is dropped.
///
/// # Errors
/// The address can't be bound.
pub(super) async fn serve(
    address: SocketAddr,
    observed: Arc<Observed>,
) -> std::io::Result<impl Future<Output = ()>> {
    let listener = TcpListener::bind(address).await?;
    tracing::info!(address = %listener.local_addr()?, "serves /metrics, /healthz and /readyz");
    let routes = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|State(o): State<Arc<Observed>>| async move { said(o.healthy()) }))
        .route("/readyz", get(|State(o): State<Arc<Observed>>| async move { said(o.ready()) }))
        .with_state(observed);
    Ok(async move {
        if let Err(error) = axum::serve(listener, routes).await {
            tracing::error!(%error, "the HTTP endpoints ended");
        }
    })
}

async fn metrics(State(observed): State<Arc<Observed>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, OPEN_METRICS)], observed.text())
}

fn said(answer: Result<(), String>) -> (StatusCode, String) {
    match answer {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}
