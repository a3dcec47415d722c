//! The picture of `docs/benchmarks.md`: a bar for each way, in an SVG that is drawn by hand.

use std::fmt::Write as _;

use super::{
    rows::{Outcome, Row},
    way::Way,
};

const WIDTH: f64 = 760.0;
/// Where bars begin, and the pixels of one.
const LEFT: f64 = 130.0;
const BAR: f64 = 16.0;
/// Room for the figure beside the longest bar.
const RIGHT: f64 = 70.0;

/// Rates of all ways on one CPU (else on all), as multiples of plain loopback.
pub fn svg(outcome: &Outcome) -> String {
    let cpus = outcome.rows.iter().map(|row| row.cpus).min().unwrap_or(1);
    let rows: Vec<_> = outcome.rows.iter().filter(|row| row.cpus == cpus).collect();
    let longest = rows.iter().filter_map(|row| row.x_base).map(|x| x.median).fold(1.0, f64::max);
    let scale = (WIDTH - LEFT - RIGHT) / longest;
    let (mut body, mut y, mut last) = (String::new(), 34.0, None);
    for row in rows {
        if last != Some(row.cell) {
            last = Some(row.cell);
            y += 14.0;
            _ = writeln!(body, "<text x=\"8\" y=\"{:.0}\" font-weight=\"bold\">{}</text>", y + 12.0, title(row));
            y += 20.0;
        }
        let x = row.x_base.map_or(0.0, |x| x.median);
        let (length, end) = (x * scale, LEFT + x * scale + 6.0);
        let (text, color) = (y + 12.0, color(row.way));
        _ = writeln!(
            body,
            "<text x=\"{:.0}\" y=\"{text:.0}\" text-anchor=\"end\">{}</text>",
            LEFT - 6.0,
            row.way.name()
        );
        _ = writeln!(
            body,
            "<rect x=\"{LEFT}\" y=\"{y:.0}\" width=\"{length:.1}\" height=\"{}\" fill=\"{color}\"/>",
            BAR - 3.0
        );
        _ = writeln!(body, "<text x=\"{end:.1}\" y=\"{text:.0}\">{x:.2}</text>");
        y += BAR;
    }
    let one = LEFT + scale;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height:.0}\" \
         viewBox=\"0 0 {WIDTH} {height:.0}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"8\" y=\"22\" font-size=\"14\">Rate as a multiple of plain loopback, {on} (longer is better)</text>\n\
         <line x1=\"{one:.1}\" y1=\"34\" x2=\"{one:.1}\" y2=\"{y:.0}\" stroke=\"#999999\" stroke-dasharray=\"3 3\"/>\n\
         {body}</svg>\n",
        height = y + 10.0,
        on = if cpus == 1 { "everything on one CPU".to_owned() } else { format!("on {cpus} CPUs") },
    )
}

fn title(row: &Row) -> String {
    let callers = if row.cell.callers == 1 { "caller" } else { "callers" };
    format!("{}, {} {callers}", row.cell.load, row.cell.callers)
}

fn color(way: Way) -> &'static str {
    match way {
        Way::Direct => "#888888",
        Way::Port => "#9ecae1",
        Way::Ebpf => "#4292c6",
        Way::Redirect => "#08519c",
        Way::Kernel => "#74c476",
        Way::Joined => "#238b45",
        Way::Iptables => "#d94801",
        Way::Haproxy | Way::Nginx | Way::Envoy | Way::MotanGo | Way::Pair | Way::MotanGoPair => "#9e9ac8",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_a_bar() {
        let picture = svg(&crate::bench::rows::tests::outcome());
        assert_eq!(picture.matches("fill=\"#4292c6\"").count(), 1, "{picture}");
        assert_eq!(picture.matches("<rect").count(), 3, "the ground and two bars: {picture}");
        assert!(picture.contains(">0.50</text>") && picture.ends_with("</svg>\n"));
    }
}
