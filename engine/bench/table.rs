//! Rows as text, each as soon as its test is done: a run that is ended early leaves what it measured.

use super::compare::COMPARISON;
use super::row::{Facts, Row};
use super::start_up::{PARTS, PARTS_MEAN};
use serde_json::{Map, Value};

/// llama-bench's formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A Markdown table.
    Md,
    /// A line of titles, then a line a test; without samples.
    Csv,
    /// An array of objects.
    Json,
    /// An object a line.
    Jsonl,
}

/// Turns rows into text. The pieces, one after the other, are the whole.
pub struct Printer {
    format: Format,
    /// A stored run stands beside.
    compared: bool,
    /// Characters of the longest test's name.
    test_width: usize,
    num_rows: usize,
    /// The fields of a CSV file, which are those of its first row.
    titles: Vec<String>,
}

/// A Markdown column: its title, its width and whether it is aligned to the left.
type Column = (&'static str, usize, bool);

impl Printer {
    /// A printer of rows whose tests have names of up to `test_width` characters.
    pub fn new(format: Format, compared: bool, test_width: usize) -> Self {
        Self { format, compared, test_width: test_width.max(4), num_rows: 0, titles: Vec::new() }
    }

    /// What comes before the first row.
    pub fn begin(&self, facts: &Facts) -> String {
        match self.format {
            Format::Md => {
                let columns = self.columns(facts);
                let title = |&(title, width, left): &Column| pad(title, width, left);
                let rule = |&(_, width, left): &Column| match left {
                    true => "-".repeat(width),
                    false => format!("{}:", "-".repeat(width - 1)),
                };
                line(columns.iter().map(title)) + &line(columns.iter().map(rule))
            }
            Format::Json => "[\n".into(),
            Format::Csv | Format::Jsonl => String::new(),
        }
    }

    /// A row, with what separates it from the one before.
    pub fn row(&mut self, row: &Row) -> String {
        self.num_rows += 1;
        match self.format {
            Format::Md => {
                let columns = self.columns(&row.facts);
                line(
                    columns
                        .iter()
                        .zip(self.cells(row))
                        .map(|(&(_, width, left), cell)| pad(&cell, width, left)),
                )
            }
            Format::Csv => {
                let object = object(row);
                let mut text = String::new();
                if self.num_rows == 1 {
                    self.titles = object
                        .iter()
                        .filter(|(_, value)| !value.is_array())
                        .map(|(name, _)| name.clone())
                        .collect();
                    // The first row may be one of those that the stored run lacks.
                    let compared = COMPARISON.iter().filter(|_| self.compared && row.comparison.is_none());
                    self.titles.extend(compared.map(|&name| name.to_owned()));
                    text = self.titles.join(",") + "\n";
                }
                text + &csv_line(self.titles.iter().map(|name| object.get(name).cloned()))
            }
            Format::Json => {
                let separator = if self.num_rows > 1 { ",\n" } else { "" };
                format!("{separator}{}", Value::Object(object(row)))
            }
            Format::Jsonl => format!("{}\n", Value::Object(object(row))),
        }
    }

    /// What comes after the last row.
    pub fn end(&self, facts: &Facts) -> String {
        match self.format {
            Format::Md => notes(facts),
            Format::Json => "\n]\n".into(),
            Format::Csv | Format::Jsonl => String::new(),
        }
    }

    fn columns(&self, facts: &Facts) -> Vec<Column> {
        let mut columns = vec![
            ("model", facts.model_type.chars().count().max(5), true),
            ("size", 10, false),
            ("params", 10, false),
            ("backend", 8, true),
        ];
        if facts.gpu_info.is_empty() {
            columns.push(("threads", 7, false));
        }
        columns.extend([
            ("test", self.test_width, false),
            ("t/s", 19, false),
            ("median", 17, false),
            ("floor", 10, false),
            ("bandwidth", 9, false),
        ]);
        if self.compared {
            columns.extend([("stored t/s", 26, false), ("x stored", 13, false)]);
        }
        columns
    }

    fn cells(&self, row: &Row) -> Vec<String> {
        let facts = &row.facts;
        let mut cells = vec![
            facts.model_type.clone(),
            format!(
                "{:.2} {}",
                scaled(facts.model_size, 1024.0).0,
                ["B", "KiB", "MiB", "GiB"][scaled(facts.model_size, 1024.0).1]
            ),
            format!(
                "{:.2} {}",
                scaled(facts.model_n_params, 1000.0).0,
                ["", "K", "M", "B"][scaled(facts.model_n_params, 1000.0).1]
            ),
            facts.backends.to_owned(),
        ];
        if facts.gpu_info.is_empty() {
            cells.push(facts.n_threads.to_string());
        }
        let none = || "-".to_owned();
        cells.extend([
            row.test.clone(),
            format!("{:.2} ± {:.2}", row.avg_ts, row.stddev_ts),
            if row.bytes_per_step.is_some() {
                format!("{} /step", time(row.step_us))
            } else {
                time(row.median_ns as f64 / 1e3)
            },
            row.floor_us.map_or_else(none, time),
            row.bandwidth_percent.map_or_else(none, |percent| format!("{percent:.1} %")),
        ]);
        if self.compared {
            match &row.comparison {
                Some(comparison) => cells.extend([
                    format!(
                        "{} {:.2} ± {:.2}",
                        comparison.compare_engine, comparison.compare_ts, comparison.compare_stddev_ts
                    ),
                    format!("{:.3} ± {:.3}", comparison.compare_ratio, comparison.compare_ratio_stddev),
                ]),
                None => cells.extend([none(), none()]),
            }
        }
        cells
    }
}

/// What holds for all rows, for people.
pub fn notes(facts: &Facts) -> String {
    let device = if facts.gpu_info.is_empty() { &facts.cpu_info } else { &facts.gpu_info };
    let mut notes = format!(
        "\n{device}; {}; {} included; t/s: mean ± standard deviation\n",
        facts.sampling, facts.included
    );
    if let Some(rate) = facts.read_bandwidth {
        notes += &format!(
            "read bandwidth measured in this run: {:.1} GB/s; floor: weights once a step, and K and V of all sequences, at \
             that rate\n",
            rate / 1e9
        );
    }
    if let Some(start) = &facts.start_up {
        notes += &format!(
            "from process start to first token: {:.1} ± {:.1} ms (median {:.1})",
            start.first_token_avg_ms, start.first_token_stddev_ms, start.first_token_median_ms
        );
        for (name, ms) in PARTS.iter().zip(start.first_token_parts_ms) {
            notes += &format!(", {name} {ms:.1}");
        }
        notes += &format!("\n  ({PARTS_MEAN}; vocabulary read after {:.1} ms)\n", start.vocabulary_ms);
    }
    notes
}

fn pad(text: &str, width: usize, left: bool) -> String {
    if left { format!("{text:<width$}") } else { format!("{text:>width$}") }
}

fn line(cells: impl Iterator<Item = String>) -> String {
    let cells: Vec<String> = cells.collect();
    format!("| {} |\n", cells.join(" | "))
}

/// A number below `base`, and how often it was divided by `base`, at most three times.
fn scaled(value: u64, base: f64) -> (f64, usize) {
    let (mut value, mut times) = (value as f64, 0);
    while value >= base && times < 3 {
        value /= base;
        times += 1;
    }
    (value, times)
}

/// Microseconds with a unit that leaves four digits.
fn time(us: f64) -> String {
    match us {
        us if us >= 1e6 => format!("{:.3} s", us / 1e6),
        us if us >= 1e4 => format!("{:.2} ms", us / 1e3),
        us => format!("{us:.1} µs"),
    }
}

/// The row's fields, flattened.
fn object(row: &Row) -> Map<String, Value> {
    match serde_json::to_value(row) {
        Ok(Value::Object(object)) => object,
        _ => unreachable!("a row is a struct with string keys"),
    }
}

/// Quoted as RFC 4180 has it.
fn csv_line(values: impl Iterator<Item = Option<Value>>) -> String {
    let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    let fields = values.map(|value| match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => quoted(&text),
        Some(value) => quoted(&value.to_string()),
    });
    fields.collect::<Vec<_>>().join(",") + "\n"
}

