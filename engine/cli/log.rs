//! The log on standard error. A command writes it where it stands; the server's goes over a bounded queue, since no answer may wait for
//! whoever reads the log, or fail because nobody does or the disk is full.

use super::output::one_line;
use clap::ValueEnum;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};
use tracing::field::Field;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::fmt::{FormatFields, MakeWriter};

/// Lines that may wait to be written, and their bytes.
const MOST_LINES: usize = 8192;
const MOST_BYTES: usize = 4 << 20;

/// What the end of the program gives the lines that still wait.
const PATIENCE: Duration = Duration::from_secs(1);

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// Starts the log of a command; `verbose` counts its `-v`.
pub fn start(verbose: u8, format: LogFormat) {
    let default = ["warn", "info", "debug"][usize::from(verbose.min(2))];
    let log = tracing_subscriber::fmt().with_env_filter(filter(default)).log_internal_errors(false);
    let log = log.with_writer(io::stderr);
    match format {
        LogFormat::Json => log.json().flatten_event(true).with_span_list(false).init(),
        LogFormat::Text => {
            log.with_ansi(io::stderr().is_terminal()).without_time().fmt_fields(fields()).init();
        }
    }
}

/// Starts the log of a server. Panics are lines of it too.
pub fn start_queued(verbose: u8, format: LogFormat) -> Queue {
    let default = if verbose > 1 { "debug" } else { "info" };
    let queue = Queue::new(io::stderr(), format);
    let log = tracing_subscriber::fmt().with_env_filter(filter(default)).log_internal_errors(false);
    let log = log.with_writer(queue.clone());
    match format {
        LogFormat::Json => log.json().flatten_event(true).with_span_list(false).init(),
        LogFormat::Text => log.with_ansi(io::stderr().is_terminal()).fmt_fields(fields()).init(),
    }
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
    queue
}

fn filter(default: &str) -> EnvFilter {
    EnvFilter::try_from_default_env().unwrap_or_else(|_| default.to_owned().into())
}

/// Fields of a line of text: what came out of a file or from a client stays on its line and commands no terminal.
fn fields() -> impl for<'w> FormatFields<'w> + 'static {
    let field = |out: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug| {
        let value = one_line(&format!("{value:?}"));
        match field.name() {
            "message" => out.write_str(&value),
            name => write!(out, "{name}={value}"),
        }
    };
    debug_fn(field).delimited(" ")
}

/// Takes lines without waiting, and writes them on a thread of its own. What comes while it is full is dropped, as is what cannot be
/// written; how many lines that were stands in the log as soon as one can be written again.
#[derive(Clone)]
pub struct Queue {
    lines: SyncSender<Vec<u8>>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    waiting_lines: AtomicUsize,
    waiting_bytes: AtomicUsize,
    lost: AtomicU64,
}

impl Queue {
    fn new(out: impl Write + Send + 'static, format: LogFormat) -> Self {
        let (lines, incoming) = sync_channel(MOST_LINES);
        let counts = Arc::new(Counts::default());
        let of_thread = Arc::clone(&counts);
        let thread = std::thread::Builder::new().name("log".into());
        // Without the thread the queue has no reader, and every line is lost.
        let _ = thread.spawn(move || write_lines(out, &incoming, &of_thread, format));
        Self { lines, counts }
    }

    /// Takes a line, or counts it as lost.
    pub fn line(&self, line: Vec<u8>) {
        let counts = &self.counts;
        let bytes = line.len();
        counts.waiting_lines.fetch_add(1, Ordering::AcqRel);
        let before = counts.waiting_bytes.fetch_add(bytes, Ordering::AcqRel);
        if before + bytes > MOST_BYTES || self.lines.try_send(line).is_err() {
            counts.lost.fetch_add(1, Ordering::AcqRel);
            counts.done(bytes);
        }
    }

