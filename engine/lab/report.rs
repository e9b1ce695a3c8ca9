//! A run as one page of HTML: no scripts, nothing loaded from elsewhere, for light and dark screens of any width.

mod chart;

use super::run::{Change, Run, Timing};
use crate::drawing::{STYLE, colour, escape};
use std::fmt::{self, Write};

/// The page of a run: for each operation a roofline, bars and a table.
pub fn page(run: &Run) -> String {
    let mut page = String::new();
    write_page(&mut page, run).expect("strings take everything");
    page
}

fn write_page(out: &mut String, run: &Run) -> fmt::Result {
    let device = escape(&run.device);
    write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>Kernels on {device}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<header>\n\
         <h1>Kernels on {device}</h1>\n<p class=\"soft\">{}; {}; shapes of {}, seed {}</p>\n",
        escape(&run.platform),
        escape(&run.date),
        escape(&run.model),
        run.seed
    )?;
    let ceilings = &run.ceilings;
    writeln!(out, "<dl class=\"facts\">")?;
    fact(out, "Memory, read", &format!("{:.2} TB/s", ceilings.bytes_per_s / 1e12))?;
    let rate =
        ceilings.flops_per_s.map_or("not measured".into(), |rate| format!("{:.0} TFLOP/s", rate / 1e12));
    fact(out, &format!("Arithmetic, cuBLAS {}", ceilings.dtype), &rate)?;
    fact(out, "Time of nothing", &seconds(ceilings.empty_s))?;
    fact(out, "Timings", &run.timings.len().to_string())?;
    writeln!(out, "</dl>\n<nav>")?;
    for op in run.ops() {
        writeln!(out, "<a href=\"#{0}\">{0}</a>", escape(op))?;
    }
    writeln!(out, "</nav>\n</header>\n<main>")?;
    for op in run.ops() {
        operation(out, run, op)?;
    }
    left_out(out, run)?;
    writeln!(
        out,
        "</main>\n<footer class=\"soft\"><p>Cold: each launch after other memory was read through the L2 cache. Warm: one of \
         many launches in a row. The ceiling is the larger of the operation's bytes over the bandwidth and its arithmetic \
         over the rate above, both measured in this run; a warm time may beat it, since its bytes may come from the cache. \
         Every variant was checked against a reference in f64 before it was timed.</p></footer>\n</body>\n</html>"
    )
}

fn fact(out: &mut String, name: &str, value: &str) -> fmt::Result {
    writeln!(out, "<div><dt>{}</dt><dd>{}</dd></div>", escape(name), escape(value))
}

fn operation(out: &mut String, run: &Run, op: &str) -> fmt::Result {
    let shapes = run.shapes_of(op);
    let variants = variants(&shapes);
    writeln!(out, "<section id=\"{0}\">\n<h2>{0}</h2>", escape(op))?;
    writeln!(out, "<ul class=\"legend\">")?;
    for (i, variant) in variants.iter().enumerate() {
        writeln!(out, "<li><i style=\"background:{}\"></i>{}</li>", colour(i), escape(variant))?;
    }
    writeln!(out, "</ul>\n<div class=\"charts\">\n<div class=\"panel\">\n<h3>Time, shorter is better</h3>")?;
    chart::bars(out, run, &shapes, &variants)?;
    writeln!(out, "</div>")?;
    if shapes.iter().flatten().any(|timing| timing.flops > 0.0) {
        writeln!(out, "<div class=\"panel sticky\">\n<h3>Roofline, cold</h3>")?;
        chart::roofline(out, &run.ceilings, &shapes, &variants)?;
        writeln!(out, "</div>")?;
    }
    writeln!(out, "</div>")?;
    table(out, run, &shapes)?;
    writeln!(out, "</section>")
}

/// The variants of some shapes, in the order in which they first come.
fn variants<'a>(shapes: &[Vec<&'a Timing>]) -> Vec<&'a str> {
    let mut variants = Vec::new();
    for timing in shapes.iter().flatten() {
        if !variants.contains(&timing.variant.as_str()) {
            variants.push(timing.variant.as_str());
        }
    }
    variants
}

