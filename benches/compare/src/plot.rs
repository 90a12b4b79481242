//! The same as a picture.

use std::error::Error;
use std::path::Path;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::load::{median, percentile};
use crate::measure::{Contender, Measured, Plan, Series};
use crate::report::streams;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn Error>>;

/// By contender; virbistream's stands out.
const COLOURS: [RGBColor; 8] = [
    RGBColor(200, 30, 45),
    RGBColor(115, 160, 215),
    RGBColor(40, 85, 150),
    RGBColor(110, 110, 110),
    RGBColor(230, 165, 80),
    RGBColor(185, 95, 15),
    RGBColor(120, 85, 160),
    RGBColor(60, 145, 100),
];

/// Bars of all contenders, for each of the groups.
struct Panel<'a> {
    title: String,
    unit: &'a str,
    groups: &'a [String],
    /// By contender and group.
    bars: Vec<Vec<Bar>>,
    digits: usize,
    /// What the number above a bar is; if it is the line's end, the bar's own stands in it.
    above: fn(&Bar) -> f64,
    /// By contender.
    colours: Vec<RGBColor>,
}

struct Bar {
    height: f64,
    /// A line from and to.
    line: (f64, f64),
}

pub(crate) fn draw(path: &Path, plan: &Plan, contenders: &[Contender]) -> Drawn {
    let root = SVGBackend::new(path, (1500, 1060)).into_drawing_area();
    root.fill(&WHITE)?;
    let (head, body) = root.split_vertically(60);
    draw_legend(&head, contenders)?;
    let areas = body.split_evenly((2, 2));

    let (streams, open) = (streams(plan), [format!("{} connections open", plan.open.0)]);
    let panel = |title, unit, groups, digits, of| Panel::of_rounds(title, unit, groups, digits, contenders, of);
    let speed = panel("Throughput", "GiB/s", &streams[..], 2, |measured| &measured.speed);
    let cost = panel("CPU time of both ends", "CPU seconds per GiB", &streams, 2, |measured| &measured.cost);
    let memory = panel("Memory of both ends (Pss)", "MiB", &open, 1, |measured| &measured.memory);
    for (panel, area) in [(speed, &areas[0]), (cost, &areas[1]), (memory, &areas[3])] {
        panel.draw(area, 0.0, 0.0..panel.highest() * 1.1)?;
    }
    let trips = Panel {
        title: "Round trip of 4 KiB; bars: p50, lines: up to p99".into(),
        unit: "us, logarithmic",
        groups: &["idle", "beside bulk", "beside a stalled stream"].map(String::from),
        bars: contenders.iter().map(|contender| Bar::trips(&contender.measured)).collect(),
        colours: contenders.iter().map(colour).collect(),
        digits: 0,
        above: |bar| bar.line.1,
    };
    let floor = 10.0;
    trips.draw(&areas[2], floor, (floor..trips.highest() * 2.0).log_scale())?;
    root.present()?;
    Ok(())
}

fn draw_legend(area: &Area<'_>, contenders: &[Contender]) -> Drawn {
    let title = "UNIX socket -> near end -> TCP over loopback -> far end -> UNIX socket";
    area.draw(&Text::new(title, (60, 8), ("sans-serif", 20)))?;
    for (n, contender) in (0..).zip(contenders) {
        let x = 60 + n * 165;
        area.draw(&Rectangle::new([(x, 38), (x + 16, 54)], colour(contender).filled()))?;
        area.draw(&Text::new(contender.kind.name(), (x + 24, 38), ("sans-serif", 17)))?;
    }
    Ok(())
}

fn colour(contender: &Contender) -> RGBColor {
    COLOURS[contender.kind as usize]
}

impl Bar {
    fn spread(series: &Series) -> Self {
        Self { height: median(series), line: (percentile(series, 0), percentile(series, 100)) }
    }

    fn trips(measured: &Measured<Series>) -> Vec<Self> {
        let medians = measured.medians().trips;
        medians.chunks_exact(2).map(|trip| Self { height: trip[0], line: (trip[0], trip[1]) }).collect()
    }
}

impl<'a> Panel<'a> {
    /// Bars as high as the medians, lines from the least to the most.
    fn of_rounds(
        title: &str,
        unit: &'a str,
        groups: &'a [String],
        digits: usize,
        contenders: &[Contender],
        of: fn(&Measured<Series>) -> &[Series],
    ) -> Self {
        let bars = contenders.iter().map(|contender| of(&contender.measured).iter().map(Bar::spread).collect());
        let colours = contenders.iter().map(colour).collect();
        let title = format!("{title}; bars and numbers: medians, lines: least to most");
        Self { title, unit, groups, bars: bars.collect(), colours, digits, above: |bar| bar.height }
    }

    fn highest(&self) -> f64 {
        self.bars.iter().flatten().map(|bar| bar.height.max(bar.line.1)).fold(0.0, f64::max)
    }

    fn draw<Y>(&self, area: &Area<'_>, floor: f64, y: Y) -> Drawn
    where
        Y: AsRangedCoord<Value = f64>,
        Y::CoordDescType: ValueFormatter<f64>,
    {
        let groups = self.groups.len() as f64;
        let mut chart = ChartBuilder::on(area)
            .caption(&self.title, ("sans-serif", 20))
            .margin(12)
            .x_label_area_size(32)
            .y_label_area_size(70)
            .build_cartesian_2d(-0.5..groups - 0.5, y)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels(self.groups.len())
            .x_label_formatter(&|x| self.group(*x))
            .x_label_style(("sans-serif", 16))
            .y_label_style(("sans-serif", 14))
            .y_desc(self.unit)
            .axis_desc_style(("sans-serif", 16))
            .light_line_style(TRANSPARENT)
            .draw()?;
        let width = 0.86 / self.bars.len() as f64;
        let label = |vertical, colour: &'static RGBColor| {
            let style = ("sans-serif", 11).into_font().into_text_style(area);
            style.color(colour).pos(Pos::new(HPos::Center, vertical))
        };
        for (n, (bars, colour)) in self.bars.iter().zip(&self.colours).enumerate() {
            for (group, bar) in bars.iter().enumerate() {
                let left = group as f64 - 0.43 + n as f64 * width;
                let (middle, right) = (left + width / 2.0, left + width * 0.92);
                let (from, to) = bar.line;
                let number = |value: f64| format!("{value:.*}", self.digits);
                let above = (self.above)(bar);
                chart.draw_series([Rectangle::new([(left, floor), (right, bar.height)], colour.filled())])?;
                chart.draw_series([PathElement::new([(middle, from), (middle, to)], BLACK)])?;
                let top = (middle, bar.height.max(to));
                chart.draw_series([Text::new(number(above), top, label(VPos::Bottom, &BLACK))])?;
                if above != bar.height {
                    let inside = (middle, bar.height);
                    let inner = Text::new(number(bar.height), (0, 3), label(VPos::Top, &WHITE));
                    chart.draw_series([EmptyElement::at(inside) + inner])?;
                }
            }
        }
        Ok(())
    }

    /// The name of the group in the middle of which this is.
    fn group(&self, x: f64) -> String {
        let near = x.round();
        let is_middle = (x - near).abs() < 0.01 && near >= 0.0;
        if is_middle { self.groups.get(near as usize).cloned().unwrap_or_default() } else { String::new() }
    }
}
