//! Tokens a second of every test as one SVG, for light and dark screens.

use super::row::{Facts, Row};
use crate::drawing::{Axis, STYLE, colour, escape, power_of_ten};
use std::fmt::{self, Write};

const WIDTH: f64 = 760.0;
const LEFT: f64 = 190.0;
const RIGHT: f64 = 30.0;
const TOP: f64 = 74.0;
/// Of a test.
const ROW: f64 = 30.0;
const BOTTOM: f64 = 48.0;

/// One speed: mean and standard deviation, with what it is.
#[derive(Clone)]
struct Point<'a> {
    speed: f64,
    stddev: f64,
    label: &'a str,
    colour: String,
    /// Below the middle of the row.
    offset: f64,
}

/// The drawing. Speeds of tests differ by orders of magnitude, so the axis is logarithmic and values are points.
pub fn plot(facts: &Facts, rows: &[Row]) -> String {
    let mut svg = String::new();
    write_plot(&mut svg, facts, rows).expect("strings take everything");
    svg
}

fn points(row: &Row) -> Vec<Point<'_>> {
    let here = Point {
        speed: row.avg_ts,
        stddev: row.stddev_ts,
        label: row.facts.engine,
        colour: colour(0),
        offset: if row.comparison.is_some() { -5.0 } else { 0.0 },
    };
    let stored = row.comparison.as_ref().map(|stored| Point {
        speed: stored.compare_ts,
        stddev: stored.compare_stddev_ts,
        label: &stored.compare_engine,
        colour: colour(1),
        offset: 5.0,
    });
    std::iter::once(here).chain(stored).collect()
}

fn write_plot(out: &mut String, facts: &Facts, rows: &[Row]) -> fmt::Result {
    let bottom = TOP + ROW * rows.len() as f64;
    let height = bottom + BOTTOM;
    let all = || rows.iter().flat_map(points);
    let x = Axis::new(all().map(|point| point.speed), LEFT, WIDTH - RIGHT);
    let device = if facts.gpu_info.is_empty() { &facts.cpu_info } else { &facts.gpu_info };
    let title = format!("{}, {}", facts.model_type, device);
    writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
         aria-label=\"Tokens a second of each test\" font-family=\"system-ui, sans-serif\">\n<style>\n{STYLE}\
         .title {{ fill: var(--ink); font-size: 16px; font-weight: 600; }}\n\
         .test {{ fill: var(--ink); }}\n</style>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"var(--page)\"/>\n\
         <text class=\"title\" x=\"16\" y=\"26\">{}</text>",
        escape(&title)
    )?;
    let mut labels: Vec<(String, String)> = Vec::new();
    for point in all() {
        if !labels.iter().any(|(label, _)| label == point.label) {
            labels.push((point.label.to_owned(), point.colour));
        }
    }
    let mut place = 16.0;
    for (label, colour) in &labels {
        writeln!(
            out,
            "<circle cx=\"{:.1}\" cy=\"46\" r=\"5\" fill=\"{colour}\"/><text x=\"{:.1}\" y=\"50\">{}</text>",
            place + 5.0,
            place + 16.0,
            escape(label)
        )?;
        place += 40.0 + 8.0 * label.chars().count() as f64;
    }
    for (place, exponent) in x.decades() {
        writeln!(
            out,
            "<line class=\"axis\" x1=\"{place:.1}\" x2=\"{place:.1}\" y1=\"{TOP}\" y2=\"{bottom:.1}\"/>\
             <text x=\"{place:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            bottom + 18.0,
            power_of_ten(exponent)
        )?;
    }
    writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">tokens/s, mean ± standard deviation</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        bottom + 38.0
    )?;
    for (i, row) in rows.iter().enumerate() {
        let middle = TOP + ROW * (i as f64 + 0.5);
        writeln!(
            out,
            "<text class=\"test\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <line class=\"gridline\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\"/>",
            LEFT - 10.0,
            middle + 4.5,
            escape(&row.test),
            WIDTH - RIGHT
        )?;
        for point in points(row) {
            write_point(out, &x, middle + point.offset, &point)?;
        }
    }
    writeln!(out, "</svg>")
}

fn write_point(out: &mut String, x: &Axis, y: f64, point: &Point<'_>) -> fmt::Result {
    let at = x.place(point.speed);
    // A deviation as large as the speed itself would reach to minus infinity.
    let low = x.place((point.speed - point.stddev).max(point.speed / 10.0)).max(LEFT);
    let high = x.place(point.speed + point.stddev).min(WIDTH - RIGHT);
    let label = format!("{}: {:.1} ± {:.1} tokens/s", point.label, point.speed, point.stddev);
    let (before, anchor) = if at > WIDTH - RIGHT - 90.0 { (-10.0, "end") } else { (10.0, "start") };
    let edge = if anchor == "end" { low.min(at) } else { high.max(at) };
    writeln!(
        out,
        "<g><title>{}</title>\
         <line class=\"whisker\" x1=\"{low:.1}\" x2=\"{high:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
         <line class=\"whisker\" x1=\"{low:.1}\" x2=\"{low:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>\
         <line class=\"whisker\" x1=\"{high:.1}\" x2=\"{high:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>\
         <circle cx=\"{at:.1}\" cy=\"{y:.1}\" r=\"4.5\" fill=\"{}\"/>\
         <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text></g>",
        escape(&label),
        y - 4.0,
        y + 4.0,
        y - 4.0,
        y + 4.0,
        point.colour,
        edge + before,
        y + 4.5,
        speed(point.speed)
    )
}

/// Three digits at least.
fn speed(value: f64) -> String {
    let digits = match value {
        value if value < 10.0 => 2,
        value if value < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::super::plan::Test;
    use super::super::row::tests::{facts, row};
    use super::*;

    #[test]
    fn every_test_has_its_points_inside_the_drawing() {
        let test = Test { n_prompt: 0, n_gen: 4, n_depth: 0, n_parallel: 1 };
        let fast = row(&Test { n_prompt: 512, n_gen: 0, n_depth: 9, ..test }, &[0.01, 0.012]);
        let mut slow = row(&test, &[4.0, 0.1]);
        slow.comparison = Some(super::super::compare::Comparison {
            compare_engine: "<peer>".into(),
            compare_ts: 3.0,
            compare_stddev_ts: 0.1,
            compare_ratio: 1.0,
            compare_ratio_stddev: 0.1,
        });
        let svg = plot(&facts(), &[fast, slow]);
        assert_eq!(svg.matches("<circle").count(), 5, "three points, two in the legend");
        assert!(svg.contains("pp512 @ d9") && svg.contains("&lt;peer&gt;: 3.0 ± 0.1 tokens/s"));
        for attribute in ["cx", "x1", "x2"] {
            for value in svg.split(&format!("{attribute}=\"")).skip(1) {
                let value: f64 = value.split('"').next().unwrap().parse().unwrap();
                assert!((0.0..=WIDTH).contains(&value), "{attribute}={value}");
            }
        }
    }
}
