//! Where options come from: flags before the environment before the file before defaults, the same for numbers, texts, lists and switches;
//! what is wrong in a file or a variable is named by its place; and `qernel config` says what is in force and whence.

use crate::program::qernel;
use assert_cmd::Command;
use predicates::prelude::*;
use std::path::PathBuf;
use tempfile::TempDir;

/// A folder with a file of options.
struct Place {
    folder: TempDir,
    file: PathBuf,
}

impl Place {
    fn with(text: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("qernel.toml");
        std::fs::write(&file, text).unwrap();
        Self { folder, file }
    }

    /// The program with this file.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = qernel();
        command.arg("--config").arg(&self.file).args(args);
        command
    }

    /// The value and the origin of an option, as `qernel config` has them.
    fn value(
        &self,
        command: &str,
        option: &str,
        flags: &[&str],
        variables: &[(&str, &str)],
    ) -> (String, String) {
        let mut config = self.command(&["config", command, "--"]);
        config.args(flags).envs(variables.iter().copied());
        let output = config.assert().success().get_output().stdout.clone();
        found(&String::from_utf8(output).unwrap(), option)
    }

    fn line(&self, number: usize) -> String {
        format!("{}:{number}", self.file.display())
    }
}

/// The value and the origin in the line of an option.
fn found(text: &str, option: &str) -> (String, String) {
    let line = text.lines().find(|line| line.split(' ').next() == Some(option)).expect(option);
    let mut words = line.split("  ").map(str::trim).filter(|word| !word.is_empty()).skip(1);
    (words.next().unwrap().to_owned(), words.next().unwrap().to_owned())
}

