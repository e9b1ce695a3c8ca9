//! A connection's bytes: how far its requests and answers are, whether its client takes them, whether it is still there.

use std::future::Future;
use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

/// How long it may take until a client's leaving is seen where bytes stand before it that nobody reads.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// What may stand before any answer; a client that is there passes over it.
const INTERIM: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// How far a connection is.
#[derive(Default)]
pub struct Progress {
    /// Requests from their heads to the ends of their answers' bodies.
    requests: AtomicUsize,
    /// Those whose answers have not begun, and whose clients know of interim answers.
    unanswered: AtomicUsize,
    /// Something is handed to the socket that it has not taken yet.
    is_writing: AtomicBool,
    /// The client has closed its sending half.
    is_half_closed: AtomicBool,
}

/// A count that holds for as long as it lives.
pub struct Counting {
    progress: Arc<Progress>,
    count: fn(&Progress) -> &AtomicUsize,
}

impl Counting {
    /// Counts a request until the end of its answer's body.
    pub fn request(progress: &Arc<Progress>) -> Self {
        Self::new(progress, |progress| &progress.requests)
    }

    /// Counts a request until its answer begins.
    pub fn unanswered(progress: &Arc<Progress>) -> Self {
        Self::new(progress, |progress| &progress.unanswered)
    }

    fn new(progress: &Arc<Progress>, count: fn(&Progress) -> &AtomicUsize) -> Self {
        count(progress).fetch_add(1, Ordering::Relaxed);
        Self { progress: Arc::clone(progress), count }
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        (self.count)(&self.progress).fetch_sub(1, Ordering::Relaxed);
    }
}

impl Progress {
    /// Whether a request is being answered.
    pub fn is_busy(&self) -> bool {
        self.requests.load(Ordering::Relaxed) > 0
    }

    /// Whether the client has closed its sending half.
    pub fn is_half_closed(&self) -> bool {
        self.is_half_closed.load(Ordering::Relaxed)
    }
}

/// Done when the client is gone. One that has only closed its sending half waits for its answer; to TCP both look the same until
/// something is sent, which a client that is gone rejects: an answer that has not begun is preceded by an interim one. (One that has
/// begun sends more by itself.) hyper sees an end only when it reads, which it does not while it holds bytes that followed the request.
pub async fn gone(stream: &TcpStream, progress: &Progress) {
    while let Ok(ready) = stream.ready(Interest::READABLE).await {
        if ready.is_read_closed() {
            break;
        }
        // There is something to be read, and perhaps nobody reads it now.
        sleep(LOOK_AGAIN).await;
    }
    progress.is_half_closed.store(true, Ordering::Relaxed);
    let mut has_asked = false;
    while let Ok(ready) = stream.ready(Interest::READABLE | Interest::WRITABLE).await {
        if ready.is_write_closed() {
            return;
        }
        let is_unanswered = progress.unanswered.load(Ordering::Relaxed) > 0;
        if is_unanswered && !has_asked && !progress.is_writing.load(Ordering::Relaxed) {
            match stream.try_write(INTERIM) {
                Ok(len) if len == INTERIM.len() => has_asked = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                // Gone, or not able to take even that.
                _ => return,
            }
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// A stream whose peer must take something of what is written within a time.
pub struct Unstalled {
    stream: Arc<TcpStream>,
    progress: Arc<Progress>,
    time: Duration,
    /// Runs while a write waits.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Unstalled {
    pub fn new(stream: &Arc<TcpStream>, progress: &Arc<Progress>, time: Duration) -> Self {
        Self { stream: Arc::clone(stream), progress: Arc::clone(progress), time, stalled: None }
    }

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
        self.progress.is_writing.store(true, Ordering::Relaxed);
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
        // Nothing is held back here, and hyper flushes when it has nothing left to be written.
        self.progress.is_writing.store(false, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(socket2::SockRef::from(&*self.stream).shutdown(Shutdown::Write))
    }
}
