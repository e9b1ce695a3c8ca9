//! What the server costs: the same requests given to the engine directly and over HTTP, at several numbers of clients.
//!
//! ```text
//! cargo run --release --example serve_bench -- -m qwen2.5-0.5b-instruct-f16.gguf
//! ```
//!
//! Each client asks anew as soon as it has its answer. Prompts are random tokens, no two alike; draws are greedy and do not
//! end early. At each number of clients both ways are warmed up first and then take turns. Clients and server share the machine's
//! cores, so what the server costs includes what its clients do.

use clap::Parser;
use qernel::engine::{Engine, Event, Request};
use qernel::error::{Error, Result};
use qernel::load::{DeviceChoice, LoadedModel, RunnerOptions};
use qernel::sampler::{SamplingParams, philox4x32_10};
use qernel::server::{ServedModel, Server, ServerConfig};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Measure what the server costs beside the raw engine.
#[derive(Parser)]
struct Args {
    /// GGUF file of the model [default: the small haiku model that the program carries]
    #[arg(short, long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Where to compute: auto (a GPU if there is one), cuda, cuda:N or cpu
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    device: DeviceChoice,
    /// Clients that ask at once
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 64, 256])]
    clients: Vec<usize>,
    /// Answers to each client in a repetition
    #[arg(long, default_value_t = 2)]
    rounds: usize,
    /// Repetitions, after one that does not count
    #[arg(short, long, default_value_t = 5)]
    repetitions: usize,
    /// Tokens of a prompt
    #[arg(long, default_value_t = 512)]
    prompt_tokens: usize,
    /// Tokens of an answer
    #[arg(long, default_value_t = 128)]
    max_tokens: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What the repetitions of a run came to.
#[derive(serde::Serialize)]
struct Figures {
    /// Of each repetition.
    tokens_per_second: Vec<f64>,
    /// Milliseconds from a request to its first token: median and 99th percentile.
    first_token_ms: [f64; 2],
    /// Milliseconds from one token to the next.
    next_token_ms: [f64; 2],
}

/// Times of one answer's tokens.
struct Times {
    start: Instant,
    tokens: Vec<Instant>,
}

/// One repetition.
struct Run {
    seconds: f64,
    answers: Vec<Times>,
}

impl Figures {
    fn new(runs: &[Run]) -> Self {
        let ms = |from: Instant, to: Instant| (to - from).as_secs_f64() * 1e3;
        let answers = || runs.iter().flat_map(|run| &run.answers);
        let first = answers().map(|times| ms(times.start, times.tokens[0]));
        let next = answers().flat_map(|times| times.tokens.windows(2).map(|pair| ms(pair[0], pair[1])));
        let tokens = |run: &Run| run.answers.iter().map(|times| times.tokens.len()).sum::<usize>();
        Self {
            tokens_per_second: runs.iter().map(|run| tokens(run) as f64 / run.seconds).collect(),
            first_token_ms: percentiles(first.collect()),
            next_token_ms: percentiles(next.collect()),
        }
    }

    /// Tokens a second of the repetition in the middle, the slowest and the fastest.
    fn rate(&self) -> [f64; 3] {
        let mut rates = self.tokens_per_second.clone();
        rates.sort_unstable_by(f64::total_cmp);
        [rates.len() / 2, 0, rates.len() - 1].map(|i| rates[i])
    }
}

fn percentiles(mut values: Vec<f64>) -> [f64; 2] {
    values.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| values.get((share * values.len() as f64) as usize).or(values.last());
    [0.5, 0.99].map(|share| at(share).copied().unwrap_or(0.0))
}

/// The prompt of request `i`.
fn prompt(i: usize, len: usize, vocab_size: usize) -> Vec<u32> {
    let word = |position| philox4x32_10([i as u32, position as u32, 0, 0], [7, 7])[0];
    (0..len).map(|position| word(position) % vocab_size as u32).collect()
}

fn greedy() -> SamplingParams {
    SamplingParams { temperature: 0.0, ..SamplingParams::default() }
}

/// The requests from `first` on, directly to the engine.
fn raw(engine: &mut Engine, args: &Args, clients: usize, first: usize) -> Result<Run> {
    let vocab_size = engine.runner().vocab_size();
    let end = first + clients * args.rounds;
    let mut next = first;
    let mut running = HashMap::new();
    let mut answers = Vec::new();
    let start = Instant::now();
    while first + answers.len() < end {
        while running.len() < clients && next < end {
            let request = Request {
                sampling: greedy(),
                max_tokens: Some(args.max_tokens),
                ignore_eos: true,
                ..Request::new(prompt(next, args.prompt_tokens, vocab_size))
            };
            let times = Times { start: Instant::now(), tokens: Vec::new() };
            running.insert(engine.submit(request)?, times);
            next += 1;
        }
        let events = engine.step()?;
        let now = Instant::now();
        for event in events {
            match event {
                Event::Token { id, .. } => {
                    running.entry(id).and_modify(|times| times.tokens.push(now));
                }
                Event::Prompt { .. } => {}
                Event::Finished { id, .. } => answers.extend(running.remove(&id)),
            }
        }
    }
    Ok(Run { seconds: start.elapsed().as_secs_f64(), answers })
}

