//! The time to the first token over the load, for light and dark screens.

use qernel::drawing::{Axis, STYLE, colour, escape, power_of_ten};
use std::fmt::{self, Write};

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 96.0;
const BOTTOM: f64 = 52.0;

/// One way of running a fleet: turns a second of a GPU, and seconds to the first token.
pub struct Line {
    pub name: &'static str,
    pub points: Vec<(f64, f64)>,
}

/// The drawing. What is overloaded differs by orders of magnitude from what is not, so that the axis of times is logarithmic.
pub fn plot(lines: &[Line]) -> String {
    let mut svg = String::new();
    write_plot(&mut svg, lines).expect("strings take everything");
    svg
}

/// The sixth colour is a second blue.
fn colour_of(line: usize) -> String {
    colour(line + line / 5)
}

fn write_plot(out: &mut String, lines: &[Line]) -> fmt::Result {
    let all = || lines.iter().flat_map(|line| &line.points);
    let bottom = HEIGHT - BOTTOM;
    let y = Axis::new(all().map(|(_, seconds)| 1000.0 * seconds), bottom, TOP);
    let most = all().fold(0.0, |most: f64, (load, _)| most.max(*load));
    let x = |load: f64| LEFT + load / most * (WIDTH - RIGHT - LEFT);
    writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         aria-label=\"Time to the first token over the load of ten GPUs\" font-family=\"system-ui, sans-serif\">\n<style>\n{STYLE}\
         .title {{ fill: var(--ink); font-size: 16px; font-weight: 600; }}\n\
         polyline {{ fill: none; stroke-width: 2; }}\n</style>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"var(--page)\"/>\n\
         <text class=\"title\" x=\"16\" y=\"26\">Time to the first token, 99 of 100, ten H200s with 7B in bf16 (simulated)</text>"
    )?;
    for (i, line) in lines.iter().enumerate() {
        let (at, middle) = (16.0 + 250.0 * (i % 3) as f64, 48.0 + 20.0 * (i / 3) as f64);
        writeln!(
            out,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"5\" fill=\"{}\"/><text x=\"{:.1}\" y=\"{middle:.1}\">{}</text>",
            at + 5.0,
            middle - 4.0,
            colour_of(i),
            at + 16.0,
            escape(line.name)
        )?;
    }
    for (place, exponent) in y.decades() {
        writeln!(
            out,
            "<line class=\"gridline\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{place:.1}\" y2=\"{place:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{} ms</text>",
            WIDTH - RIGHT,
            LEFT - 8.0,
            place + 4.5,
            power_of_ten(exponent)
        )?;
    }
    for (load, _) in lines.first().map_or(&[][..], |line| &line.points[..]) {
        let place = x(*load);
        writeln!(
            out,
            "<line class=\"axis\" x1=\"{place:.1}\" x2=\"{place:.1}\" y1=\"{TOP}\" y2=\"{bottom:.1}\"/>\
             <text x=\"{place:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{load}</text>",
            bottom + 18.0
        )?;
    }
    writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">turns a second of each GPU</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        bottom + 40.0
    )?;
    for (i, line) in lines.iter().enumerate() {
        let points: Vec<(f64, f64)> =
            line.points.iter().map(|(load, seconds)| (x(*load), y.place(1000.0 * seconds))).collect();
        let path: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        writeln!(out, "<g><polyline points=\"{}\" stroke=\"{}\"/>", path.join(" "), colour_of(i))?;
        for ((x, y), (load, seconds)) in points.iter().zip(&line.points) {
            writeln!(
                out,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{}\"><title>{}: {load} turns/s, {:.0} ms</title></circle>",
                colour_of(i),
                escape(line.name),
                1000.0 * seconds
            )?;
        }
        writeln!(out, "</g>")?;
    }
    writeln!(out, "</svg>")
}
