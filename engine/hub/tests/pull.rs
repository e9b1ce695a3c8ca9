//! Models come from a hub on this machine whatever goes wrong on the way, and nothing else comes.

#[path = "../../../tests/common/hub_server.rs"]
mod hub_server;

use hub_server::{COMMIT, HubServer, REPO, blob_id, sha256};
use qernel_core::error::{Error, Result};
use qernel_hub::{Environment, Event, Hub, Kind, Model, Patience};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// A file of some size, whose bytes differ.
fn bytes(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251 + seed) as u8).collect()
}

/// A hub, and a cache that is empty.
struct Fixture {
    server: HubServer,
    folder: TempDir,
    variables: Vec<(&'static str, OsString)>,
}

impl Fixture {
    fn new(files: &[(&str, &[u8])]) -> Self {
        let (server, folder) = (HubServer::new(files), TempDir::new().unwrap());
        let variables =
            vec![("HF_HOME", folder.path().into()), ("HF_ENDPOINT", OsString::from(&server.address))];
        Self { server, folder, variables }
    }

    fn hub(&self) -> Hub {
        let environment = Environment::new(|name| {
            self.variables.iter().rev().find(|(known, _)| *known == name).map(|(_, value)| value.clone())
        });
        let ms = Duration::from_millis;
        let patience = Patience {
            connect: ms(2000),
            read: ms(2000),
            tries: 4,
            backoff: ms(1),
            longest: Duration::from_secs(5),
        };
        Hub::new(environment.unwrap(), patience).unwrap()
    }

    fn set(&mut self, name: &'static str, value: &str) {
        self.variables.push((name, value.into()));
    }

    /// Pulls, and gives the notes on the way too.
    fn pull_with_notes(&self, file: &str) -> (Result<Model>, String) {
        let mut notes = String::new();
        let model = self.hub().pull(&named(file), &mut |event| {
            if let Event::Note(note) = event {
                notes += &format!("{note}\n");
            }
        });
        (model, notes)
    }

    fn pull(&self, file: &str) -> Model {
        let (model, notes) = self.pull_with_notes(file);
        model.unwrap_or_else(|error| panic!("{error}\n{notes}"))
    }

    fn error(&self, file: &str) -> Error {
        self.pull_with_notes(file).0.unwrap_err()
    }

    fn cache(&self) -> PathBuf {
        self.folder.path().join("hub/models--Owner--Tiny-GGUF")
    }

