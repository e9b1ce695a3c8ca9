//! The PTX of the kernels in `gpu-kernels`, which the build script compiles.
//!
//! It is a crate of its own so that it is compiled beside everything that launches kernels. The program carries one text,
//! compressed, and what the others add to it.

// Printing panics where nobody takes what is printed.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod delta;

use ruzstd::decoding::StreamingDecoder;
use std::io::Read;
use std::sync::OnceLock;

/// The targets that the kernels are compiled for: the first for every device of compute capability 8.0 and later, the second
/// for Hopper alone (compute capability 9.0), as `a` features do not run on any other device.
pub const TARGETS: [&str; 2] = ["sm_80", "sm_90a"];

/// The PTX of the first target as it is run.
static FIRST: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/first.zst"));
/// What makes the PTX of the second target of it.
static SECOND: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/second.zst"));
/// What the source lines add to the PTX of each target.
static LINES: [&[u8]; TARGETS.len()] = [
    include_bytes!(concat!(env!("OUT_DIR"), "/first.lines.zst")),
    include_bytes!(concat!(env!("OUT_DIR"), "/second.lines.zst")),
];

/// One text for each target, unpacked when it is first asked for.
type Texts = [OnceLock<String>; TARGETS.len()];

/// The PTX of a target as it is run, `None` if the kernels are not compiled for it.
pub fn ptx(target: &str) -> Option<&'static str> {
    static TEXTS: Texts = [const { OnceLock::new() }; TARGETS.len()];
    let index = index(target)?;
    Some(TEXTS[index].get_or_init(|| match index {
        0 => unpack(FIRST),
        _ => patch(&unpack(FIRST), SECOND),
    }))
}

/// The PTX of a target with the source line of every instruction (`.loc`), for people; `None` as for [`ptx`].
pub fn ptx_with_lines(target: &str) -> Option<&'static str> {
    static TEXTS: Texts = [const { OnceLock::new() }; TARGETS.len()];
    let (index, plain) = (index(target)?, ptx(target)?);
    Some(TEXTS[index].get_or_init(|| patch(plain, LINES[index])))
}

fn index(target: &str) -> Option<usize> {
    TARGETS.iter().position(|&known| known == target)
}

// What is unpacked here was packed by this crate's build script and comes from no file.

fn unpack(packed: &[u8]) -> String {
    let mut text = String::new();
    let mut decoder = StreamingDecoder::new(packed).expect("the build script compressed it");
    decoder.read_to_string(&mut text).expect("the build script compressed text");
    text
}

fn patch(base: &str, delta: &[u8]) -> String {
    delta::decode(base, &unpack(delta)).expect("the build script made it for this text")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::path::Path;

    fn round_trip(base: &str, text: &str) -> usize {
        let delta = delta::encode(base, text);
        assert_eq!(delta::decode(base, &delta).as_deref(), Some(text), "{delta}");
        delta.len()
    }

    #[test]
    fn a_delta_makes_the_text_of_its_base() {
        let numbers = |range: std::ops::Range<u32>| range.map(|i| format!("{i}\n")).collect::<String>();
        let base = numbers(0..1000);
        assert_eq!(round_trip(&base, &base), "1000\n".len());
        assert_eq!(round_trip(&base, &base.replace("500\n", "500\nmore\n")), "501\n+more\n499\n".len());
        assert_eq!(round_trip(&base, &base.replace("500\n", "else\n")), "500\n+else\n499 1\n".len());
        // Parts in another order, one of them twice.
        let moved = numbers(600..700) + &numbers(0..50) + &numbers(600..700);
        assert!(round_trip(&base, &moved) < 40);
        round_trip(&base, "");
        round_trip("", &base);
        round_trip(&base, "+7\n-3\n\n12 1\n");
    }

    #[test]
    fn what_is_no_delta_of_the_base_is_refused() {
        for bad in ["3", "1 1 1", "x", "-1", "1 -1", "2 1", "18446744073709551615", "1 9223372036854775807"] {
            assert_eq!(delta::decode("a\nb\n", bad), None, "{bad}");
        }
    }

    #[test]
    fn every_target_is_unpacked_and_its_lines_are_all_that_is_added() {
        for target in TARGETS {
            let (plain, lines) = (ptx(target).unwrap(), ptx_with_lines(target).unwrap());
            assert!(plain.contains(&format!(".target {target}")) && !plain.contains("\t.loc\t"));
            assert!(lines.contains("\t.loc\t"));
            assert_eq!(cuda_builder::without_line_info(lines), plain);
        }
        assert_eq!((ptx("sm_75"), ptx_with_lines("sm_75")), (None, None));
    }

    /// How often each kernel has each instruction.
    fn instructions(ptx: &str) -> BTreeMap<&str, BTreeMap<&str, usize>> {
        let mut kernels = BTreeMap::new();
        for text in ptx.split(".entry ").skip(1) {
            let name = text.split(['(', ' ']).next().unwrap_or_default();
            let kernel: &mut BTreeMap<&str, usize> = kernels.entry(name).or_default();
            for line in
                text.split("\n}\n").next().unwrap_or_default().lines().filter(|line| line.ends_with(';'))
            {
                let mut words = line.split_whitespace().map(|word| word.trim_end_matches(';'));
                let first = words.next().unwrap_or_default();
                let word = if first.starts_with('@') { words.next().unwrap_or_default() } else { first };
                // The number of a label depends on the kernels before it.
                if word.starts_with('$') {
                    continue;
                }
                *kernel.entry(word).or_default() += 1;
            }
        }
        kernels
    }

    #[test]
    fn the_first_text_has_what_the_second_has_but_for_what_only_hopper_can_do() {
        let [first, second] = TARGETS.map(|target| instructions(ptx(target).unwrap()));
        assert!(first.len() > 100 && first.len() < second.len());
        for (name, expected) in &first {
            let mut found = second[name].clone();
            found.retain(|word, _| !word.starts_with("griddepcontrol."));
            assert_eq!(&found, expected, "{name}");
        }
    }

    /// What the text for sm_80 is made of was compiled for Hopper, and in parts: that the compiler would choose the same instructions for
    /// all kernels in one piece is looked up here.
    #[test]
    #[ignore = "compiles all kernels once more, for a minute and a half of a core"]
    fn a_text_that_is_compiled_for_sm_80_has_the_instructions_of_the_one_that_is_made() {
        let kernels = concat!(env!("CARGO_MANIFEST_DIR"), "/../../gpu-kernels");
        let folder = Path::new(env!("OUT_DIR")).join("sm_80");
        let builder = cuda_builder::CudaBuilder::new(kernels).arch(cuda_builder::NvvmArch::Compute80);
        let file = builder.out_dir(folder).build().unwrap_or_else(|error| panic!("{error}"));
        let compiled = std::fs::read_to_string(file.path).unwrap();
        assert_eq!(instructions(ptx("sm_80").unwrap()), instructions(&compiled));
    }
}
