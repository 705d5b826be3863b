//! Histograms as SVG, one below the other, with the quantiles that matter.

use super::super::bench::Figures;
use std::fmt::Write as _;

/// One histogram.
pub struct Panel {
    /// What was measured.
    pub title: String,
    /// What came of it; not empty.
    pub values: Figures,
}

const WIDTH: f64 = 720.0;
const LEFT: f64 = 20.0;
const PANEL: f64 = 170.0;
const BARS: f64 = 90.0;
const BINS: usize = 60;

/// Draws panels below a title. Every panel has its own scale, from a tenth below its least to a tenth above its greatest value.
pub fn draw(title: &str, unit: &str, panels: &[Panel]) -> String {
    let height = 40.0 + PANEL * panels.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n\
         <text x=\"{LEFT}\" y=\"26\" font-size=\"16\">{title}</text>\n"
    );
    for (i, panel) in panels.iter().enumerate() {
        let _ = write!(
            svg,
            "<g transform=\"translate(0 {})\">\n{}</g>\n",
            40.0 + PANEL * i as f64,
            one(panel, unit)
        );
    }
    svg + "</svg>\n"
}

fn one(panel: &Panel, unit: &str) -> String {
    let values = &panel.values;
    let (min, max) = (values.min(), values.max());
    let margin = ((max - min) * 0.1).max(max * 0.02).max(1e-3);
    let (low, high) = ((min - margin).max(0.0), max + margin);
    let (wide, base) = (WIDTH - 2.0 * LEFT, 30.0 + BARS);
    let x = |v: f64| LEFT + (v - low) / (high - low) * wide;
    let mut counts = [0_usize; BINS];
    for v in &values.0 {
        let bin = ((v - low) / (high - low) * BINS as f64) as usize;
        counts[bin.min(BINS - 1)] += 1;
    }
    let most = counts.iter().copied().max().unwrap_or(1).max(1) as f64;
    let mut svg = format!("<text x=\"{LEFT}\" y=\"18\">{} ({} runs)</text>\n", panel.title, values.0.len());
    for (i, n) in counts.iter().enumerate().filter(|(_, n)| **n > 0) {
        let (bar, tall) = (wide / BINS as f64, *n as f64 / most * BARS);
        let (at, top) = (LEFT + bar * i as f64, base - tall);
        let _ = writeln!(
            svg,
            "<rect x=\"{at:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{tall:.1}\" fill=\"#3b7dd8\"/>",
            bar - 1.0
        );
    }
    let _ = writeln!(
        svg,
        "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{base}\" y2=\"{base}\" stroke=\"#444\"/>",
        WIDTH - LEFT
    );
    let marks =
        [("p50", values.p50()), ("p90", values.quantile(0.9)), ("p99", values.quantile(0.99)), ("max", max)];
    for (i, (name, v)) in marks.into_iter().enumerate() {
        let (at, low) = (x(v), base + 14.0 + 10.0 * (i % 2) as f64);
        let _ = writeln!(
            svg,
            "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"28\" y2=\"{base}\" stroke=\"#b33\" stroke-dasharray=\"3 3\"/>\n\
             <text x=\"{at:.1}\" y=\"{low}\" text-anchor=\"middle\" font-size=\"10\">{name} {v:.2} {unit}</text>"
        );
    }
    svg
}

#[test]
fn every_value_is_in_a_bar_and_every_mark_in_the_picture() {
    let panel = |values: &[f64]| Panel { title: "t".into(), values: Figures(values.to_vec()) };
    let svg = draw("title", "s", &[panel(&[1.0, 2.0, 2.0, 9.0]), panel(&[3.0])]);
    assert_eq!(svg.matches("fill=\"#3b7dd8\"").count(), 4);
    assert!(svg.contains("p50 2.00 s") && svg.contains("max 9.00 s") && svg.contains("(4 runs)"), "{svg}");
    assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
}