    /// The names in the folder of bytes.
    fn blobs(&self) -> Vec<String> {
        let entries = fs::read_dir(self.cache().join("blobs")).into_iter().flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn named(file: &str) -> qernel_hub::Name {
    format!("{REPO}{file}").parse().unwrap()
}

#[track_caller]
fn assert_network(error: &Error, expected: &str) {
    assert!(
        matches!(error, Error::Network(why) if why.contains(expected)),
        "expected {expected:?}, found {error}"
    );
}

#[track_caller]
fn assert_request(error: &Error, expected: &str) {
    assert!(
        matches!(error, Error::Request(why) if why.contains(expected)),
        "expected {expected:?}, found {error}"
    );
}

#[test]
fn a_file_comes_once_and_lies_where_the_hubs_tools_look_for_it() {
    let (file, other) = (bytes(1, 700_000), bytes(2, 10));
    let fixture = Fixture::new(&[("a-q4_k_m.gguf", &file), ("a-q8_0.gguf", &other), ("README.md", b"# a")]);
    let model = fixture.pull("");
    assert_eq!(model.path, fixture.cache().join("snapshots").join(COMMIT).join("a-q4_k_m.gguf"));
    assert_eq!((fs::read(&model.path).unwrap(), model.loaded), (file.clone(), 700_000));
    assert_eq!(fs::read_to_string(fixture.cache().join("refs/main")).unwrap(), COMMIT);
    assert_eq!(fs::read_link(&model.path).unwrap(), Path::new("../../blobs").join(sha256(&file)));
    assert_eq!(fixture.blobs(), [sha256(&file)]);
    let seen = fixture.server.seen();
    let whats: Vec<&str> = seen.iter().map(|seen| &seen.what[..]).collect();
    let resolve = format!("GET /{REPO}/resolve/{COMMIT}/a-q4_k_m.gguf");
    assert_eq!(
        whats,
        [
            &format!("GET /api/models/{REPO}/revision/main?blobs=true")[..],
            &resolve,
            "GET /a-q4_k_m.gguf?signature=secret"
        ]
    );

    // Again: one request, which says that nothing has changed.
    assert_eq!(fixture.pull(":Q4_K_M"), Model { loaded: 0, ..model });
    assert_eq!(fixture.server.seen().len(), 1);
    assert_eq!(fs::read(fixture.pull(":q8_0").path).unwrap(), other);
}

#[test]
fn a_revision_is_asked_for_and_kept_by_its_name() {
    let file = bytes(1, 1000);
    let mut fixture = Fixture::new(&[("a.gguf", &file)]);
    let commits = ["a", "b"].map(|digit| digit.repeat(40));
    let revisions = ["refs%2Fpr%2F1".to_owned(), commits[1].clone()].into_iter().zip(commits.clone());
    fixture.server.state().revisions = revisions.collect();
    let model = fixture.pull("@refs/pr/1");
    assert_eq!(model.path, fixture.cache().join("snapshots").join(&commits[0]).join("a.gguf"));
    assert_eq!(fs::read_to_string(fixture.cache().join("refs/refs/pr/1")).unwrap(), commits[0]);
    let seen = fixture.server.seen();
    assert_eq!(seen[0].what, format!("GET /api/models/{REPO}/revision/refs%2Fpr%2F1?blobs=true"));
    assert_eq!(seen[1].what, format!("GET /{REPO}/resolve/{}/a.gguf", commits[0]));
    // The same bytes, at a commit.
    let at_commit = fixture.pull(&format!("@{}:a.gguf", commits[1]));
    assert_eq!((at_commit.loaded, fixture.blobs().len()), (0, 1));
    assert_request(&fixture.error("@v9"), "has no revision v9 of Owner/Tiny-GGUF");
    assert_request(&fixture.hub().remove(&named("@refs/pr/1")).unwrap_err(), "leave out @refs/pr/1");
    assert_eq!(fixture.hub().list().unwrap().len(), 1);

    fixture.set("HF_HUB_OFFLINE", "1");
    let open = |file: &str| fixture.hub().open(&named(file), &mut |_| ());
    assert_eq!(open("@refs/pr/1").unwrap(), Model { loaded: 0, ..model });
    assert_eq!(open(&format!("@{}", commits[1])).unwrap().path, at_commit.path);
    assert_request(&open("@v9").unwrap_err(), "Owner/Tiny-GGUF@v9 is not in the cache");
}

#[test]
fn a_connection_that_is_cut_goes_on_where_it_ended() {
    let file = bytes(1, 900_000);
    let fixture = Fixture::new(&[("a.gguf", &file)]);
    fixture.server.state().cuts = [300_000, 0, 200_000].into();
    let (model, notes) = fixture.pull_with_notes("");
    assert_eq!(fs::read(model.unwrap().path).unwrap(), file);
    assert!(
        notes.contains("going on at byte 300000") && notes.contains("going on at byte 500000"),
        "{notes}"
    );
    let ranges = fixture.server.seen().into_iter().filter(|seen| !seen.is_hub).map(|seen| seen.range);
    let ranges: Vec<String> = ranges.flatten().collect();
    assert_eq!(ranges, ["bytes=300000-", "bytes=300000-", "bytes=500000-"]);
}

#[test]
fn what_never_comes_ends_and_the_next_process_goes_on() {
    let file = bytes(1, 900_000);
    let fixture = Fixture::new(&[("a.gguf", &file)]);
    fixture.server.state().cuts = [300_000, 0, 0, 0, 0].into();
    assert_network(
        &fixture.error(""),
        "300000 of 900000 bytes are here, and the same command goes on behind them",
    );
    assert_eq!(fixture.blobs(), [format!("{}.incomplete", sha256(&file))]);
    assert!(fixture.hub().cached(&named("")).is_err() && !fixture.cache().join("snapshots").exists());
    let listed = fixture.hub().list().unwrap();
    assert_eq!((listed.len(), listed[0].kind, listed[0].size), (1, Kind::Unfinished, 300_000));
    fixture.server.state().cuts.clear();
    fixture.server.seen();
    let model = fixture.pull("");
    assert_eq!((fs::read(model.path).unwrap(), model.loaded), (file, 600_000));
    assert_eq!(fixture.server.seen()[1].range.as_deref(), Some("bytes=300000-"));
}

#[test]
fn a_host_without_ranges_sends_all_again() {
    let file = bytes(1, 500_000);
    let fixture = Fixture::new(&[("a.gguf", &file)]);
    fixture.server.state().no_ranges = true;
    fixture.server.state().cuts = [200_000].into();
    assert_eq!(fs::read(fixture.pull("").path).unwrap(), file);
}

#[test]
fn other_bytes_get_no_name() {
    let file = bytes(1, 100_000);
    let fixture = Fixture::new(&[("a.gguf", &file)]);
    fixture.server.state().wrong = 1;
    let error = fixture.error("");
    assert_network(&error, &format!("expected SHA-256 {}, found SHA-256 ", sha256(&file)));
    assert!(fixture.blobs().is_empty() && !fixture.cache().join("snapshots").exists());

    // A part that went bad is not the hub's fault: it is loaded anew.
    let part = fixture.cache().join("blobs").join(format!("{}.incomplete", sha256(&file)));
    fs::write(&part, bytes(7, 50_000)).unwrap();
    let (model, notes) = fixture.pull_with_notes("");
    assert_eq!(fs::read(model.unwrap().path).unwrap(), file);
    assert!(notes.contains("once more from its beginning"), "{notes}");
    // One that is whole, and one that is longer than the file.
    for len in [100_000, 100_001] {
        fs::remove_dir_all(fixture.cache()).unwrap();
        fs::create_dir_all(part.parent().unwrap()).unwrap();
        fs::write(&part, [file.clone(), vec![0]].concat().split_at(len).0).unwrap();
        assert_eq!(fs::read(fixture.pull("").path).unwrap(), file);
    }
    // One bad byte in small files is found too.
    let fixture = Fixture::new(&[("config.json", b"{}"), ("model.safetensors", &file)]);
    fixture.server.state().hashes.insert("config.json".into(), blob_id(b"[]"));
    assert_network(&fixture.error(""), "config.json changed while it was loaded");
}

#[test]
fn a_file_that_changes_while_it_is_loaded_is_told() {
    let fixture = Fixture::new(&[("a.gguf", &bytes(1, 1000))]);
    fixture.server.state().hashes.insert("a.gguf".into(), sha256(b"another"));
    assert_network(&fixture.error(""), "a.gguf changed while it was loaded");
    // Of another size, where the hub names no hash.
    fixture.server.state().hashes.insert("b.gguf".into(), "no-hash".into());
    let size =
        r#"{"rfilename": "b.gguf", "lfs": {"sha256": ""#.to_owned() + &sha256(b"b") + r#"", "size": 900}}"#;
    fixture.server.state().more = size;
    fixture.server.state().files.insert("b.gguf".into(), bytes(2, 1000));
    assert_network(&fixture.error(":b.gguf"), "it had 900 bytes, and has 1000");
}

#[test]
fn the_token_is_shown_to_the_hub_alone() {
    let mut fixture = Fixture::new(&[("a.gguf", &bytes(1, 1000))]);
    fixture.server.state().token = Some("hf_right".to_owned());
    assert_request(&fixture.error(""), "401");
    fixture.set("HF_TOKEN", "hf_wrong");
    let error = fixture.error("");
    assert_request(&error, "gated");
    assert!(!error.to_string().contains("hf_wrong"));
    fs::write(fixture.folder.path().join("token"), "hf_right\n").unwrap();
    fixture.variables.pop();
    fixture.server.seen();
    fixture.pull("");
    for seen in fixture.server.seen() {
        let expected = seen.is_hub.then_some("Bearer hf_right");
        assert_eq!(seen.authorization.as_deref(), expected, "{seen:?}");
    }
}

#[test]
fn a_hub_without_time_is_asked_again() {
    let fixture = Fixture::new(&[("a.gguf", &bytes(1, 1000))]);
    let later = || (429, "Retry-After: 0\r\n".to_owned());
    fixture.server.state().first = [later(), (503, String::new()), later()].into();
    let (model, notes) = fixture.pull_with_notes("");
    model.unwrap();
    assert!(notes.contains("429 Too Many Requests: asking again in 0 s"), "{notes}");
    fs::remove_dir_all(fixture.cache()).unwrap();
    fixture.server.state().first = (0..4).map(|_| later()).collect();
    assert_network(&fixture.error(""), "429 Too Many Requests");
    fixture.server.state().first = [(429, "Retry-After: 3600\r\n".to_owned())].into();
    assert_network(&fixture.error(""), "asks to wait for 3600 s");
    assert_eq!(fixture.server.state().first.len(), 0);
    // The same behind the listing: nobody asks again.
    let hourly = (429, "Retry-After: 3600\r\n".to_owned());
    fixture.server.state().after_listing = [hourly].into();
    fixture.server.seen();
    assert_network(&fixture.error(""), "asks to wait for 3600 s");
    assert_eq!(fixture.server.seen().len(), 2);
}

#[test]
fn names_that_there_are_not_are_told() {
    let fixture = Fixture::new(&[("a-Q8_0.gguf", b"a"), ("mmproj-a.gguf", b"b")]);
    assert_request(&fixture.error(":Q4_K_M"), "no file of type \"Q4_K_M\"; it has a-Q8_0.gguf");
    let error = fixture.hub().pull(&"Owner/Other".parse().unwrap(), &mut |_| {}).unwrap_err();
    assert_request(&error, "has no Owner/Other: expected OWNER/NAME");
    let fixture = Fixture::new(&[("README.md", b"a")]);
    assert_request(&fixture.error(""), "neither a GGUF file nor config.json");
}

#[test]
fn a_listing_that_is_hostile_writes_nothing() {
    for (more, expected) in [
        (r#"{"rfilename": "../../../evil", "size": 1, "blobId": "x"}"#, "leads out of the folder"),
        (r#"{"rfilename": "/tmp/evil", "size": 1, "blobId": "x"}"#, "leads out of the folder"),
        (r#"{"rfilename": "a", "size": -1}"#, "expected JSON as the hub writes it"),
        (r#"{"rfilename": 1}"#, "expected JSON as the hub writes it"),
    ] {
        let fixture = Fixture::new(&[("a.gguf", b"a")]);
        fixture.server.state().more = more.to_owned();
        assert_network(&fixture.error(""), expected);
        assert!(!fixture.cache().exists());
    }
    let fixture = Fixture::new(&[("a.gguf", b"a")]);
    fixture.server.state().more = format!(
        r#"{{"rfilename": "b-Q8_0.gguf", "lfs": {{"sha256": "{}", "size": 18446744073709551615}}}}"#,
        sha256(b"b")
    );
    let error = fixture.error(":Q8_0");
    assert!(matches!(&error, Error::Io { .. }) && error.to_string().contains("no room left"), "{error}");
    fixture.server.state().commit = "../../elsewhere".to_owned();
    assert_network(&fixture.error(""), "expected the 40 digits of a commit");
}

#[test]
fn models_in_parts_and_folders_come_whole() {
    let (one, two) = (bytes(1, 1000), bytes(2, 2000));
    let parts = ["q/a-Q4_K_M-00001-of-00002.gguf", "q/a-Q4_K_M-00002-of-00002.gguf"];
    let fixture = Fixture::new(&[(parts[0], &one), (parts[1], &two)]);
    let model = fixture.pull("");
    assert!(model.path.ends_with(parts[0]) && model.loaded == 3000);
    assert_eq!(fs::read(model.path.with_file_name("a-Q4_K_M-00002-of-00002.gguf")).unwrap(), two);

    let index = br#"{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}"#;
    let fixture = Fixture::new(&[
        ("config.json", b"{}"),
        ("model.safetensors.index.json", index),
        ("m-1.safetensors", &one),
        ("m-2.safetensors", &two),
        ("consolidated.safetensors", &bytes(3, 3000)),
        ("additional_chat_templates/tool_use.jinja", b"{{ x }}"),
        ("empty/tokenizer.json", b"{}"),
        ("chat_template.jinja", b""),
    ]);
    // A mirror that says less: every file is asked for.
    fixture.server.state().bare = true;
    let model = fixture.pull("");
    assert_eq!(model.path, fixture.cache().join("snapshots").join(COMMIT));
    for (path, expected) in [
        ("m-2.safetensors", Some(&two[..])),
        ("additional_chat_templates/tool_use.jinja", Some(b"{{ x }}")),
        ("chat_template.jinja", Some(b"")),
        ("consolidated.safetensors", None),
        ("empty/tokenizer.json", None),
    ] {
        assert_eq!(fs::read(model.path.join(path)).ok().as_deref(), expected, "{path}");
    }
    let listed = fixture.hub().list().unwrap();
    assert_eq!((listed.len(), listed[0].kind), (1, Kind::Folder));
    assert_eq!(listed[0].size, 3000 + index.len() as u64 + 2 + 7);

    let fixture = Fixture::new(&[("config.json", b"{}"), ("pytorch_model.bin", b"x")]);
    assert_request(&fixture.error(""), "has no model.safetensors");
    let evil = br#"{"weight_map": {"a": "../evil.safetensors"}}"#;
    let fixture = Fixture::new(&[("config.json", b"{}"), ("model.safetensors.index.json", evil)]);
    assert!(matches!(fixture.error(""), Error::Folder(_)));
}

#[test]
fn a_block_that_drafts_comes_with_its_model_and_goes_with_the_last_one() {
    let [model, other, block] = [1, 2, 3].map(|seed| bytes(seed, 1000));
    let parts = ["mtp-a-Q8_0-00001-of-00002.gguf", "mtp-a-Q8_0-00002-of-00002.gguf"];
    let fixture = Fixture::new(&[
        ("a-Q4_K_M.gguf", &model),
        ("a-Q8_0.gguf", &other),
        (parts[0], &block),
        (parts[1], &block),
    ]);
    assert_eq!(fixture.pull("").sidecar, None);
    let pull =
        |fixture: &Fixture, file: &str| fixture.hub().with_sidecar(true).pull(&named(file), &mut |_| ());
    let both = pull(&fixture, "").unwrap();
    let sidecar = both.path.with_file_name(parts[0]);
    assert_eq!((both.loaded, both.sidecar.as_ref()), (1000, Some(&sidecar)));
    assert_eq!(fs::read(both.path.with_file_name(parts[1])).unwrap(), block);
    assert_eq!(pull(&fixture, ":Q8_0").unwrap().sidecar, Some(sidecar.clone()));
    assert_eq!(fixture.hub().list().unwrap().len(), 2, "models alone");
    // The block is of another model too.
    assert_eq!(fixture.hub().remove(&named(":Q8_0")).unwrap().files, ["a-Q8_0.gguf"]);
    let cached = fixture.hub().with_sidecar(true).cached(&named("")).unwrap();
    assert_eq!(cached, Model { loaded: 0, ..both });
    fs::remove_file(sidecar.with_file_name(parts[1])).unwrap();
    assert_eq!(fixture.hub().with_sidecar(true).cached(&named("")).unwrap().sidecar, None, "a part is gone");
    pull(&fixture, "").unwrap();
    let removed = fixture.hub().remove(&named(":Q4_K_M")).unwrap();
    assert_eq!((removed.files.len(), fixture.cache().exists()), (3, false));
}

#[test]
fn a_new_commit_keeps_bytes_that_are_the_same() {
    let (same, old, new) = (bytes(1, 1000), bytes(2, 1000), bytes(3, 1000));
    let fixture = Fixture::new(&[("a-Q4_K_M.gguf", &same), ("a-Q8_0.gguf", &old)]);
    fixture.pull("");
    fixture.pull(":Q8_0");
    let next = "f".repeat(40);
    fixture.server.state().commit = next.clone();
    fixture.server.state().files.insert("a-Q8_0.gguf".into(), new.clone());
    let model = fixture.pull("");
    assert!(model.loaded == 0 && model.path.starts_with(fixture.cache().join("snapshots").join(&next)));
    // Not yet loaded of the newest commit, but of the one before.
    let before = fixture.hub().cached(&named(":Q8_0")).unwrap();
    assert_eq!(fs::read(before.path).unwrap(), old);
    assert_eq!(fs::read(fixture.pull(":Q8_0").path).unwrap(), new);
    assert_eq!(fs::read(fixture.hub().cached(&named(":Q8_0")).unwrap().path).unwrap(), new);
    assert_eq!(fixture.blobs().len(), 3);

    // Both commits have the bytes of Q4_K_M, which go when neither has; those of the other file stay.
    let removed = fixture.hub().remove(&named(":Q4_K_M")).unwrap();
    assert_eq!((removed.files, removed.bytes), (vec!["a-Q4_K_M.gguf".to_owned()], 1000));
    assert_eq!(fixture.blobs().len(), 2);
    assert!(fixture.hub().cached(&named(":Q8_0")).is_ok());
    assert_eq!(fixture.hub().remove(&named("")).unwrap().bytes, 2000);
    assert!(!fixture.cache().exists());
    assert_request(&fixture.hub().remove(&named("")).unwrap_err(), "is not in the cache");
}

#[test]
fn without_a_network_there_is_the_cache() {
    let file = bytes(1, 1000);
    let mut fixture = Fixture::new(&[("a-Q4_K_M.gguf", &file), ("a-Q8_0.gguf", &file)]);
    let path = fixture.pull("").path;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    fixture.set("HF_ENDPOINT", &nobody);
    let mut notes = Vec::new();
    let model = fixture.hub().open(&named(""), &mut |event| notes.push(format!("{event:?}"))).unwrap();
    assert!(
        model.path == path && notes.len() == 1 && notes[0].contains("as it is in the cache"),
        "{notes:?}"
    );
    for error in [fixture.error(""), fixture.hub().open(&named(":Q8_0"), &mut |_| {}).unwrap_err()] {
        for word in ["Look whether there is a network", "HF_ENDPOINT", "HF_HUB_OFFLINE=1", "--model"] {
            assert_network(&error, word);
        }
    }
    fixture.set("HF_HUB_OFFLINE", "1");
    assert_eq!(fixture.hub().open(&named(":q4_k_m"), &mut |_| panic!("no word")).unwrap().path, path);
    let error = fixture.hub().open(&named(":Q8_0"), &mut |_| {}).unwrap_err();
    assert_request(&error, "is not in the cache (");
    assert_request(&fixture.error(""), "HF_HUB_OFFLINE is set");
    let error = fixture.hub().cached(&"Owner/Other".parse().unwrap()).unwrap_err();
    assert_request(&error, "nothing of it was loaded");
}

#[test]
fn two_that_pull_the_same_load_it_once() {
    let file = bytes(1, 3_000_000);
    let fixture = Fixture::new(&[("a.gguf", &file)]);
    std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..4).map(|_| scope.spawn(|| fixture.pull(""))).collect();
        let loaded: u64 = pulls.into_iter().map(|pull| pull.join().unwrap().loaded).sum();
        assert_eq!(loaded, 3_000_000);
    });
    assert_eq!(fixture.server.seen().iter().filter(|seen| !seen.is_hub).count(), 1);
}

#[test]
fn bytes_that_two_paths_share_go_with_the_last_of_them() {
    let file = bytes(1, 1000);
    let parts = ["b-Q8_0-00001-of-00002.gguf", "b-Q8_0-00002-of-00002.gguf"];
    let fixture = Fixture::new(&[
        ("a-F16.gguf", &file),
        ("c-BF16.gguf", &file),
        (parts[0], b"one"),
        (parts[1], b"two"),
    ]);
    for of_type in [":F16", ":BF16", ":Q8_0"] {
        fixture.pull(of_type);
    }
    let listed = fixture.hub().list().unwrap();
    let types: Vec<_> =
        listed.iter().map(|model| (model.type_name.as_deref().unwrap(), model.size)).collect();
    assert_eq!(types, [("F16", 1000), ("Q8_0", 6), ("BF16", 1000)]);
    assert_eq!(fixture.hub().remove(&named(":F16")).unwrap().bytes, 0);
    assert_eq!(fixture.hub().remove(&named(":bf16")).unwrap().bytes, 1000);
    assert_request(&fixture.hub().remove(&named(":F16")).unwrap_err(), "no file of type \"F16\"");

    // A model of which a part is missing goes too, and a file that only a link leads to stays.
    let own = fixture.folder.path().join("own.gguf");
    fs::write(&own, "own").unwrap();
    let snapshot = fixture.cache().join("snapshots").join(COMMIT);
    fs::remove_file(snapshot.join(parts[1])).unwrap();
    std::os::unix::fs::symlink(&own, snapshot.join("own-F32.gguf")).unwrap();
    let removed = fixture.hub().remove(&named(":Q8_0")).unwrap();
    assert_eq!((removed.files, removed.bytes), (vec![parts[0].to_owned()], 3));
    fixture.pull(":F16");
    assert_eq!(fixture.hub().remove(&named(":F32")).unwrap().bytes, 0);
    assert_eq!(fs::read_to_string(own).unwrap(), "own");
}