/// One request over HTTP.
fn ask(address: SocketAddr, ids: &[u32], max_tokens: usize) -> std::io::Result<Times> {
    let body = serde_json::json!({
        "ids": ids, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": true, "stream": true,
    })
    .to_string();
    let head = format!(
        "POST /v1/generate HTTP/1.1\r\nhost: bench\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    let start = Instant::now();
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.write_all((head + &body).as_bytes())?;
    let mut tokens = Vec::with_capacity(max_tokens);
    for line in BufReader::new(stream).lines() {
        let line = line?;
        if line == "event: token" {
            tokens.push(Instant::now());
        } else if line == "event: error" {
            return Err(std::io::Error::other("the server ended an answer with an error"));
        }
    }
    if tokens.len() == max_tokens {
        Ok(Times { start, tokens })
    } else {
        Err(std::io::Error::other(format!("{} tokens came, not {max_tokens}", tokens.len())))
    }
}

/// The requests from `first` on, over HTTP.
fn served(address: SocketAddr, args: &Args, vocab_size: usize, clients: usize, first: usize) -> Run {
    let next = AtomicUsize::new(first);
    let client = || {
        let mut done = Vec::new();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= first + clients * args.rounds {
                return done;
            }
            match ask(address, &prompt(i, args.prompt_tokens, vocab_size), args.max_tokens) {
                Ok(times) => done.push(times),
                Err(error) => panic!("request {i}: {error}"),
            }
        }
    };
    let start = Instant::now();
    let answers = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..clients).map(|_| scope.spawn(client)).collect();
        clients.into_iter().flat_map(|client| client.join().expect("no request fails")).collect()
    });
    Run { seconds: start.elapsed().as_secs_f64(), answers }
}

/// Both ways at every number of clients, in turns.
fn measure(args: &Args) -> Result<Vec<[Figures; 2]>> {
    let most = args.clients.iter().copied().max().unwrap_or(1);
    let (path, device) = (args.model.clone(), args.device);
    let open = move || -> Result<Engine> {
        let options = RunnerOptions { device, ..RunnerOptions::for_sequences(most) };
        LoadedModel::open(path.as_deref(), &options, &mut |_, _| ())?.into_engine()
    };
    let mut engine = open()?;
    let vocab_size = engine.runner().vocab_size();
    let server = Server::bind(ServerConfig { port: 0, max_num_sequences: most, ..ServerConfig::default() })?;
    let address = server.local_addr()?;
    let serve = move || {
        Ok(ServedModel {
            engine: open()?,
            template: Err(Error::Template("none".into())),
            name: "bench".into(),
            watch: Default::default(),
            fingerprint: None,
        })
    };
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    std::thread::scope(|scope| {
        let running = scope.spawn(move || {
            server.run(serve, async {
                let _ = stopped.await;
            })
        });
        while !running.is_finished() && !is_ready(address) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut first = 0;
        let mut all = Vec::new();
        for &clients in args.clients.iter().take_while(|_| !running.is_finished()) {
            let mut runs = [Vec::new(), Vec::new()];
            for repetition in 0..=args.repetitions {
                let pair = [
                    raw(&mut engine, args, clients, first)?,
                    served(address, args, vocab_size, clients, first),
                ];
                first += clients * args.rounds;
                if repetition > 0 {
                    runs.iter_mut().zip(pair).for_each(|(runs, run)| runs.push(run));
                }
            }
            all.push(runs.map(|runs| Figures::new(&runs)));
        }
        drop(stop);
        running.join().expect("the server does not panic").map(|()| all)
    })
}

fn is_ready(address: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(address) else { return false };
    let request = b"GET /health HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n";
    let mut line = String::new();
    stream.write_all(request).is_ok()
        && BufReader::new(stream).read_line(&mut line).is_ok()
        && line.contains(" 200 ")
}

fn main() -> Result<()> {
    let mut args = Args::parse();
    args.repetitions = args.repetitions.max(1);
    let all = measure(&args)?;
    if args.json {
        let rows = args.clients.iter().zip(&all);
        let rows: Vec<_> = rows
            .map(|(clients, [raw, served])| serde_json::json!({"clients": clients, "raw": raw, "served": served}))
            .collect();
        println!("{}", serde_json::json!(rows));
        return Ok(());
    }
    println!(
        "| clients | | tokens/s (slowest to fastest) | cost | first token, ms: p50 | p99 | next token, ms: p50 | p99 |"
    );
    println!("| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |");
    for (clients, [raw, served]) in args.clients.iter().zip(&all) {
        let cost = 100.0 * (1.0 - served.rate()[0] / raw.rate()[0]);
        for (name, figures, cost) in [("raw", raw, String::new()), ("served", served, format!("{cost:.1} %"))]
        {
            let [rate, slowest, fastest] = figures.rate();
            let [[first, first_p99], [next, next_p99]] = [figures.first_token_ms, figures.next_token_ms];
            println!(
                "| {clients} | {name} | {rate:.0} ({slowest:.0} to {fastest:.0}) | {cost} | {first:.2} | {first_p99:.2} | \
                 {next:.2} | {next_p99:.2} |"
            );
        }
    }
    Ok(())
}
