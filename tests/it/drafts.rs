//! Drafts by a model's own block (MTP): answers are those without, whatever is drafted; a block that agrees is believed nearly always; and what
//! the block computes is what its formulas say.

use qernel::batch::{Batch, BatchLimits, LogitRows, SequenceRows};
use qernel::config::{Config, DraftTensors};
use qernel::cpu::CpuOps;
use qernel::dtype::Dtype;
use qernel::engine::{Engine, EngineConfig, Event, Request, Timings};
use qernel::formats::MatrixFormat;
use qernel::gguf::Gguf;
use qernel::kv_layout::pages_for;
use qernel::load::kv_layout;
use qernel::model::draft::DraftFrom;
use qernel::model::{ModelRunner, Runner};
use qernel::ops::OpsConfig;
use qernel::sampler::{SamplingParams, SamplingRow};
use qernel::testing::{Random, TinyDraft, TinyModel};
use qernel::weights::Weights;
use std::collections::BTreeMap;

const MAX_MODEL_LEN: usize = 200;

pub fn model(architecture: &'static str, tensors: DraftTensors) -> TinyModel {
    TinyModel {
        architecture,
        format: MatrixFormat::F32,
        hidden_size: 64,
        intermediate_size: 96,
        num_hidden_layers: 4,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 32,
        draft: Some(TinyDraft { tensors, agrees: false }),
        ..TinyModel::default()
    }
}

/// A runner of the model that drafts so many tokens at a time; with 0 the block is skipped.
fn runner(model: &TinyModel, drafts: usize, max_num_sequences: usize) -> Box<dyn Runner> {
    let gguf = model.gguf();
    let config = Config::from_gguf(&gguf).unwrap();
    let config = if drafts > 0 { config.with_draft(&gguf).unwrap() } else { config };
    runner_of(&gguf, &config, [drafts, max_num_sequences, 24, 4])
}

/// A runner on the CPU with room for so many drafts at a time, sequences, pages and copies of states.
pub fn runner_of(
    gguf: &Gguf,
    config: &Config,
    [drafts, max_num_sequences, pages, checkpoints]: [usize; 4],
) -> Box<dyn Runner> {
    let weights = Weights::from_gguf(gguf, config).unwrap();
    let limits = BatchLimits {
        max_num_tokens: 40,
        max_num_sequences,
        max_num_logits: max_num_sequences * (1 + drafts),
        max_blocks: pages_for(MAX_MODEL_LEN),
    };
    let ops_config = OpsConfig::new(config, MAX_MODEL_LEN, limits);
    let layout = kv_layout(config, Dtype::F32, pages).unwrap();
    let ops = CpuOps::new(&ops_config).unwrap();
    let runner = ModelRunner::new(ops, &weights, config, &ops_config, layout, &mut |_, _| ()).unwrap();
    Box::new(runner.with_drafts(drafts).with_checkpoints(checkpoints).unwrap())
}

fn engine(model: &TinyModel, drafts: usize, max_num_sequences: usize) -> Engine {
    Engine::new(runner(model, drafts, max_num_sequences), None, EngineConfig::default()).unwrap()
}

/// Fifty prompts, every second one drawn with a temperature, every seventh with a penalty, which drafts nothing. Some begin as others do.
fn requests() -> Vec<Request> {
    let mut random = Random::new(11, "prompts");
    let mut token = || (random.next_u64() % TinyModel::VOCAB_SIZE as u64) as u32;
    let beginning: Vec<u32> = (0..70).map(|_| token()).collect();
    let request = |i: usize| {
        let mut prompt = beginning[..if i.is_multiple_of(5) { 70 } else { 0 }].to_vec();
        prompt.extend((0..1 + 7 * i % 31).map(|_| token()));
        let sampling = SamplingParams {
            temperature: if i.is_multiple_of(2) { 0.0 } else { 0.8 },
            repeat_penalty: if i.is_multiple_of(7) { 1.3 } else { 1.0 },
            seed: i as u64,
            ..SamplingParams::default()
        };
        Request { sampling, max_tokens: Some(1 + 5 * i % 47), text: false, ..Request::new(prompt) }
    };
    (0..50).map(request).collect()
}

pub fn sum(timings: &[Timings], of: fn(&Timings) -> usize) -> usize {
    timings.iter().map(of).sum()
}

/// The tokens of all answers, and what they cost.
pub fn answers(engine: &mut Engine, requests: &[Request]) -> (Vec<Vec<u32>>, Vec<Timings>) {
    let (mut tokens, mut ends) = (BTreeMap::<_, Vec<u32>>::new(), BTreeMap::new());
    for request in requests {
        engine.submit(request.clone()).unwrap();
    }
    while engine.has_work() {
        for event in engine.step().unwrap() {
            match event {
                Event::Prompt { .. } => {}
                Event::Token { id, token, .. } => tokens.entry(id).or_default().push(token),
                Event::Finished { id, timings, .. } => {
                    ends.insert(id, timings);
                }
            }
        }
    }
    assert_eq!(engine.pool().num_used(), 0);
    (tokens.into_values().collect(), ends.into_values().collect())
}