#[cfg(test)]
mod tests {
    use super::super::compare::Comparison;
    use super::super::plan::Test;
    use super::super::row::tests::{facts, row};
    use super::*;

    fn rows() -> [Row; 2] {
        let tg = Test { n_prompt: 0, n_gen: 4, n_depth: 0, n_parallel: 1 };
        let pp = Test { n_prompt: 512, n_gen: 0, ..tg };
        [row(&pp, &[0.02, 0.02]), row(&tg, &[0.01, 0.02, 0.01])]
    }

    fn print(format: Format) -> String {
        let mut printer = Printer::new(format, false, 5);
        let begin = printer.begin(&facts());
        let rows: Vec<String> = rows().iter().map(|row| printer.row(row)).collect();
        begin + &rows.concat() + &printer.end(&facts())
    }

    #[test]
    fn markdown_has_the_columns_of_llama_bench_and_ours() {
        let text = print(Format::Md);
        let lines: Vec<&str> = text.lines().collect();
        let cells =
            |line: &str| -> Vec<String> { line.split('|').map(|cell| cell.trim().to_owned()).collect() };
        assert_eq!(
            cells(lines[0])[1..],
            [
                "model",
                "size",
                "params",
                "backend",
                "threads",
                "test",
                "t/s",
                "median",
                "floor",
                "bandwidth",
                ""
            ]
        );
        assert_eq!(
            cells(lines[2])[1..],
            [
                "m f16",
                "1.50 GiB",
                "494.00 M",
                "CPU",
                "2",
                "pp512",
                "25600.00 ± 0.00",
                "20.00 ms",
                "-",
                "-",
                ""
            ]
        );
        assert_eq!(cells(lines[3])[6..10], ["tg4", "333.33 ± 115.47", "2500.0 µs /step", "1000.3 µs"]);
        assert!(lines[..4].iter().all(|line| line.chars().count() == lines[0].chars().count()), "{text}");
        assert!(text.contains("greedy; sampling, detokenisation included"));
    }

