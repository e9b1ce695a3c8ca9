//! Connections: a bounded number of them, none of which may dawdle.

use super::App;
use axum::Router;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Sleep, sleep};
use tower_service::Service;

/// Connections beyond the bound that are told so at once.
const MAX_TURNED_AWAY: usize = 32;
/// What is left to a connection without a request when the server stops: the end of an answer may still be on its way.
const GRACE: Duration = Duration::from_millis(300);
/// How long it may take until a client's leaving is seen where bytes stand before it that nobody reads.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// What a connection beyond the bound is told.
const TOO_MANY: &str = concat!(
    "{\"error\":{\"message\":\"this server has as many connections as it takes; try again\",",
    "\"type\":\"server_error\",\"param\":null,\"code\":\"too_many_connections\"}}"
);

/// Serves `router` until `stop` is done, then waits for what runs, at most as long as the configuration says.
pub async fn serve(listener: TcpListener, router: Router, app: Arc<App>, stop: impl Future<Output = ()>) {
    let room = Arc::new(Semaphore::new(app.config.max_connections));
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
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, most likely: they come back as connections end.
                tracing::warn!("a connection could not be accepted: {error}");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
            app.metrics.rejected(super::metrics::Rejection::Connections);
            // Those beyond are closed without a word: they take file descriptors, too.
            if let Ok(permit) = Arc::clone(&turned_away).try_acquire_owned() {
                tokio::spawn(async move {
                    turn_away(stream).await;
                    drop(permit);
                });
            }
            continue;
        };
        let _ = stream.set_nodelay(true);
        let connection = converse(stream, router.clone(), app.config.io_timeout, told.clone());
        let guards = (permit, app.metrics.connection(), open.clone());
        tokio::spawn(async move {
            connection.await;
            drop(guards);
        });
    }
    drop((listener, open));
    let connections = app.config.max_connections - room.available_permits();
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
    let in_progress = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&in_progress);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let mut router = router.clone();
        let guard = InProgress::new(&count);
        async move {
            let response = router.call(request).await?;
            Ok::<_, Infallible>(response.map(|body| Counted { body, _guard: guard }))
        }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(time).max_buf_size(64 << 10);
    let io = TokioIo::new(Unstalled { stream: Arc::clone(&stream), time, stalled: None });
    let mut connection = std::pin::pin!(builder.serve_connection(io, service));
    let mut gone = std::pin::pin!(gone(&stream));
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = &mut gone => Ok(()),
        _ = async { stopping.wait_for(|stopping| *stopping).await.is_ok() } => {
            connection.as_mut().graceful_shutdown();
            let idle = async {
                // A request that has only begun is not waited for; an answer that is on its way is.
                if in_progress.load(Ordering::Relaxed) == 0 {
                    sleep(GRACE).await;
                }
                if in_progress.load(Ordering::Relaxed) > 0 {
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

/// Done when the client has closed its side. hyper sees that only when it reads, which it does not while it holds bytes that
/// followed the request.
async fn gone(stream: &TcpStream) {
    while let Ok(ready) = stream.ready(Interest::READABLE).await {
        if ready.is_read_closed() {
            return;
        }
        // There is something to be read, and perhaps nobody reads it now.
        sleep(LOOK_AGAIN).await;
    }
}

/// Counts a request from its head to the end of its answer's body.
struct InProgress(Arc<AtomicUsize>);

impl InProgress {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The body of an answer to a request in progress.
struct Counted {
    body: axum::body::Body,
    _guard: InProgress,
}

impl Body for Counted {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

async fn turn_away(mut stream: TcpStream) {
    let response = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         retry-after: 5\r\nconnection: close\r\n\r\n{TOO_MANY}",
        TOO_MANY.len()
    );
    let _ = tokio::time::timeout(Duration::from_secs(1), async {
        stream.write_all(response.as_bytes()).await?;
        stream.shutdown().await?;
        // Closing before the request is read would reset the connection, and with it the answer.
        tokio::io::copy(&mut stream.take(1 << 20), &mut tokio::io::sink()).await
    })
    .await;
}

/// A stream whose peer must take something of what is written within a time.
struct Unstalled {
    stream: Arc<TcpStream>,
    time: Duration,
    /// Runs while a write waits.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Unstalled {
    /// Passes on what a write came to; one that has waited for too long fails.
    fn watch<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let time = self.time;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(time)));
        match stalled.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Unstalled {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(context))?;
            match self.stream.try_read(buffer.initialize_unfilled()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                read => return Poll::Ready(read.map(|len| buffer.advance(len))),
            }
        }
    }
}

impl Unstalled {
    /// Writes what goes out at once, or waits.
    fn poll_try(
        &mut self,
        context: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let written = loop {
            match self.stream.poll_write_ready(context) {
                Poll::Pending => break Poll::Pending,
                Poll::Ready(Err(error)) => break Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) => match write(&self.stream) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                    written => break Poll::Ready(written),
                },
            }
        };
        self.watch(context, written)
    }
}

impl AsyncWrite for Unstalled {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_try(context, |stream| stream.try_write(bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_try(context, |stream| stream.try_write_vectored(buffers))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Nothing is held back.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(socket2::SockRef::from(&*self.stream).shutdown(Shutdown::Write))
    }
}
