//! ARCHITECTURE.md's table of rooms against the source: every file below `engine/` is in a room, rooms import what the table says and
//! nothing else, and no way along imports leads back.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A row of the table.
struct Room {
    name: String,
    /// Files, or folders with a slash at the end.
    places: Vec<String>,
    imports: BTreeSet<String>,
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What stands between backticks.
fn quoted(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The rows of the table below "## Rooms" whose room is below `engine/`.
fn table() -> Vec<Room> {
    let text = fs::read_to_string(repository().join("ARCHITECTURE.md")).unwrap();
    let section = text.split("## Rooms").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| **"));
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, name, places, _, imports, _] = cells[..] else { panic!("not four cells: {row}") };
        let mut folder = "";
        let places = quoted(places);
        // A path without a folder is in that of the path before it.
        let places = places.iter().map(|place| match place.trim_end_matches('/').rsplit_once('/') {
            Some((before, _)) => {
                folder = before;
                place.clone()
            }
            None => format!("{folder}/{place}"),
        });
        Room {
            name: name.trim_matches('*').to_owned(),
            places: places.collect(),
            imports: imports.split(", ").filter(|name| !name.is_empty()).map(str::to_owned).collect(),
        }
    })
    .filter(|room| room.places.iter().all(|place| place.starts_with("engine/")))
    .collect()
}

/// Every Rust file below a folder, as a path from the repository.
fn rust_files(folder: &str) -> Vec<String> {
    let mut folders = vec![PathBuf::from(folder)];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(repository().join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let path = folder.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                files.push(path.to_str().unwrap().replace('\\', "/"));
            }
        }
    }
    files
}

/// The room of a file: of the longest place that it is in.
fn room_of<'a>(rooms: &'a [Room], file: &str) -> Option<&'a str> {
    let is_in = |place: &str| file == place || (place.ends_with('/') && file.starts_with(place));
    let places = rooms.iter().flat_map(|room| room.places.iter().map(move |place| (place, &room.name)));
    places.filter(|(place, _)| is_in(place)).max_by_key(|(place, _)| place.len()).map(|(_, name)| &name[..])
}

/// The folder of the crate that a file is in.
fn crate_of(file: &str) -> &str {
    let folder = file.split_inclusive('/').take(2).map(str::len).sum();
    let folder = file[..folder].trim_end_matches('/');
    if repository().join(folder).join("Cargo.toml").is_file() { folder } else { "engine" }
}

/// The source without comments and without the tests at its end; none of a file of tests.
fn code(file: &str) -> String {
    if file.ends_with("/tests.rs") {
        return String::new();
    }
    let text = fs::read_to_string(repository().join(file)).unwrap();
    let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The first words of all paths that begin with `before` (and `::`).
fn paths<'a>(code: &'a str, before: &str) -> BTreeSet<&'a str> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let begins = format!("{before}::");
    let places = code.match_indices(&begins).filter(|(i, _)| !code[..*i].ends_with(is_word));
    places.map(|(i, _)| code[i + begins.len()..].split(|c| !is_word(c)).next().unwrap_or_default()).collect()
}

/// The rooms that a file imports: by paths from its own crate's root, under which the core's modules and the crates below it may
/// stand too, and by paths from other crates.
fn imports<'a>(rooms: &'a [Room], file: &str) -> BTreeSet<&'a str> {
    let code = code(file);
    let own = crate_of(file);
    let module = |folder: &str, name: &str| {
        let in_file = room_of(rooms, &format!("{folder}/{name}.rs"));
        in_file.or_else(|| room_of(rooms, &format!("{folder}/{name}/lib.rs")))
    };
    let mut found = BTreeSet::new();
    for name in paths(&code, "crate") {
        let is_own =
            ["", ".rs", "/mod.rs"].iter().any(|end| repository().join(format!("{own}/{name}{end}")).exists());
        let is_core =
            ["", ".rs"].iter().any(|end| repository().join(format!("engine/core/{name}{end}")).exists());
        found.extend(match (name, is_own, is_core) {
            ("Error" | "Result", ..) => room_of(rooms, "engine/core/error.rs"),
            (_, true, _) => module(own, name),
            (_, _, true) => module("engine/core", name),
            ("embedded", ..) => room_of(rooms, "engine/load/embedded.rs"),
            _ if repository().join(format!("engine/{name}")).is_dir() => module("engine", name),
            // An item of the crate's root.
            _ => room_of(rooms, &format!("{own}/lib.rs")),
        });
    }
    for name in paths(&code, "qernel_core") {
        let name = if matches!(name, "Error" | "Result") { "error" } else { name };
        found.extend(module("engine/core", name));
    }
    for name in ["cuda", "hub", "jinja", "lab", "load", "ptx", "server"] {
        if !paths(&code, &format!("qernel_{name}")).is_empty() {
            found.extend(module("engine", name));
        }
    }
    found
}

#[test]
fn rooms_import_what_the_table_says_and_no_more() {
    let rooms = table();
    assert!(rooms.len() > 10, "the table has {} rooms", rooms.len());
    let mut found: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut problems = Vec::new();
    for file in rust_files("engine") {
        // Lists of modules, and what a build script does before any room exists.
        if ["engine/lib.rs", "engine/main.rs", "engine/core/lib.rs"].contains(&&file[..])
            || file.ends_with("/build.rs")
        {
            continue;
        }
        let Some(room) = room_of(&rooms, &file) else {
            problems.push(format!("{file} is in no room"));
            continue;
        };
        let allowed = &rooms.iter().find(|known| known.name == room).unwrap().imports;
        for import in imports(&rooms, &file).into_iter().filter(|&import| import != room) {
            found.entry(room).or_default().insert(import);
            if !allowed.contains(import) {
                problems.push(format!("{file}: {room} imports {import}"));
            }
        }
    }
    for room in &rooms {
        let found = found.remove(&room.name[..]).unwrap_or_default();
        for import in room.imports.iter().filter(|import| !found.contains(&import[..])) {
            problems.push(format!("{} does not import {import}, as the table says", room.name));
        }
    }
    assert!(problems.is_empty(), "ARCHITECTURE.md's rooms differ:\n{}", problems.join("\n"));
}

#[test]
fn no_way_along_imports_leads_back() {
    let mut rooms = table();
    // Who imports nothing that is left is taken away; what stays is a circle.
    loop {
        let names: BTreeSet<String> = rooms.iter().map(|room| room.name.clone()).collect();
        let before = rooms.len();
        rooms.retain(|room| room.imports.iter().any(|import| names.contains(import)));
        if rooms.len() == before {
            break;
        }
    }
    let left: Vec<_> = rooms.iter().map(|room| &room.name).collect();
    assert!(rooms.is_empty(), "a circle among {left:?}");
}

#[test]
fn paths_are_found_and_comments_and_tests_are_not() {
    assert_eq!(
        paths("use crate::a::B; mycrate::c; x(crate::d::e) crate::{f}", "crate"),
        BTreeSet::from(["", "a", "d"])
    );
    let ops = code("engine/core/ops.rs");
    assert!(ops.contains("pub trait Ops") && !ops.contains("//!"));
}
