//! Adapters of the served model: chosen by name and by number, kept where prompts are scored and answers go back, listed, and refused where
//! there are none of that name.

use crate::client::{Running, config, open_adapted, start, start_with};
use crate::infill::add_fim;
use qernel::config::Config;
use qernel::embedded;
use qernel::kv_layout::PAGE_SIZE;
use qernel::load::AdapterChoice;
use qernel::testing::adapter;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A server with two adapters whose updates are large enough to change every answer.
fn start_adapted(folder: &TempDir) -> Running {
    let model = Config::from_gguf(&embedded::haiku().unwrap()).unwrap();
    let adapters = [("poet", 1_u64, 1.0), ("critic", 2, 0.5)].map(|(name, seed, scale)| {
        let path = folder.path().join(format!("{name}.gguf"));
        std::fs::write(&path, adapter(&model, seed, 4, 2.0).to_bytes()).unwrap();
        AdapterChoice { name: None, path, scale }
    });
    let adapters = adapters.to_vec();
    let running = start_with(config(), move |max, control| open_adapted(max, control, adapters, add_fim));
    running.wait_until("ready", |running| running.get("/health").status == 200);
    running
}

/// The tokens and their probabilities of an answer of `/v1/completions`, and what it calls the model.
fn complete(server: &Running, fields: Value) -> (Value, Value) {
    let mut body = json!({"prompt": "The old pond", "max_tokens": 6, "temperature": 0, "logprobs": 1});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let answer = server.post("/v1/completions", body).good();
    (answer["choices"][0]["logprobs"]["token_logprobs"].clone(), answer["model"].clone())
}

#[test]
fn adapters_are_chosen_by_name_and_by_number() {
    let folder = TempDir::new().unwrap();
    let server = start_adapted(&folder);
    let (plain, name) = complete(&server, json!({}));
    assert_eq!(name, "haiku");
    assert_eq!(complete(&server, json!({"model": "haiku"})).0, plain);
    assert_eq!(complete(&server, json!({"lora": []})).0, plain);
    assert_eq!(complete(&server, json!({"model": "poet", "lora": []})), (plain.clone(), json!("poet")));
    let (poet, name) = complete(&server, json!({"model": "poet"}));
    assert_eq!(name, "poet");
    let critic = complete(&server, json!({"model": "critic"})).0;
    assert!(poet != plain && critic != plain && poet != critic);
    assert_eq!(complete(&server, json!({"lora": [{"id": 0, "scale": 1.0}]})).0, poet);
    assert_eq!(complete(&server, json!({"lora": [{"id": 0}, {"id": 1, "scale": 0}]})).0, poet);
    assert_eq!(complete(&server, json!({"lora": [{"id": 1, "scale": 0.5}]})).0, critic);
    let both = complete(&server, json!({"lora": [{"id": 0, "scale": 1}, {"id": 1, "scale": 0.5}]})).0;
    assert!(both != poet && both != critic);
    // What a prompt's own tokens cost depends on them too.
    let echo = |fields: Value| {
        let mut body = json!({"prompt": "The old pond", "max_tokens": 1, "echo": true, "logprobs": 1});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        server.post("/v1/completions", body).good()["choices"][0]["logprobs"]["token_logprobs"][1].clone()
    };
    assert_ne!(echo(json!({"model": "poet"})), echo(json!({})));
}

#[test]
fn every_interface_that_answers_takes_adapters() {
    let folder = TempDir::new().unwrap();
    let server = start_adapted(&folder);
    let turn = json!([{"role": "user", "content": "Write of rain"}]);
    let cases = [
        (
            "/v1/chat/completions",
            json!({"messages": turn, "max_tokens": 8, "temperature": 0}),
            "/choices/0/message",
        ),
        ("/v1/messages", json!({"messages": turn, "max_tokens": 8, "temperature": 0}), "/content"),
        (
            "/v1/responses",
            json!({"input": "Write of rain", "max_output_tokens": 8, "temperature": 0}),
            "/output/0/content",
        ),
        ("/v1/generate", json!({"prompt": "Write of rain", "max_tokens": 8, "temperature": 0}), "/ids"),
        (
            "/infill",
            json!({"input_prefix": "Of rain", "input_suffix": "", "n_predict": 8, "temperature": 0}),
            "/content",
        ),
    ];
    for (path, body, answer) in cases {
        let ask = |lora: Value| {
            let mut body = body.clone();
            body["lora"] = lora;
            server.post(path, body).good().pointer(answer).unwrap().clone()
        };
        let strong = |id: u32| ask(json!([{"id": id, "scale": 3.0}]));
        assert_eq!(ask(json!([])), ask(Value::Null), "{path}");
        assert_ne!(strong(0), ask(json!([])), "{path}");
        assert_ne!(strong(1), strong(0), "{path}");
    }
}

