//! What the server costs: the same requests given to the engine directly and over HTTP, at several numbers of clients.
//!
//! ```text
//! cargo run --release --example serve_bench -- -m qwen2.5-0.5b-instruct-f16.gguf
//! ```
//!
//! Each client asks anew as soon as it has its answer. Prompts are random tokens, no two alike; draws are greedy and do not
//! end early.

use clap::Parser;
use qernel::cli::options::ModelArgs;
use qernel::error::Result;
use qernel::generate::{Event, Request};
use qernel::sampler::{SamplingParams, philox4x32_10};
use qernel::server::{LoadedModel, Server, ServerConfig};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Measure what the server costs beside the raw engine.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Clients that ask at once
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 64, 256])]
    clients: Vec<usize>,
    /// Answers to each client
    #[arg(long, default_value_t = 3)]
    rounds: usize,
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

/// What a run took.
#[derive(Default, serde::Serialize)]
struct Figures {
    seconds: f64,
    tokens_per_second: f64,
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

fn figures(start: Instant, times: &[Times]) -> Figures {
    let seconds = start.elapsed().as_secs_f64();
    let ms = |from: Instant, to: Instant| (to - from).as_secs_f64() * 1e3;
    let first = times.iter().map(|times| ms(times.start, times.tokens[0])).collect();
    let next = times.iter().flat_map(|times| times.tokens.windows(2).map(|pair| ms(pair[0], pair[1])));
    let tokens: usize = times.iter().map(|times| times.tokens.len()).sum();
    Figures {
        seconds,
        tokens_per_second: tokens as f64 / seconds,
        first_token_ms: percentiles(first),
        next_token_ms: percentiles(next.collect()),
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

/// Every request directly to the engine; also the size of the vocabulary.
fn raw(args: &Args) -> Result<(usize, Vec<Figures>)> {
    let most = args.clients.iter().copied().max().unwrap_or(1);
    let mut engine = args.model.open(most)?.into_engine()?;
    let vocab_size = engine.runner().vocab_size();
    let mut all = Vec::new();
    for &clients in &args.clients {
        let total = clients * args.rounds;
        let mut next = 0;
        let mut running = HashMap::new();
        let mut done = Vec::new();
        let start = Instant::now();
        while done.len() < total {
            while running.len() < clients && next < total {
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
                    Event::Finished { id, .. } => done.extend(running.remove(&id)),
                }
            }
        }
        all.push(figures(start, &done));
    }
    Ok((vocab_size, all))
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

/// Every request over HTTP.
fn served(args: &Args, vocab_size: usize) -> Result<Vec<Figures>> {
    let most = args.clients.iter().copied().max().unwrap_or(1);
    let config = ServerConfig { port: 0, max_running: most, ..ServerConfig::default() };
    let server = Server::bind(config)?;
    let address = server.local_addr()?;
    let model = args.model.clone();
    let open = move || {
        let engine = model.open(most)?.into_engine()?;
        Ok(LoadedModel { engine, template: None, name: "bench".into() })
    };
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    std::thread::scope(|scope| {
        let running = scope.spawn(move || {
            server.run(open, async {
                let _ = stopped.await;
            })
        });
        while !running.is_finished() && !is_ready(address) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut all = Vec::new();
        for &clients in &args.clients {
            if running.is_finished() {
                break;
            }
            let next = AtomicUsize::new(0);
            let start = Instant::now();
            let times: Vec<Times> = std::thread::scope(|scope| {
                let client = || {
                    let mut done = Vec::new();
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        if i >= clients * args.rounds {
                            return done;
                        }
                        match ask(address, &prompt(i, args.prompt_tokens, vocab_size), args.max_tokens) {
                            Ok(times) => done.push(times),
                            Err(error) => panic!("request {i}: {error}"),
                        }
                    }
                };
                let clients: Vec<_> = (0..clients).map(|_| scope.spawn(client)).collect();
                clients.into_iter().flat_map(|client| client.join().expect("no request fails")).collect()
            });
            all.push(figures(start, &times));
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
    let args = Args::parse();
    let (vocab_size, raw) = raw(&args)?;
    let served = served(&args, vocab_size)?;
    if args.json {
        println!("{}", serde_json::json!({"clients": args.clients, "raw": raw, "served": served}));
        return Ok(());
    }
    println!(
        "clients  tokens/s raw  served   cost  first token ms raw  served (p50, p99)  next token ms raw  served"
    );
    for ((clients, raw), served) in args.clients.iter().zip(&raw).zip(&served) {
        let cost = 100.0 * (1.0 - served.tokens_per_second / raw.tokens_per_second);
        let pair = |[p50, p99]: [f64; 2]| format!("{p50:8.2} {p99:8.2}");
        println!(
            "{clients:7}  {:12.0} {:7.0} {cost:5.1}%  {}  {}  {}  {}",
            raw.tokens_per_second,
            served.tokens_per_second,
            pair(raw.first_token_ms),
            pair(served.first_token_ms),
            pair(raw.next_token_ms),
            pair(served.next_token_ms),
        );
    }
    Ok(())
}