fn table(out: &mut String, run: &Run, shapes: &[Vec<&Timing>]) -> fmt::Result {
    let compared = shapes.iter().flatten().any(|timing| timing.baseline.is_some());
    let with_cublas = shapes.iter().flatten().any(|timing| run.times_cublas(timing).is_some());
    let mut titles =
        vec!["cold", "p10", "p90", "warm", "GB/s", "TFLOP/s", "of ceiling", "bound", "× fastest"];
    if with_cublas {
        titles.push("× cuBLAS");
    }
    if compared {
        titles.extend(["cold, × baseline", "warm, × baseline"]);
    }
    write!(out, "<div class=\"scroll\"><table>\n<tr>")?;
    for title in ["shape", "dtype", "variant"] {
        write!(out, "<th class=\"text\">{title}</th>")?;
    }
    for title in titles {
        write!(out, "<th>{title}</th>")?;
    }
    writeln!(out, "</tr>")?;
    for timing in shapes.iter().flatten() {
        write!(out, "<tr>")?;
        let name = format!("{}{}", timing.variant, if timing.default { " (default)" } else { "" });
        for text in [&timing.shape, &timing.dtype, &name] {
            write!(out, "<td class=\"text\">{}</td>", escape(text))?;
        }
        let cells = [
            seconds(timing.cold.median),
            seconds(timing.cold.p10),
            seconds(timing.cold.p90),
            seconds(timing.warm.median),
            format!("{:.0}", timing.gb_per_s),
            if timing.flops > 0.0 { format!("{:.2}", timing.tflop_per_s) } else { String::new() },
            format!("{:.1} %", timing.ceiling_percent),
            timing.bound.name().to_owned(),
            format!("{:.2}", run.times_fastest(timing)),
        ];
        for cell in cells {
            write!(out, "<td>{cell}</td>")?;
        }
        if with_cublas {
            let times = run.times_cublas(timing).map_or(String::new(), |times| format!("{times:.2}"));
            write!(out, "<td>{times}</td>")?;
        }
        if compared {
            match &timing.baseline {
                Some(baseline) => [baseline.cold, baseline.warm].iter().try_for_each(|c| change(out, c))?,
                None => write!(out, "<td></td><td></td>")?,
            }
        }
        writeln!(out, "</tr>")?;
    }
    writeln!(out, "</table></div>")
}

fn change(out: &mut String, change: &Change) -> fmt::Result {
    let verdict = change.verdict.name();
    write!(out, "<td>{:.3} <span class=\"{verdict}\">{verdict}</span></td>", change.ratio)
}

fn left_out(out: &mut String, run: &Run) -> fmt::Result {
    if run.left_out.is_empty() {
        return Ok(());
    }
    writeln!(out, "<section>\n<h2>Not timed</h2>\n<div class=\"scroll\"><table>")?;
    for left_out in &run.left_out {
        let (class, what) =
            if left_out.wrong { ("wrong", "wrong results") } else { ("soft", "not eligible") };
        writeln!(
            out,
            "<tr><td class=\"text\">{}={}</td><td class=\"text\">{}</td><td class=\"text\">{}</td><td class=\"text {class}\">\
             {what}</td><td class=\"text\">{}</td></tr>",
            escape(&left_out.op),
            escape(&left_out.variant),
            escape(&left_out.dtype),
            escape(&left_out.shape),
            escape(&left_out.why)
        )?;
    }
    writeln!(out, "</table></div>\n</section>")
}

/// A time with three digits and its unit.
fn seconds(seconds: f64) -> String {
    let (value, unit) = match seconds {
        s if s >= 1.0 => (s, "s"),
        s if s >= 1e-3 => (s * 1e3, "ms"),
        s => (s * 1e6, "µs"),
    };
    let digits = if value >= 99.95 {
        0
    } else if value >= 9.995 {
        1
    } else {
        2
    };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits() {
        let texts = [1.234e-6, 12.34e-6, 123.4e-6, 1.5e-3, 99.96e-6, 2.0].map(seconds);
        assert_eq!(texts, ["1.23 µs", "12.3 µs", "123 µs", "1.50 ms", "100 µs", "2.00 s"]);
    }
}
