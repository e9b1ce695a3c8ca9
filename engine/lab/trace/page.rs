//! A trace as one page of HTML: a row a multiprocessor, no scripts, nothing loaded from elsewhere.

use super::{Block, Launch, Share, Trace};
use crate::drawing::{STYLE, colour, escape};
use std::collections::BTreeMap;
use std::fmt::{self, Write};

/// Height of a multiprocessor's row: blocks that work above, blocks that wait below.
const ROW: u32 = 7;
const WORK: u32 = 5;
/// Room for the scale.
const TOP: u32 = 22;
/// Units of the drawing that a microsecond has, where a step is short.
const PER_MICROSECOND: f64 = 8.0;
/// The widest drawing.
const MAX_WIDTH: f64 = 40_000.0;

const OWN_STYLE: &str = "\
.timeline svg { width: auto; max-width: none; } .timeline text { font-size: 11px; }
.work { opacity: .9; } .wait { opacity: .4; } .launch:hover .work { opacity: .55; } .launch:hover .wait { opacity: .9; }
.timeline { max-height: 85vh; overflow: auto; }
";

/// The page of a trace.
pub fn page(trace: &Trace) -> String {
    let mut page = String::new();
    write_page(&mut page, trace).expect("strings take everything");
    page
}

fn write_page(out: &mut String, trace: &Trace) -> fmt::Result {
    let shares = trace.shares();
    let colours: BTreeMap<&str, String> =
        shares.iter().enumerate().map(|(place, share)| (&*share.kernel, colour(place))).collect();
    let device = escape(&trace.device);
    let of = if trace.context == 0 {
        format!("a prompt of {} tokens", trace.rows)
    } else {
        format!("a decode step of {} sequences behind {} tokens each", trace.rows, trace.context)
    };
    write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>A step on {device}</title>\n<style>\n{STYLE}{OWN_STYLE}</style>\n</head>\n<body>\n<header>\n\
         <h1>A step on {device}</h1>\n<p class=\"soft\">{of}; {} launches in {}. Each row is a multiprocessor; a bar is a block behind \
         its wait for the kernel before, the thin line below it the block while it waits. Point at one for its launch.</p>\n\
         </header>\n<main>\n",
        trace.launches.len(),
        microseconds(trace.nanoseconds())
    )?;
    if trace.dropped > 0 {
        writeln!(
            out,
            "<p class=\"wrong\">{} warps are missing: there was no room for them.</p>",
            trace.dropped
        )?;
    }
    legend(out, &shares, &colours)?;
    timeline(out, trace, &colours)?;
    table(out, &shares)?;
    writeln!(
        out,
        "</main>\n<footer class=\"soft\"><p>The device's clock, read by each warp. The stores that leave what is drawn take time of their own. Products by \
         the library are not seen: they are the gaps.</p></footer>\n</body>\n</html>"
    )
}

fn microseconds(nanoseconds: u64) -> String {
    format!("{:.2} µs", nanoseconds as f64 / 1e3)
}

fn legend(out: &mut String, shares: &[Share], colours: &BTreeMap<&str, String>) -> fmt::Result {
    writeln!(out, "<ul class=\"legend\">")?;
    for Share { kernel, .. } in shares {
        writeln!(out, "<li><i style=\"background:{}\"></i>{}</li>", colours[&**kernel], escape(kernel))?;
    }
    writeln!(out, "</ul>")
}

fn timeline(out: &mut String, trace: &Trace, colours: &BTreeMap<&str, String>) -> fmt::Result {
    let blocks = || trace.launches.iter().flat_map(|launch| &launch.blocks);
    let rows = blocks().map(|block| block.multiprocessor + 1).max().unwrap_or(1);
    let total = trace.nanoseconds().max(1) as f64 / 1e3;
    let scale = PER_MICROSECOND.min(MAX_WIDTH / total);
    let (width, height) = ((total * scale).ceil(), TOP + rows * ROW);
    writeln!(
        out,
        "<div class=\"panel timeline\"><svg width=\"{width}\" height=\"{height}\" role=\"img\" aria-label=\"The step's blocks over time\">"
    )?;
    // A line of the scale about every hundred units.
    let step = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000]
        .into_iter()
        .find(|&step| f64::from(step) * scale >= 80.0)
        .unwrap_or(10_000);
    for tick in (0..=total as u32).step_by(step as usize) {
        let x = f64::from(tick) * scale;
        writeln!(
            out,
            "<line class=\"gridline\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"14\" y2=\"{height}\"/><text x=\"{:.1}\" y=\"11\">{tick} µs</text>",
            x + 2.0
        )?;
    }
    for (number, launch) in trace.launches.iter().enumerate() {
        let colour = &colours[&*launch.kernel];
        let title = format!(
            "{number}: {}, {} blocks, {} to {}",
            launch.kernel,
            launch.blocks.len(),
            microseconds(launch.begin()),
            microseconds(launch.end())
        );
        writeln!(out, "<g class=\"launch\" fill=\"{colour}\"><title>{}</title>", escape(&title))?;
        let parts: [(&str, Part); 2] =
            [("work", |b| (b.wait, b.end, 0, WORK)), ("wait", |b| (b.start, b.wait, WORK, ROW - 1))];
        for (class, part) in parts {
            bars(out, launch, class, part, scale)?;
        }
        writeln!(out, "</g>")?;
    }
    writeln!(out, "</svg></div>")
}

/// From when to when, and between which heights of a row.
type Part = fn(&Block) -> (u64, u64, u32, u32);

/// The same part of all blocks of a launch, as one path.
fn bars(out: &mut String, launch: &Launch, class: &str, part: Part, scale: f64) -> fmt::Result {
    write!(out, "<path class=\"{class}\" d=\"")?;
    for block in &launch.blocks {
        let (from, to, top, bottom) = part(block);
        let x = |nanoseconds: u64| nanoseconds as f64 / 1e3 * scale;
        if to > from {
            let (x, width, y) = (x(from), x(to - from), TOP + block.multiprocessor * ROW + top);
            write!(out, "M{x:.1} {y}h{width:.1}v{}h-{width:.1}z", bottom - top)?;
        }
    }
    writeln!(out, "\"/>")
}

fn table(out: &mut String, shares: &[Share]) -> fmt::Result {
    writeln!(
        out,
        "<h2>Kernels</h2>\n<p class=\"soft\">Of the step: from the end of the launch before to the end of this one. Ready: from that end until a block has come to its wait, less than \
         0 where it waits. Hand-over: until the first block stops waiting. Work: a block behind its wait. Ragged: from the first block's end to the last one's. Medians but for the first.</p>\n\
         <div class=\"scroll\"><table><thead><tr><th class=\"text\">kernel</th><th>launches</th><th>blocks</th><th>of the step</th>\
         <th>ready</th><th>hand-over</th><th>work</th><th>ragged</th></tr></thead><tbody>"
    )?;
    for share in shares {
        let Share { kernel, launches, blocks, seconds, ready, hand_over, work, ragged } = share;
        write!(out, "<tr><td class=\"text\">{}</td><td>{launches}</td><td>{blocks}</td>", escape(kernel))?;
        for seconds in [seconds, ready, hand_over, work, ragged] {
            write!(out, "<td>{:.2} µs</td>", seconds * 1e6)?;
        }
        writeln!(out, "</tr>")?;
    }
    writeln!(out, "</tbody></table></div>")
}