    #[test]
    fn json_is_an_array_and_jsonl_and_csv_have_a_line_a_row() {
        let array: Vec<Map<String, Value>> = serde_json::from_str(&print(Format::Json)).unwrap();
        assert_eq!((array.len(), &array[1]["test"], &array[1]["n_gen"]), (2, &"tg4".into(), &4.into()));
        let lines: Vec<Map<String, Value>> =
            print(Format::Jsonl).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(
            array.iter().map(Map::len).collect::<Vec<_>>(),
            lines.iter().map(Map::len).collect::<Vec<_>>()
        );
        let csv = print(Format::Csv);
        let lines: Vec<&str> = csv.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].starts_with("engine,build_number,") && !lines[0].contains("samples"));
        assert!(lines[2].contains("\"tg4\""));
        let mut printer = Printer::new(Format::Csv, true, 5);
        let [first, mut second] = rows();
        second.comparison = Some(Comparison {
            compare_engine: "peer".into(),
            compare_ts: 3.0,
            compare_stddev_ts: 0.1,
            compare_ratio: 1.5,
            compare_ratio_stddev: 0.1,
        });
        let (first, second) = (printer.row(&first), printer.row(&second));
        assert!(first.lines().next().unwrap().ends_with(&COMPARISON.join(",")), "{first}");
        assert!(
            first.ends_with(",,,,,\n") && second.ends_with(",\"peer\",\"3.0\",\"0.1\",\"1.5\",\"0.1\"\n")
        );
    }

    #[test]
    fn times_and_sizes_have_a_fitting_unit() {
        assert_eq!(
            [2.345, 9999.0, 14_230.0, 2.5e6].map(time),
            ["2.3 µs", "9999.0 µs", "14.23 ms", "2.500 s"]
        );
        assert_eq!((scaled(1023, 1024.0), scaled(7 << 30, 1024.0)), ((1023.0, 0), (7.0, 3)));
    }
}
