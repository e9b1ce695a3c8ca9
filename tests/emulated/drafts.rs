//! Drafts on an emulated device: steps of several rows a sequence go through the kernels of decoding, and change no token.

use crate::steps::hybrid;
use crate::{device_of_models, life, sidecar, small};
use qernel::cuda::{CudaOps, KernelChoice};
use qernel::dtype::Dtype;
use qernel::engine::{Engine, Event, Request};
use qernel::formats::MatrixFormat;
use qernel::load::{DeviceChoice, DraftChoice};
use qernel::ops::OpsConfig;
use qernel::testing::{TinyDraft, TinyModel};

/// So many tokens of a greedy answer and of a random one, and how many tokens were drafted and how many of them stayed.
pub fn answers(engine: &mut Engine, count: usize) -> ([Vec<u32>; 2], [usize; 2]) {
    let [greedy, random, ..] = life::crowd_requests();
    for request in [greedy, random] {
        engine.submit(Request { max_tokens: Some(count), ..request }).unwrap();
    }
    let (mut tokens, mut drafts) = ([Vec::new(), Vec::new()], [0; 2]);
    while engine.has_work() {
        for event in engine.step().unwrap() {
            match event {
                Event::Prompt { .. } => {}
                Event::Token { id, token, .. } => tokens[id.0 as usize].push(token),
                Event::Finished { timings, .. } => {
                    drafts[0] += timings.draft_tokens;
                    drafts[1] += timings.accepted_draft_tokens;
                }
            }
        }
    }
    assert_eq!((tokens[0].len(), tokens[1].len()), (count, count));
    (tokens, drafts)
}

fn ops(config: &OpsConfig) -> CudaOps {
    CudaOps::new(&device_of_models(7), config, Dtype::F16, KernelChoice::default()).unwrap()
}

/// What a block drafts is verified by steps of several rows, and taken back where it was wrong.
#[test]
fn drafts_change_no_token_of_a_hybrid() {
    let [plain, drafted] = [None, Some(TinyDraft::default())].map(|draft| {
        answers(&mut life::engine(&TinyModel { draft, ..hybrid() }, Dtype::F16, life::ROOMY, ops), 20)
    });
    assert_eq!(drafted.0, plain.0);
    assert!(plain.1[0] == 0 && drafted.1[0] > 20, "{:?}", drafted.1);
}

/// Likewise where the block is in a file beside the model's, by whose name it is found.
#[test]
fn a_block_beside_the_model_drafts_as_one_in_its_file() {
    let model = TinyModel { draft: Some(TinyDraft::default()), ..hybrid() };
    let folder = tempfile::tempdir().unwrap();
    let [alone, block] = sidecar::apart(&model);
    sidecar::write(folder.path(), "mtp-model.gguf", &block);
    let [whole, alone] = [("whole.gguf", model.writer()), ("model.gguf", alone)].map(|(name, file)| {
        let path = sidecar::write(folder.path(), name, &file);
        let model = sidecar::open(&path, DeviceChoice::Emulated, DraftChoice::Mtp).unwrap();
        answers(&mut model.into_engine().unwrap(), 9)
    });
    assert_eq!(alone, whole);
    assert!(whole.1[0] > 10, "{:?}", whole.1);
}

/// What another model drafts, which agrees and has pages of its own.
#[test]
fn drafts_of_another_model_change_no_token() {
    let model = TinyModel { format: MatrixFormat::F16, silent_from: Some(1), ..small() };
    let draft = TinyModel { num_hidden_layers: 1, silent_from: None, ..model.clone() };
    let (expected, _) = answers(&mut life::engine(&model, Dtype::F16, life::ROOMY, ops), 9);
    let mut engine = life::engine_that_drafts(&model, Some(&draft), Dtype::F16, life::ROOMY, ops);
    let (found, [drafted, stayed]) = answers(&mut engine, 9);
    assert_eq!(found, expected);
    assert!(drafted > 5 && 10 * stayed >= 9 * drafted, "{stayed} of {drafted}");
}