const ALL: &str = "\
log-format = \"json\"
[model]
ctx-size = 2_048
no-mmap = true
device = \"cpu\"
[serve]
port = 0x1F91
cors = [\"http://a\", \"http://b\"]
ctx-size = 1024
";

#[test]
fn flags_come_before_the_environment_before_the_file_before_defaults() {
    let place = Place::with(ALL);
    let port = |flags: &[&str], variables: &[(&str, &str)]| place.value("serve", "port", flags, variables);
    let variable = [("QERNEL_ARG_SERVE_PORT", "8082")];
    assert_eq!(port(&["--port", "8083"], &variable), ("8083".into(), "command line".into()));
    assert_eq!(port(&[], &variable), ("8082".into(), "QERNEL_ARG_SERVE_PORT".into()));
    assert_eq!(port(&[], &[("QERNEL_ARG_SERVE_PORT", "")]), ("8081".into(), place.line(7)));
    assert_eq!(Place::with("").value("serve", "port", &[], &[]), ("8080".into(), "default".into()));

    // A command's own table comes before the one that it shares with others, a variable of either before both.
    let size = |command, variables: &[(&str, &str)]| place.value(command, "ctx-size", &[], variables);
    assert_eq!(size("serve", &[]), ("1024".into(), place.line(9)));
    assert_eq!(size("chat", &[]), ("2048".into(), place.line(3)));
    let both = [("QERNEL_ARG_CTX_SIZE", "512"), ("QERNEL_ARG_SERVE_CTX_SIZE", "256")];
    assert_eq!(size("serve", &both), ("256".into(), "QERNEL_ARG_SERVE_CTX_SIZE".into()));
    assert_eq!(size("serve", &both[..1]), ("512".into(), "QERNEL_ARG_CTX_SIZE".into()));
    assert_eq!(size("chat", &both), ("512".into(), "QERNEL_ARG_CTX_SIZE".into()));

    // Options of the whole program, and the older variables.
    let format = |flags: &[&str]| place.value("doctor", "log-format", flags, &[]);
    assert_eq!(format(&[]), ("json".into(), place.line(1)));
    assert_eq!(format(&["--log-format", "text"]), ("text".into(), "command line".into()));
    let model = [("QERNEL_MODEL", "a.gguf")];
    let file = Place::with("[model]\nmodel = \"b.gguf\"");
    assert_eq!(file.value("chat", "model", &[], &model), ("a.gguf".into(), "QERNEL_MODEL".into()));
    assert_eq!(file.value("chat", "model", &["-m", "c"], &model), ("c".into(), "command line".into()));
    assert_eq!(file.value("chat", "model", &[], &[]), ("b.gguf".into(), file.line(2)));
}

#[test]
fn a_list_takes_the_place_of_the_one_below_it() {
    let place = Place::with(ALL);
    let cors = |flags: &[&str], variables: &[(&str, &str)]| place.value("serve", "cors", flags, variables).0;
    assert_eq!(cors(&[], &[]), "http://a, http://b");
    assert_eq!(cors(&[], &[("QERNEL_ARG_SERVE_CORS", "http://c\nhttp://d\n")]), "http://c, http://d");
    assert_eq!(cors(&["--cors", "http://e"], &[("QERNEL_ARG_SERVE_CORS", "http://c")]), "http://e");
    let empty = Place::with("[bench]\nn-prompt = [64, 128]\n[serve]\ncors = []\nallowed-hosts = \"a,b\"");
    assert_eq!(empty.value("serve", "cors", &[], &[]), ("-".into(), empty.line(4)));
    assert_eq!(empty.value("serve", "allowed-hosts", &[], &[]).0, "a,b");
    assert_eq!(empty.value("bench", "n-prompt", &[], &[]).0, "64, 128");
}

#[test]
fn a_switch_can_be_turned_off_again() {
    let place = Place::with(ALL);
    let switch =
        |flags: &[&str], variables: &[(&str, &str)]| place.value("chat", "no-mmap", flags, variables).0;
    assert_eq!(switch(&[], &[]), "true");
    for off in ["false", "0", "off", "No"] {
        assert_eq!(switch(&[], &[("QERNEL_ARG_NO_MMAP", off)]), "false");
        assert_eq!(switch(&["--no-mmap"], &[("QERNEL_ARG_NO_MMAP", off)]), "true");
    }
    assert_eq!(switch(&["--no-mmap=false"], &[]), "false");
    assert_eq!(switch(&["--no-mmap=false"], &[("QERNEL_ARG_NO_MMAP", "1")]), "false");
    assert_eq!(Place::with("").value("chat", "no-mmap", &[], &[("QERNEL_ARG_NO_MMAP", "on")]).0, "true");
    place
        .command(&["chat", "--no-mmap=perhaps"])
        .assert()
        .code(2)
        .stderr(predicate::str::contains("perhaps"));
}

/// The options reach the command, and not only what is printed of them.
#[test]
fn commands_do_what_the_file_says() {
    let place = Place::with("[model]\ndevice = \"cpu\"\n[generate]\nmax-tokens = 3\njson = true\nseed = 1\n");
    let run = |args: &[&str], variables: &[(&str, &str)]| {
        let mut command = place.command(&[&["generate", "--ignore-eos", "Hi"], args].concat());
        let output = command.envs(variables.iter().copied()).assert().success().get_output().stdout.clone();
        String::from_utf8(output).unwrap()
    };
    let ids = |text: &str| -> Vec<u32> {
        let answer: serde_json::Value = serde_json::from_str(text).unwrap();
        serde_json::from_value(answer["ids"].clone()).unwrap()
    };
    let tokens = |text: &str| ids(text).len();
    assert_eq!(tokens(&run(&[], &[])), 3);
    assert_eq!(tokens(&run(&["-n", "2"], &[])), 2);
    assert_eq!(tokens(&run(&[], &[("QERNEL_ARG_GENERATE_MAX_TOKENS", "4")])), 4);
    assert!(!run(&["--json=false"], &[]).contains("prompt_ids"));
    assert_eq!(ids(&run(&[], &[])), ids(&run(&["--seed", "1"], &[])), "the seed is the file's");
}

#[test]
fn an_option_that_excludes_another_drops_what_is_below_it() {
    let place = Place::with("[model]\nrope-scale = 2.0\n[generate]\ngrammar = \"root ::= \\\"x\\\"\"\n");
    let value = |option: &str, flags: &[&str]| place.value("generate", option, flags, &[]).0;
    assert_eq!((value("rope-scale", &[]), value("grammar", &[])), ("2.0".into(), "root ::= \"x\"".into()));
    assert_eq!(value("rope-scale", &["--rope-freq-scale", "0.5"]), "-");
    assert_eq!(value("grammar", &["--ignore-eos"]), "-");
    assert_eq!(value("grammar", &["--ignore-eos=false"]), "root ::= \"x\"");
    let both = Place::with("[model]\nrope-scale = 2.0\nrope-freq-scale = 0.5\n");
    both.command(&["inspect"]).assert().code(2).stderr(
        predicate::str::contains("exclude each other")
            .and(predicate::str::contains(both.line(2)))
            .and(predicate::str::contains(both.line(3))),
    );
}

#[test]
fn what_is_wrong_in_a_file_is_named_by_its_line() {
    for (text, line, says) in [
        ("[serve]\nprot = 1", 2, "there is no option `prot` in [serve]; the nearest by name is `port`"),
        ("[serve]\n\nctx_size = 1", 3, "the nearest by name is `ctx-size`"),
        ("port = 1", 1, "there is no option `port` before all tables; there is one in [serve]"),
        ("[serv]\nport = 1", 1, "there is no table [serv]; the nearest by name is `serve`"),
        (
            "[lab.bench]\nseed = 1\n[lab.bensh]",
            3,
            "there is no table [lab.bensh]; the nearest by name is `bench`",
        ),
        ("[serve]\nconfig = \"x\"", 2, "there is no option `config`"),
        ("[serve]\nport = \"many\"", 2, "port: invalid value 'many' for '--port"),
        ("[serve]\nport = 70000", 2, "70000 is not in 0..=65535"),
        ("[serve]\nport = true", 2, "port: expected a text or a number, found true or false"),
        ("[serve]\nport = [1, 2]", 2, "port: expected a text or a number, found an array"),
        ("[serve]\nport.x = 1", 2, "port: expected a text or a number, found a table"),
        ("[model]\nno-mmap = 1", 2, "no-mmap: expected true or false, found a number"),
        ("[model]\nno-mmap = \"true\"", 2, "no-mmap: expected true or false, found a text"),
        ("verbose = 300", 1, "verbose: expected a number from 0 to 255"),
        (
            "log-format = \"yaml\"",
            1,
            "invalid value 'yaml' for '--log-format <FORMAT>' [possible values: text, json]",
        ),
        ("[serve]\ncors = [1979-05-27]", 2, "found a date or time"),
        ("[sampling]\ntemp = 1\ntemperature = 1", 3, "under another name too"),
        ("[serve]\nport = 1\nport = 2", 3, "duplicate key"),
        ("[serve\nport = 1", 1, ""),
        ("[serve]\nport = \n", 2, ""),
    ] {
        let place = Place::with(text);
        let expected = format!("qernel: {}: ", place.line(line));
        let says = predicate::str::starts_with(expected).and(predicate::str::contains(says));
        // Whichever command is called: a file is right or wrong.
        place.command(&["doctor"]).assert().code(2).stdout("").stderr(says);
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let place = Place::with("");
    let run = |path: &std::path::Path| {
        let mut command = qernel();
        command.arg("doctor").env("QERNEL_CONFIG", path);
        command.assert()
    };
    run(&place.folder.path().join("absent.toml")).code(1).stderr(predicate::str::contains("absent.toml"));
    run(place.folder.path()).code(1).stderr(predicate::str::contains("directory"));
    std::fs::write(&place.file, b"[serve]\nhost = \"\xFF\"").unwrap();
    run(&place.file).code(2).stderr(predicate::str::contains("expected UTF-8 text"));
    std::fs::write(&place.file, vec![b'\n'; (1 << 20) + 1]).unwrap();
    run(&place.file).code(2).stderr(predicate::str::contains("expected at most 1048576 bytes"));
    std::fs::write(&place.file, "[".repeat(100_000)).unwrap();
    run(&place.file).code(2);
    // Help needs no file.
    place
        .command(&["serve", "--help"])
        .assert()
        .success()
        .stdout(predicate::str::contains("[default: 8080]"));
}

#[test]
fn a_variable_of_no_option_is_told() {
    for (name, value, says) in [
        (
            "QERNEL_ARG_SERVE_PROT",
            "1",
            "there is no such option; the nearest by name is QERNEL_ARG_SERVE_PORT",
        ),
        ("QERNEL_ARG_SERVE_PORT", "x", "invalid value 'x' for '--port"),
        ("QERNEL_ARG_NO_MMAP", "2", "expected true or false, found \"2\""),
    ] {
        let mut command = qernel();
        let says = predicate::str::contains(format!("{name}: ")).and(predicate::str::contains(says));
        command.arg("doctor").env(name, value).assert().code(2).stderr(says);
    }
    // What Kubernetes says of a service is not for the program.
    let mut command = qernel();
    let port = ("QERNEL_SERVE_PORT", "tcp://10.0.0.1:80");
    command.args(["config", "serve"]).envs([port]).assert().success();
}

#[test]
fn the_users_file_comes_before_the_machines_and_the_working_directory_has_none() {
    let place = Place::with("[serve]\nport = 1\n");
    let file_of = |folder: &str| {
        let folder = place.folder.path().join(folder).join("qernel");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("qernel.toml"), "[serve]\nport = 2\n").unwrap();
    };
    file_of("xdg");
    file_of("home/.config");
    let run = |variables: &[(&str, &str)]| {
        let mut command = qernel();
        command.env_remove("QERNEL_CONFIG").env_remove("XDG_CONFIG_HOME").env_remove("HOME");
        for (name, folder) in variables {
            command.env(name, place.folder.path().join(folder));
        }
        let output = command.current_dir(place.folder.path()).args(["config", "serve"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(found(&run(&[("HOME", "home")]), "port").1.contains("home/.config/qernel/qernel.toml:2"));
    assert!(found(&run(&[("HOME", "home"), ("XDG_CONFIG_HOME", "xdg")]), "port").1.contains("xdg/qernel"));
    // Unless the machine that runs the test has a file of its own.
    if !std::path::Path::new("/etc/qernel/qernel.toml").exists() {
        let text = run(&[("HOME", "nobody")]);
        assert_eq!(found(&text, "port"), ("8080".into(), "default".into()));
        assert!(text.starts_with("file: none (") && text.contains("/etc/qernel/qernel.toml)"), "{text}");
    }
}

#[test]
fn secrets_are_not_shown() {
    let place = Place::with("[serve]\napi-key = \"opensesame\"\n");
    for args in [&["config", "serve"][..], &["config"], &["config", "--toml"], &["config", "serve", "--toml"]]
    {
        let shown = predicate::str::contains("opensesame").not().and(predicate::str::contains("not shown"));
        place.command(args).assert().success().stdout(shown);
        let empty = Place::with("");
        let mut command = empty.command(args);
        let shown =
            predicate::str::contains("opensesame").not().and(predicate::str::contains("QERNEL_API_KEY"));
        command.env("QERNEL_API_KEY", "opensesame").assert().success().stdout(shown);
    }
}

#[test]
fn the_file_that_is_printed_says_the_same() {
    let place = Place::with(ALL);
    let printed = |place: &Place, args: &[&str]| {
        let output = place.command(args).assert().success().get_output().stdout.clone();
        String::from_utf8(output).unwrap()
    };
    let without_places = |text: &str| -> Vec<(String, String)> {
        let lines = text.lines().skip(1).filter(|line| line.contains("  "));
        let words = lines.map(|line| line.split("  ").map(str::trim).filter(|word| !word.is_empty()));
        let pairs =
            words.map(|mut words| (words.next().unwrap().to_owned(), words.next().unwrap().to_owned()));
        // In whichever table they are.
        let mut pairs: Vec<_> = pairs.collect();
        pairs.sort();
        pairs
    };
    let serve = &["config", "serve"][..];
    for (args, of) in [
        (&["config", "--toml"][..], &[serve, &["config"], &["config", "lab", "bench"]][..]),
        (&["config", "serve", "--toml"], &[serve]),
    ] {
        let copy = Place::with(&printed(&place, args));
        for command in of {
            let [ours, theirs] = [&place, &copy].map(|place| without_places(&printed(place, command)));
            assert!(ours.len() >= 4, "{ours:?}");
            assert_eq!(ours, theirs, "{args:?} {command:?}");
        }
    }
    // Without anything said all is in comments, and is right when the marks are taken away.
    let text = printed(&Place::with(""), &["config", "--toml"]);
    let is_comment = |line: &str| line.is_empty() || line.starts_with(['#', '[']);
    assert!(text.lines().count() > 300 && text.lines().all(is_comment), "{text}");
    let is_set = |line: &&str| line.starts_with('[') || (line.starts_with("# ") && line.contains(" = "));
    let active: Vec<&str> = text.lines().filter(is_set).map(|line| line.trim_start_matches("# ")).collect();
    let active: Vec<&str> = active.into_iter().filter(|line| !line.contains(": ")).collect();
    assert!(active.contains(&"port = 8080") && active.contains(&"temp = 0.8"), "{active:?}");
    Place::with(&active.join("\n")).command(&["config"]).assert().success();
}
