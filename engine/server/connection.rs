//! Connections: a bounded number of them, none of which may dawdle.

use super::App;
use super::error::ApiError;
use super::peers::Peers;
use super::stream::{Counting, Progress, Unstalled, gone};
use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::http::{StatusCode, Version};
use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::sleep;
use tower_service::Service;

/// Connections beyond the bound that are told so at once.
const MAX_TURNED_AWAY: usize = 32;
/// What is left to a connection without a request when the server stops: the end of an answer may still be on its way.
const GRACE: Duration = Duration::from_millis(300);
/// What a client that has closed its sending half is sent between events, to see whether it is still there.
const COMMENT: &[u8] = b": is anybody there?\n\n";

/// What a connection beyond the bound is told.
const TOO_MANY: &str = "this server has as many connections as it takes; try again";
/// What a connection beyond its peer's bound is told.
const TOO_MANY_OF_PEER: &str = "this server has as many connections as it takes from one address; close some, or use them for several requests";

/// Serves `router` until `stop` is done, then waits for what runs, at most as long as the configuration says.
pub async fn serve(listener: TcpListener, router: Router, app: Arc<App>, stop: impl Future<Output = ()>) {
    let permits = Arc::new(Semaphore::new(app.config.max_connections));
    let peers = Peers::new(app.config.peer_connections());
    let turned_away = Arc::new(Semaphore::new(MAX_TURNED_AWAY));
    let (stopping, told) = watch::channel(false);
    // Nothing is sent: it ends when every connection has dropped its sender.
    let (open, mut all_ended) = mpsc::channel::<Infallible>(1);
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stop => break,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely: they come back as connections end.
                tracing::warn!("a connection could not be accepted: {error}");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let permit = Arc::clone(&permits).try_acquire_owned().map_err(|_| TOO_MANY);
        let entered = permit.and_then(|permit| {
            let place = peers.enter(address.ip()).ok_or(TOO_MANY_OF_PEER)?;
            Ok((permit, place))
        });
        let place = match entered {
            Ok(place) => place,
            Err(why) => {
                app.metrics.rejected(super::metrics::Rejection::Connections);
                // Those beyond are closed without a word: they take file descriptors, too.
                if let Ok(permit) = Arc::clone(&turned_away).try_acquire_owned() {
                    tokio::spawn(async move {
                        turn_away(stream, why).await;
                        drop(permit);
                    });
                }
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let connection = converse(stream, router.clone(), app.config.io_timeout, told.clone());
        let guards = (place, app.metrics.connection(), open.clone());
        tokio::spawn(async move {
            connection.await;
            drop(guards);
        });
    }
    drop((listener, open));
    let connections = app.config.max_connections - permits.available_permits();
    tracing::info!(connections, "stopping");
    let _ = stopping.send(true);
    let time = app.config.shutdown_timeout;
    if tokio::time::timeout(time, all_ended.recv()).await.is_err() {
        tracing::warn!("after {} s some answers are still not complete; they are ended", time.as_secs());
    }
}

/// One connection, to its end: the client's, or the server's once its requests are answered.
async fn converse(stream: TcpStream, router: Router, time: Duration, mut stopping: watch::Receiver<bool>) {
    let stream = Arc::new(stream);
    let progress = Arc::new(Progress::default());
    let of_service = Arc::clone(&progress);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let mut router = router.clone();
        let progress = Arc::clone(&of_service);
        let counting = Counting::request(&progress);
        let unanswered = (request.version() > Version::HTTP_10).then(|| Counting::unanswered(&progress));
        async move {
            let response = router.call(request).await?;
            drop(unanswered);
            let media_type = response.headers().get(CONTENT_TYPE).map(|value| value.as_bytes());
            let asks = media_type.is_some_and(|value| value.starts_with(b"text/event-stream"));
            Ok::<_, Infallible>(response.map(|body| AnswerBody { body, asks, progress, _counting: counting }))
        }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(time).max_buf_size(64 << 10);
    // Who sends no more may still wait for an answer; `gone` sees who does not.
    builder.half_close(true);
    let io = TokioIo::new(Unstalled::new(&stream, &progress, time));
    let mut connection = std::pin::pin!(builder.serve_connection(io, service));
    let mut gone = std::pin::pin!(gone(&stream, &progress));
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = &mut gone => Ok(()),
        _ = async { stopping.wait_for(|stopping| *stopping).await.is_ok() } => {
            connection.as_mut().graceful_shutdown();
            let idle = async {
                // A request that has only begun is not waited for; an answer that is on its way is.
                if !progress.is_busy() {
                    sleep(GRACE).await;
                }
                if progress.is_busy() {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                ended = &mut connection => ended,
                () = &mut gone => Ok(()),
                () = idle => Ok(()),
            }
        }
    };
    // Clients that leave early are everyday business.
    if let Err(error) = ended {
        tracing::debug!("a connection ended: {error}");
    }
}

/// The body of an answer to a request in progress.
struct AnswerBody {
    body: axum::body::Body,
    /// It has events, between which a client may be asked whether it is still there; once.
    asks: bool,
    progress: Arc<Progress>,
    _counting: Counting,
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if frame.is_pending() && self.asks && self.progress.is_half_closed() {
            self.asks = false;
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(COMMENT)))));
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

async fn turn_away(mut stream: TcpStream, why: &str) {
    let error = ApiError::unavailable("too_many_connections", why);
    let (status, body) = (StatusCode::SERVICE_UNAVAILABLE, error.json());
    let response = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nretry-after: 5\r\n\
         connection: close\r\n\r\n{body}",
        body.len()
    );
    let _ = tokio::time::timeout(Duration::from_secs(1), async {
        stream.write_all(response.as_bytes()).await?;
        stream.shutdown().await?;
        // Closing before the request is read would reset the connection, and with it the answer.
        tokio::io::copy(&mut stream.take(1 << 20), &mut tokio::io::sink()).await
    })
    .await;
}
