//! A topology as an SVG drawing: nodes on a circle, links as lines between them.
//!
//! Place: `sanlab topo --svg`. Invariants: well-formed XML whatever nodes are called; text is never under a line end. Source: SVG 1.1.

use std::f64::consts::TAU;
use std::fmt::Write as _;

use super::{Pair, Topology, describe};
use crate::output;

/// Room for a node, along the circle and around it.
const NODE: (f64, f64) = (132.0, 44.0);
const MARGIN: f64 = 110.0;
/// Most nodes whose perfect links are drawn too.
const FEW: usize = 24;

type Point = (f64, f64);

/// Draws a topology.
pub(crate) fn draw(topology: &Topology) -> String {
    let count = topology.nodes.len().max(1);
    let radius = (output::as_f64(count as u64) * NODE.0 / TAU * 1.15).max(150.0);
    let middle = radius + MARGIN;
    let place = |node: usize| -> Point {
        let angle = TAU * output::as_f64(node as u64) / output::as_f64(count as u64) - TAU / 4.0;
        (middle + radius * angle.cos(), middle + radius * angle.sin())
    };
    let size = middle * 2.0;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {size:.0} {size:.0}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <title>cluster {}</title>\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        escaped(&topology.cluster)
    );
    if count <= FEW {
        for one in 0..count {
            for other in one + 1..count {
                if topology.pairs.iter().all(|pair| pair.ends != (one, other)) {
                    line(&mut text, place(one), place(other), "stroke=\"#d5d9de\"");
                }
            }
        }
    }
    for pair in &topology.pairs {
        link(&mut text, pair, place(pair.ends.0), place(pair.ends.1));
    }
    for (index, node) in topology.nodes.iter().enumerate() {
        let (x, y) = place(index);
        let (width, height) = NODE;
        let (fill, note) = if node.is_up {
            ("#eaf2fb", "")
        } else {
            ("#f4d9d6", " (port down)")
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "<g class=\"node\"><rect x=\"{:.1}\" y=\"{:.1}\" width=\"{width}\" height=\"{height}\" rx=\"6\" fill=\"{fill}\" stroke=\"#34495e\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-weight=\"bold\">{}{note}</text>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"10\">{}</text></g>",
            x - width / 2.0,
            y - height / 2.0,
            y - 3.0,
            escaped(&node.name),
            y + 13.0,
            escaped(&node.addresses.join(", ")),
        );
    }
    text.push_str("</svg>\n");
    text
}

fn link(text: &mut String, pair: &Pair, one: Point, other: Point) {
    let is_cut = pair
        .directions
        .iter()
        .flatten()
        .any(|direction| !direction.up);
    let is_impaired = pair.directions.iter().any(Option::is_some);
    let style = match (is_cut, is_impaired) {
        (true, _) => "stroke=\"#c0392b\" stroke-width=\"2\" stroke-dasharray=\"6 5\"",
        (_, true) => "stroke=\"#d68910\" stroke-width=\"2\"",
        _ => "stroke=\"#2e86c1\" stroke-width=\"2\"",
    };
    if pair.ends.0 != pair.ends.1 {
        line(text, one, other, style);
    }
    let mut words = Vec::new();
    if is_impaired {
        let [there, back] = pair.directions.map(|it| describe(it.as_ref()));
        if there == back {
            words.push(there);
        } else {
            words.push(format!("there: {there}"));
            words.push(format!("back: {back}"));
        }
    }
    for (count, road) in [(pair.san, "SAN"), (pair.tcp, "TCP")] {
        if count != 0 {
            words.push(format!("{count} {road}"));
        }
    }
    let (x, y) = ((one.0 + other.0) / 2.0, (one.1 + other.1) / 2.0);
    for (row, word) in words.iter().enumerate() {
        let y = y + 13.0 * output::as_f64(row as u64);
        let _ = writeln!(
            text,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\" font-size=\"10\" stroke=\"white\" stroke-width=\"3\" paint-order=\"stroke\">{}</text>",
            escaped(word)
        );
    }
}

fn line(text: &mut String, one: Point, other: Point, style: &str) {
    let _ = writeln!(
        text,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" {style}/>",
        one.0, one.1, other.0, other.1
    );
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::{Topology, tests::sample};
    use super::*;

    #[test]
    fn every_node_and_link_is_drawn() {
        let (stat, links) = sample();
        let drawing = draw(&Topology::new(&stat, &links));
        assert_eq!(drawing.matches("class=\"node\"").count(), 3);
        assert_eq!(drawing.matches("<line").count(), 3);
        assert!(
            drawing.contains("stroke-dasharray") && drawing.contains("back: cut"),
            "{drawing}"
        );
        assert!(drawing.contains("c (port down)"), "{drawing}");
        assert_eq!(escaped("<a&b>"), "&lt;a&amp;b&gt;");
    }
}
