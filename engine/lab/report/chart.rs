//! Bars and rooflines as SVG.

use super::seconds;
use crate::drawing::{Axis, colour, escape, power_of_ten};
use crate::lab::run::{Ceilings, Run, Timing};
use std::fmt::{self, Write};

fn place(variants: &[&str], timing: &Timing) -> usize {
    variants.iter().position(|&variant| variant == timing.variant).unwrap_or_default()
}

/// Units across a bar's drawing, which is stretched to the width that there is.
const BAR_WIDTH: f64 = 1000.0;

/// For each shape a bar a variant: the cold median with the 10th and the 90th percentile, the warm median pale below it, and a
/// line where the ceiling is.
pub(super) fn bars(out: &mut String, run: &Run, shapes: &[Vec<&Timing>], variants: &[&str]) -> fmt::Result {
    writeln!(
        out,
        "<p class=\"soft\">Full: cold, with the 10th and the 90th percentile. Pale: warm. Dashed: what the ceiling allows.</p>"
    )?;
    for shape in shapes {
        let Some(first) = shape.first() else { continue };
        writeln!(out, "<h4>{} {}</h4>", escape(&first.shape), escape(&first.dtype))?;
        let longest = shape.iter().map(|t| t.cold.p90.max(t.warm.median).max(t.bound_s)).fold(0.0, f64::max);
        let x = |seconds: f64| seconds / longest * (BAR_WIDTH - 10.0);
        for timing in shape {
            let colour = colour(place(variants, timing));
            let (cold, warm) = (&timing.cold, &timing.warm);
            let verdict = timing.baseline.map_or(String::new(), |baseline| {
                let name = baseline.cold.verdict.name();
                format!(" <span class=\"{name}\">{name}</span>")
            });
            let label = format!(
                "{}: {} cold, {} warm, {:.1} % of the ceiling, {:.2} times the fastest",
                timing.variant,
                seconds(cold.median),
                seconds(warm.median),
                timing.ceiling_percent,
                run.times_fastest(timing)
            );
            let (name, label) = (escape(&timing.variant), escape(&label));
            let (length, pale, p10, p90) = (x(cold.median), x(warm.median), x(cold.p10), x(cold.p90));
            let (limit, time) = (x(timing.bound_s), seconds(cold.median));
            let (percent, digits) =
                (timing.ceiling_percent, if timing.ceiling_percent < 9.95 { 1 } else { 0 });
            writeln!(
                out,
                "<div class=\"row\"><span class=\"name\">{name}</span>\
                 <svg viewBox=\"0 0 {BAR_WIDTH} 24\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{label}\">\
                 <title>{label}</title>\
                 <rect x=\"0\" y=\"2\" width=\"{length:.1}\" height=\"13\" fill=\"{colour}\"/>\
                 <rect x=\"0\" y=\"17\" width=\"{pale:.1}\" height=\"5\" fill=\"{colour}\" class=\"warm\"/>\
                 <line x1=\"{p10:.1}\" x2=\"{p90:.1}\" y1=\"8.5\" y2=\"8.5\" class=\"whisker\"/>\
                 <line x1=\"{p10:.1}\" x2=\"{p10:.1}\" y1=\"4\" y2=\"13\" class=\"whisker\"/>\
                 <line x1=\"{p90:.1}\" x2=\"{p90:.1}\" y1=\"4\" y2=\"13\" class=\"whisker\"/>\
                 <line x1=\"{limit:.1}\" x2=\"{limit:.1}\" y1=\"0\" y2=\"24\" class=\"limit\"/></svg>\
                 <span class=\"value\">{time} · {percent:.digits$} %{verdict}</span></div>"
            )?;
        }
    }
    Ok(())
}

const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 340.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 46.0;

/// Operations a second over operations a byte, below what bandwidth and arithmetic allow (Williams, Waterman and Patterson,
/// "Roofline", 2009).
pub(super) fn roofline(
    out: &mut String,
    ceilings: &Ceilings,
    shapes: &[Vec<&Timing>],
    variants: &[&str],
) -> fmt::Result {
    let points: Vec<&Timing> =
        shapes.iter().flatten().copied().filter(|timing| timing.flops > 0.0 && timing.bytes > 0.0).collect();
    let peak = ceilings.flops_per_s.filter(|_| points.iter().any(|timing| timing.dtype == ceilings.dtype));
    let peak = peak.map(|rate| rate / 1e12);
    let bandwidth = ceilings.bytes_per_s / 1e12;
    let ridge = peak.map(|peak| peak / bandwidth);
    let intensity = |timing: &Timing| timing.flops / timing.bytes;
    let xs = points.iter().map(|timing| intensity(timing)).chain(ridge.map(|ridge| ridge * 2.0));
    let x = Axis::new(xs, LEFT, WIDTH - RIGHT);
    let roof_at = |intensity: f64| peak.unwrap_or(f64::INFINITY).min(intensity * bandwidth);
    let ys = points.iter().map(|timing| timing.tflop_per_s).chain([roof_at(x.largest()), roof_at(x.least())]);
    let y = Axis::new(ys, HEIGHT - BOTTOM, TOP);

    writeln!(
        out,
        "<svg class=\"roofline\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"Roofline: rate over operations a \
         byte\">"
    )?;
    for (place, exponent) in x.decades() {
        writeln!(
            out,
            "<line class=\"gridline\" x1=\"{place:.1}\" x2=\"{place:.1}\" y1=\"{TOP}\" y2=\"{:.1}\"/>\
             <text x=\"{place:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            HEIGHT - BOTTOM,
            HEIGHT - BOTTOM + 18.0,
            power_of_ten(exponent)
        )?;
    }
    for (place, exponent) in y.decades() {
        writeln!(
            out,
            "<line class=\"gridline\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{place:.1}\" y2=\"{place:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 8.0,
            place + 4.0,
            power_of_ten(exponent)
        )?;
    }
    let middle = (HEIGHT - BOTTOM + TOP) / 2.0;
    writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">operations a byte</text>\
         <text x=\"14\" y=\"{middle:.1}\" text-anchor=\"middle\" transform=\"rotate(-90 14 {middle:.1})\">TFLOP/s</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 6.0
    )?;
    // The roof enters where it crosses the lower edge, and bends at the ridge.
    let mut corners = vec![x.least().max(y.least() / bandwidth)];
    corners.extend(ridge.filter(|&ridge| ridge > corners[0] && ridge < x.largest()));
    corners.push(x.largest());
    let corners: Vec<String> = corners
        .iter()
        .map(|&intensity| format!("{:.1},{:.1}", x.place(intensity), y.place(roof_at(intensity))))
        .collect();
    writeln!(out, "<polyline class=\"roof\" points=\"{}\"/>", corners.join(" "))?;
    for timing in points {
        let text = format!(
            "{} {} {}: {:.3} TFLOP/s, {:.0} GB/s",
            timing.variant, timing.dtype, timing.shape, timing.tflop_per_s, timing.gb_per_s
        );
        writeln!(
            out,
            "<circle class=\"point\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"5.5\" fill=\"{}\"><title>{}</title></circle>",
            x.place(intensity(timing)),
            y.place(timing.tflop_per_s),
            colour(place(variants, timing)),
            escape(&text)
        )?;
    }
    writeln!(out, "</svg>")
}