#[test]
fn answers_are_those_without_drafts() {
    let all = DraftTensors { norm: true, head: true, embedding: true };
    same_answers(&model("qwen35", DraftTensors::default()), &requests(), &[(3, 1), (2, 5), (7, 3)]);
    same_answers(&model("qwen35moe", all), &requests()[..10], &[(3, 1), (2, 4)]);
    same_answers(
        &model("qwen3next", DraftTensors { embedding: false, ..all }),
        &requests()[..10],
        &[(3, 1), (2, 4)],
    );
}

/// With so many drafts at a time and so many sequences at once.
fn same_answers(model: &TinyModel, requests: &[Request], ways: &[(usize, usize)]) {
    let (expected, timings) = answers(&mut engine(model, 0, 1), requests);
    assert!(timings.iter().all(|timings| timings.draft_tokens == 0));
    for &(drafts, max_num_sequences) in ways {
        let (found, timings) = answers(&mut engine(model, drafts, max_num_sequences), requests);
        assert!(found == expected, "{} with {drafts} drafts", model.architecture);
        let drafted = sum(&timings, |of| of.draft_tokens);
        assert!(drafted > 50, "{drafted}");
        assert!(timings.iter().step_by(7).all(|timings| timings.draft_tokens == 0), "{timings:?}");
    }
}

#[test]
fn a_block_that_agrees_is_believed() {
    let tiny = model("qwen35", DraftTensors::default());
    let draft = Some(TinyDraft { agrees: true, ..TinyDraft::default() });
    let model = TinyModel { draft, tie_word_embeddings: false, ..tiny };
    let requests = requests();
    let (expected, _) = answers(&mut engine(&model, 0, 4), &requests);
    let mut engine = engine(&model, 3, 4);
    let (found, timings) = answers(&mut engine, &requests);
    assert!(found == expected);
    let drafted = sum(&timings, |of| of.draft_tokens);
    let accepted = sum(&timings, |of| of.accepted_draft_tokens);
    // Those that are drawn with a temperature are drafted with the same numbers: they agree too.
    assert!(100 * accepted >= 99 * drafted && drafted > 500, "{accepted} of {drafted}");
    let made = sum(&timings, |of| of.decode_tokens);
    assert!(2 * accepted > made, "{accepted} of {made} tokens were drafted");
}

#[test]
fn what_has_no_block_is_refused() {
    let model = TinyModel { draft: None, ..model("qwen35", DraftTensors::default()) };
    let gguf = model.gguf();
    let error = Config::from_gguf(&gguf).unwrap().with_draft(&gguf).unwrap_err().to_string();
    assert!(error.contains("no `qwen35.nextn_predict_layers`"), "{error}");
    let batch =
        Batch::new(&[SequenceRows { tokens: &[1], position: 0, pages: &[0], logits: LogitRows::Last }]);
    let row = SamplingRow::new(SamplingParams::default(), 2);
    let error = runner(&model, 0, 1).draft(&batch, &[row], DraftFrom::Step).unwrap_err().to_string();
    assert!(error.contains("made without a block that drafts"), "{error}");
}

/// The rows of an f32 matrix or vector of the file.
fn values(gguf: &Gguf, name: &str) -> Vec<f64> {
    let tensor = gguf.tensor(name).unwrap_or_else(|| panic!("no {name}"));
    tensor.data().unwrap().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes).into()).collect()
}

fn rms_norm(x: &[f64], weight: &[f64]) -> Vec<f64> {
    let square = x.iter().map(|value| value * value).sum::<f64>() / x.len() as f64;
    x.iter().zip(weight).map(|(value, weight)| value / (square + 1e-6).sqrt() * weight).collect()
}

fn product(gguf: &Gguf, name: &str, x: &[f64]) -> Vec<f64> {
    let dot = |row: &[f64]| row.iter().zip(x).map(|(a, b)| a * b).sum();
    values(gguf, name).chunks_exact(x.len()).map(dot).collect()
}

fn add(x: &mut [f64], by: &[f64]) {
    x.iter_mut().zip(by).for_each(|(x, by)| *x += by);
}

/// Of a head, its first quarter rotated as at `position`.
fn rotated(mut head: Vec<f64>, position: usize) -> Vec<f64> {
    let half = head.len() / 8;
    for j in 0..half {
        let angle = position as f64 * 1e6_f64.powf(-(j as f64) / half as f64);
        let (a, b) = (head[j], head[j + half]);
        (head[j], head[j + half]) = (a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos());
    }
    head
}