    /// Waits until all lines are written, a second at most: standard error may be a pipe that nobody reads.
    pub fn flush(&self) {
        let start = Instant::now();
        while self.counts.waiting_lines.load(Ordering::Acquire) > 0 && start.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Counts {
    /// A line waits no more.
    fn done(&self, bytes: usize) {
        self.waiting_bytes.fetch_sub(bytes, Ordering::AcqRel);
        self.waiting_lines.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The thread's work, until no more lines can come.
fn write_lines(mut out: impl Write, incoming: &Receiver<Vec<u8>>, counts: &Counts, format: LogFormat) {
    while let Ok(line) = incoming.recv() {
        let lost = counts.lost.swap(0, Ordering::AcqRel);
        let note = if lost > 0 { lines_lost(lost, format) } else { String::new() };
        let told = note.is_empty() || out.write_all(note.as_bytes()).is_ok();
        let written = told && out.write_all(&line).and_then(|()| out.flush()).is_ok();
        counts.lost.fetch_add(if told { 0 } else { lost } + u64::from(!written), Ordering::AcqRel);
        counts.done(line.len());
    }
}

/// The line that says how many others there are not.
fn lines_lost(count: u64, format: LogFormat) -> String {
    const WHY: &str = "log lines were lost: they came faster than they could be written, or could not be";
    let timestamp = jiff::Timestamp::now();
    match format {
        LogFormat::Text => format!("{timestamp:.6}  WARN qernel: {count} {WHY}\n"),
        LogFormat::Json => {
            let line = serde_json::json!({
                "timestamp": format!("{timestamp:.6}"), "level": "WARN", "message": WHY, "lost": count, "target": "qernel",
            });
            format!("{line}\n")
        }
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { queue: self, bytes: Vec::new() }
    }
}

/// One line of the log, handed over on drop.
pub struct Line<'a> {
    queue: &'a Queue,
    bytes: Vec<u8>,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        self.queue.line(std::mem::take(&mut self.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Condvar, Mutex};

    /// What a reader of the log does.
    #[derive(Default)]
    struct Reader {
        seen: Vec<u8>,
        stands_still: bool,
        fails: bool,
        writes: usize,
    }

    #[derive(Clone, Default)]
    struct Out(Arc<(Mutex<Reader>, Condvar)>);

    impl Out {
        fn set(&self, change: impl FnOnce(&mut Reader)) {
            change(&mut self.0.0.lock().unwrap());
            self.0.1.notify_all();
        }

        fn seen(&self) -> String {
            String::from_utf8(self.0.0.lock().unwrap().seen.clone()).unwrap()
        }
    }

    impl Write for Out {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let (reader, changed) = &*self.0;
            let mut reader =
                changed.wait_while(reader.lock().unwrap(), |reader| reader.stands_still).unwrap();
            reader.writes += 1;
            if reader.fails {
                return Err(io::ErrorKind::StorageFull.into());
            }
            reader.seen.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn numbered(i: usize) -> Vec<u8> {
        format!("line {i}\n").into_bytes()
    }

    /// How many lines the log says were lost.
    fn lost(log: &str) -> usize {
        let notes = log.lines().filter_map(|line| line.split_once(" log lines were lost"));
        notes.map(|(before, _)| before.rsplit(' ').next().unwrap().parse::<usize>().unwrap()).sum()
    }

    #[test]
    fn a_reader_that_stands_still_costs_lines_and_no_time() {
        let out = Out::default();
        let queue = Queue::new(out.clone(), LogFormat::Text);
        out.set(|reader| reader.stands_still = true);
        let start = Instant::now();
        let all = 3 * MOST_LINES;
        (0..all).for_each(|i| queue.line(numbered(i)));
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        out.set(|reader| reader.stands_still = false);
        queue.flush();
        queue.line(b"later\n".to_vec());
        queue.flush();
        let log = out.seen();
        let written = log.lines().filter(|line| line.starts_with("line ")).count();
        assert!(written >= MOST_LINES && written < all, "{written}");
        assert_eq!(lost(&log), all - written);
        assert!(log.contains("line 0\n") && log.ends_with("later\n"));
    }

    #[test]
    fn long_lines_are_bounded_by_their_bytes() {
        let out = Out::default();
        let queue = Queue::new(out.clone(), LogFormat::Text);
        out.set(|reader| reader.stands_still = true);
        (0..100).for_each(|_| queue.line(vec![b'x'; MOST_BYTES / 10]));
        assert!(queue.counts.waiting_bytes.load(Ordering::Acquire) <= MOST_BYTES);
        out.set(|reader| reader.stands_still = false);
        queue.flush();
        assert_eq!(queue.counts.waiting_bytes.load(Ordering::Acquire), 0);
        // A thread that began late has told of some of them in an earlier note.
        queue.line(b"later\n".to_vec());
        queue.flush();
        assert!(lost(&out.seen()) >= 89);
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted_until_they_can() {
        let out = Out::default();
        let queue = Queue::new(out.clone(), LogFormat::Json);
        out.set(|reader| reader.fails = true);
        (0..5).for_each(|i| queue.line(numbered(i)));
        queue.flush();
        out.set(|reader| reader.fails = false);
        queue.line(b"{\"message\":\"again\"}\n".to_vec());
        queue.flush();
        let log = out.seen();
        let lines: Vec<serde_json::Value> =
            log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((lines.len(), &lines[0]["lost"], &lines[1]["message"]), (2, &5.into(), &"again".into()));
    }

    #[test]
    fn the_end_does_not_wait_for_ever() {
        let out = Out::default();
        let queue = Queue::new(out.clone(), LogFormat::Text);
        out.set(|reader| reader.stands_still = true);
        queue.line(numbered(0));
        let start = Instant::now();
        queue.flush();
        assert!(start.elapsed() >= PATIENCE && start.elapsed() < 5 * PATIENCE, "{:?}", start.elapsed());
        out.set(|reader| reader.stands_still = false);
    }
}