/// Each token of an answer is as likely as the same token of a prompt, with the same adapters: where the answer goes back from a banned string,
/// also beside those of others, and whatever the prefix cache knows of the same tokens.
#[test]
fn scored_prompts_and_answers_that_go_back_keep_their_adapters() {
    let folder = TempDir::new().unwrap();
    let server = start_adapted(&folder);
    let text =
        "The old pond is still, and a frog jumps into the water where the moon was a moment ago. ".repeat(3);
    let prompt = server.post("/tokenize", json!({"text": text})).good()["ids"].as_array().unwrap().clone();
    assert!(prompt.len() > 2 * PAGE_SIZE, "the prompt has pages to share");
    let generate = |lora: &Value, banned: &[&str]| {
        let body = json!({"ids": prompt, "temperature": 0, "max_tokens": 16, "ignore_eos": true, "logprobs": 0,
                          "lora": lora, "banned_strings": banned});
        let answer = server.post("/v1/generate", body).good();
        (answer["ids"].clone(), answer["logprobs"].clone(), answer["text"].as_str().unwrap().to_owned())
    };
    // Of each token but the first, by itself.
    let scored = |lora: &Value, ids: &[Value]| {
        let body = json!({"prompt": ids, "max_tokens": 1, "prompt_logprobs": 0, "lora": lora});
        let found = server.post("/v1/completions", body).good()["choices"][0]["prompt_logprobs"].clone();
        let places = found.as_array().unwrap().iter().zip(ids).skip(1);
        places.map(|(place, id)| place[id.to_string()]["logprob"].clone()).collect::<Vec<_>>()
    };
    let sets = [json!([]), json!([{"id": 0}]), json!([{"id": 0, "scale": 0.5}, {"id": 1}])];
    let answer = |lora: &Value| {
        let plain = generate(lora, &[]);
        // Behind its beginning, so that tokens stay.
        let words = plain.2.split(|letter: char| !letter.is_ascii_alphabetic());
        let banned = words.filter(|word| word.len() > 2).last().expect("a word").to_owned();
        let around = generate(lora, &[&banned]);
        assert!(!around.2.to_ascii_lowercase().contains(&banned.to_ascii_lowercase()), "{around:?}");
        assert_ne!(around.0, plain.0);
        assert_eq!(around.0[0], plain.0[0]);
        [plain, around]
    };
    let answers = sets.each_ref().map(answer);
    let of_prompt = sets.each_ref().map(|lora| scored(lora, &prompt));
    assert!(of_prompt[0] != of_prompt[1] && of_prompt[1] != of_prompt[2] && of_prompt[0] != of_prompt[2]);
    for (lora, (answers, of_prompt)) in sets.iter().zip(answers.iter().zip(&of_prompt)) {
        for (ids, logprobs, _) in answers {
            let whole = [&prompt[..], ids.as_array().unwrap()].concat();
            let found = scored(lora, &whole);
            let (first, rest) = found.split_at(prompt.len() - 1);
            assert_eq!(first, of_prompt, "{lora}");
            let expected: Vec<_> =
                logprobs.as_array().unwrap().iter().map(|token| token["logprob"].clone()).collect();
            assert_eq!(rest, expected, "{lora}");
        }
    }
    let beside = std::thread::scope(|scope| {
        let asked = sets.each_ref().map(|lora| scope.spawn(|| answer(lora)));
        asked.map(|asked| asked.join().unwrap())
    });
    assert_eq!(beside, answers);
    server.wait_until_idle();
}

#[test]
fn adapters_are_listed_and_unknown_ones_refused() {
    let folder = TempDir::new().unwrap();
    let server = start_adapted(&folder);
    let models = server.get("/v1/models").good();
    let names: Vec<_> = models["data"].as_array().unwrap().iter().map(|model| &model["id"]).collect();
    assert_eq!(names, ["haiku", "poet", "critic"]);
    assert_eq!(models["data"][1]["parent"], "haiku");
    assert_eq!(server.get("/v1/models/critic").good()["id"], "critic");
    let listed = server.get("/lora-adapters").good();
    assert_eq!(listed[1], json!({"id": 1, "name": "critic", "path": "critic", "scale": 0.5}));
    assert_eq!(listed.as_array().unwrap().len(), 2);

    let refused = |fields: Value, status: u16, expected: &[&str]| {
        let mut body = json!({"prompt": "a"});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let answer = server.post("/v1/completions", body);
        assert_eq!(answer.status, status, "{}", answer.text());
        let message = answer.json()["error"]["message"].to_string();
        assert!(expected.iter().all(|part| message.contains(part)), "{message}");
    };
    refused(json!({"model": "nobody"}), 404, &["nobody", "haiku", "poet", "critic"]);
    refused(json!({"lora": [{"id": 2, "scale": 1}]}), 400, &["no adapter 2", "0 (poet)", "1 (critic)"]);
    refused(json!({"lora": [{"scale": 1}]}), 400, &["id"]);
    refused(json!({"lora": [{"id": 0, "scale": 1e9}]}), 400, &["-100 to 100", "1000000000"]);
    refused(json!({"lora": [{"id": 0, "weight": 1}]}), 400, &["weight"]);
    let embedding = server.post("/v1/embeddings", json!({"input": "a", "model": "poet"}));
    assert_eq!(embedding.status, 404, "vectors are the model's own");

    let without = start(config());
    assert_eq!(without.get("/lora-adapters").good(), json!([]));
    let answer = without.post("/v1/completions", json!({"prompt": "a", "lora": [{"id": 0}]}));
    assert!(answer.status == 400 && answer.text().contains("started without adapters"), "{}", answer.text());
}