/// The block's layer in f64, from what goes in to what comes out of it.
fn layer(gguf: &Gguf, rows: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let name = |name: &str| format!("blk.4.{name}.weight");
    let vector = |of: &str| values(gguf, &name(of));
    let sigmoid = |value: f64| 1.0 / (1.0 + (-value).exp());
    let (mut keys, mut heads): (Vec<Vec<f64>>, Vec<Vec<f64>>) = Default::default();
    let row = |(position, x): (usize, &Vec<f64>)| {
        let normed = rms_norm(x, &vector("attn_norm"));
        let k = rms_norm(&product(gguf, &name("attn_k"), &normed), &vector("attn_k_norm"));
        keys.push(rotated(k, position));
        heads.push(product(gguf, &name("attn_v"), &normed));
        let mut attended = Vec::new();
        for q_and_gate in product(gguf, &name("attn_q"), &normed).chunks_exact(64) {
            let (q, gate) = q_and_gate.split_at(32);
            let q = rotated(rms_norm(q, &vector("attn_q_norm")), position);
            let score = |k: &Vec<f64>| q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() / 32f64.sqrt();
            let weights: Vec<f64> = keys.iter().map(|k| score(k).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for (i, gate) in gate.iter().enumerate() {
                let mean = weights.iter().zip(&heads).map(|(weight, v)| weight / sum * v[i]).sum::<f64>();
                attended.push(mean * sigmoid(*gate));
            }
        }
        let mut x = x.clone();
        add(&mut x, &product(gguf, &name("attn_output"), &attended));
        let normed = rms_norm(&x, &vector("post_attention_norm"));
        let [gate, up] = ["ffn_gate", "ffn_up"].map(|of| product(gguf, &name(of), &normed));
        let inner: Vec<f64> = gate.iter().zip(up).map(|(gate, up)| gate * sigmoid(*gate) * up).collect();
        add(&mut x, &product(gguf, &name("ffn_down"), &inner));
        x
    };
    rows.iter().enumerate().map(row).collect()
}

/// What the block drafts behind each row of a prompt, and behind its own draft, is what its formulas in f64 say is likeliest.
#[test]
fn the_block_computes_its_formulas() {
    let model = model("qwen35", DraftTensors { norm: true, head: true, embedding: false });
    let gguf = model.gguf();
    let mut runner = runner(&model, 7, 4);
    let mut random = Random::new(2, "prompt");
    let prompt: Vec<u32> =
        (0..12).map(|_| (random.next_u64() % TinyModel::VOCAB_SIZE as u64) as u32).collect();
    let batch = |tokens: &[u32], position, logits| {
        Batch::new(&[SequenceRows { tokens, position, pages: &[3], logits }])
    };
    let hidden = runner.hidden(&batch(&prompt, 0, LogitRows::All)).unwrap();
    let greedy = SamplingRow::new(SamplingParams { temperature: 0.0, ..SamplingParams::default() }, 13);
    let next = runner.step(&batch(&prompt, 0, LogitRows::Last), std::slice::from_ref(&greedy)).unwrap();
    let following = [&prompt[1..], &next].concat();
    let drafts =
        runner.draft(&batch(&following, 0, LogitRows::All), &vec![greedy.clone(); 12], DraftFrom::Step);
    let mut drafts = drafts.unwrap();
    let last = runner
        .draft(&batch(&following, 0, LogitRows::Last), std::slice::from_ref(&greedy), DraftFrom::Step)
        .unwrap();
    assert_eq!(last, drafts[11..]);
    drafts.extend(runner.draft(&batch(&last, 12, LogitRows::Last), &[greedy], DraftFrom::Draft).unwrap());

    let vector = |name: &str| values(&gguf, &format!("{name}.weight"));
    let nextn = |name: &str| format!("blk.4.nextn.{name}");
    let embedding = vector("token_embd");
    // The embedding's half comes first.
    let joined = |token: u32, hidden: &[f64]| {
        let embedded = rms_norm(&embedding[64 * token as usize..][..64], &vector(&nextn("enorm")));
        let both = [embedded, rms_norm(hidden, &vector(&nextn("hnorm")))].concat();
        product(&gguf, &format!("{}.weight", nextn("eh_proj")), &both)
    };
    let hidden: Vec<f64> = hidden.into_iter().map(f64::from).collect();
    let of_model = hidden.chunks_exact(64).map(|x| rms_norm(x, &vector("output_norm")));
    let mut rows: Vec<_> = of_model.zip(&following).map(|(x, &token)| joined(token, &x)).collect();
    let head_norm = vector(&nextn("shared_head_norm"));
    let of_block = rms_norm(&layer(&gguf, &rows)[11], &head_norm);
    rows.push(joined(last[0], &of_block));
    let likeliest = |x: &Vec<f64>| {
        let logits =
            product(&gguf, &format!("{}.weight", nextn("shared_head_head")), &rms_norm(x, &head_norm));
        (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32
    };
    let expected: Vec<u32> = layer(&gguf, &rows).iter().map(likeliest).collect();
    assert_eq!(drafts, expected);
}
