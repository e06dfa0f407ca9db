//! Charts as SVG.

use crate::Result;
use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::*;

/// A chart with its caption.
#[derive(Clone, Debug)]
pub(crate) struct Figure {
    /// The name of the chart's file, without the extension.
    pub(crate) name: &'static str,
    /// Explains the chart.
    pub(crate) caption: String,
    pub(crate) chart: Chart,
}

#[derive(Clone, Debug)]
pub(crate) struct Chart {
    pub(crate) title: &'static str,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) series: Vec<Series>,
}

#[derive(Clone, Debug)]
pub(crate) struct Axis {
    /// The quantity and its unit.
    pub(crate) label: &'static str,
    pub(crate) scale: Scale,
}

#[derive(Clone, Debug)]
pub(crate) enum Scale {
    Linear,
    /// Linear between these limits; points outside are drawn at the border.
    Range(f64, f64),
    Log,
    /// Names for the positions 0, 1, 2, …
    Names(Vec<String>),
}

impl Axis {
    pub(crate) fn linear(label: &'static str) -> Self {
        Self { label, scale: Scale::Linear }
    }

    pub(crate) fn range(label: &'static str, low: f64, high: f64) -> Self {
        Self { label, scale: Scale::Range(low, high) }
    }

    pub(crate) fn log(label: &'static str) -> Self {
        Self { label, scale: Scale::Log }
    }

    pub(crate) fn names(label: &'static str, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { label, scale: Scale::Names(names.into_iter().map(Into::into).collect()) }
    }

    /// The smallest and the largest value to show.
    fn limits(&self, values: impl Iterator<Item = f64>) -> (f64, f64) {
        let values = values.filter(|v| v.is_finite());
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        match &self.scale {
            Scale::Range(low, high) => (*low, *high),
            Scale::Names(names) => (-0.5, names.len() as f64 - 0.5),
            Scale::Log => (low / 1.2, high * 1.2),
            Scale::Linear => {
                let margin = if high > low { 0.04 * (high - low) } else { 1.0 };
                (low - margin, high + margin)
            }
        }
    }

    fn tick(&self, value: f64) -> String {
        match &self.scale {
            Scale::Names(names) => names.get(value.round() as usize).cloned().unwrap_or_default(),
            // Six decimals hide the rounding errors of the positions.
            _ => format!("{}", (value * 1e6).round() / 1e6),
        }
    }
}

/// A line through points, or only points, in one colour.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    pub(crate) label: String,
    pub(crate) colour: Colour,
    pub(crate) points: Vec<Point>,
    pub(crate) style: Style,
}

impl Series {
    /// The same series with y in percent instead of fractions.
    pub(crate) fn percent(mut self) -> Self {
        for point in &mut self.points {
            let Point { x, y, low, high } = *point;
            *point = Point { x, y: 100.0 * y, low: 100.0 * low, high: 100.0 * high };
        }
        self
    }

    /// The same series shifted along x, so that several series do not hide each other.
    pub(crate) fn shifted(mut self, by: f64) -> Self {
        self.points.iter_mut().for_each(|point| point.x += by);
        self
    }
}

/// A point of a chart, and the range of the seeds there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Point {
    pub(crate) x: f64,
    pub(crate) y: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Point {
    pub(crate) fn new(x: f64, y: f64) -> Self {
        Self { x, y, low: y, high: y }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Style {
    /// A line, with a band for the range of the seeds.
    Line,
    /// The same with a mark at each point.
    Marked,
    /// Marks, with whiskers for the range of the seeds.
    Points,
}

/// Colours that colour-blind readers can distinguish (Okabe and Ito, 2008).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Colour {
    Blue,
    Vermilion,
    Green,
    Purple,
    Orange,
    Sky,
}

impl Colour {
    fn rgb(self) -> RGBColor {
        match self {
            Self::Blue => RGBColor(0, 114, 178),
            Self::Vermilion => RGBColor(213, 94, 0),
            Self::Green => RGBColor(0, 158, 115),
            Self::Purple => RGBColor(204, 121, 167),
            Self::Orange => RGBColor(230, 159, 0),
            Self::Sky => RGBColor(86, 180, 233),
        }
    }
}

/// The size of a chart in pixels.
const SIZE: (u32, u32) = (860, 420);
/// The width of the legend's column, on the right, so that the legend covers nothing.
const LEGEND: u32 = 220;
const FONT: &str = "sans-serif";

impl Chart {
    /// Draws the chart.
    pub(crate) fn svg(&self) -> Result<String> {
        let mut svg = String::new();
        {
            let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
            root.fill(&WHITE)?;
            let root = root.titled(self.title, (FONT, 20))?;
            let (plot, legend) = root.split_horizontally(SIZE.0 - LEGEND);
            let points = || self.series.iter().flat_map(|series| &series.points);
            let (left, right) = self.x.limits(points().map(|p| p.x));
            let (bottom, top) = self.y.limits(points().flat_map(|p| [p.y, p.low, p.high]));
            match (&self.x.scale, &self.y.scale) {
                (Scale::Log, Scale::Log) => {
                    self.plot(&plot, (left..right).log_scale(), (bottom..top).log_scale(), (bottom, top))?;
                }
                (Scale::Log, _) => self.plot(&plot, (left..right).log_scale(), bottom..top, (bottom, top))?,
                (_, Scale::Log) => self.plot(&plot, left..right, (bottom..top).log_scale(), (bottom, top))?,
                _ => self.plot(&plot, left..right, bottom..top, (bottom, top))?,
            }
            self.legend(&legend)?;
            root.present()?;
        }
        Ok(svg)
    }

    fn plot<'a, X, Y>(
        &'a self,
        area: &DrawingArea<SVGBackend<'_>, Shift>,
        x: X,
        y: Y,
        (bottom, top): (f64, f64),
    ) -> Result<()>
    where
        X: AsRangedCoord<Value = f64, CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>>,
        Y: AsRangedCoord<Value = f64, CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>>,
    {
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .margin_right(20)
            .x_label_area_size(48)
            .y_label_area_size(70)
            .build_cartesian_2d(x, y)
            .map_err(|e| format!("chart {:?}: {e}", self.title))?;
        let mut mesh = chart.configure_mesh();
        let (x_tick, y_tick) = (|v: &f64| self.x.tick(*v), |v: &f64| self.y.tick(*v));
        mesh.x_desc(self.x.label).y_desc(self.y.label).x_label_formatter(&x_tick).y_label_formatter(&y_tick);
        mesh.label_style((FONT, 13)).axis_desc_style((FONT, 15)).light_line_style(TRANSPARENT);
        mesh.bold_line_style(BLACK.mix(0.12));
        if matches!(self.y.scale, Scale::Log) {
            mesh.y_labels(6);
        }
        if let Scale::Names(names) = &self.x.scale {
            mesh.x_labels(names.len()).disable_x_mesh();
        }
        mesh.draw()?;
        let within = |y: f64| y.clamp(bottom, top);
        let points = |series: &'a Series| series.points.iter().filter(|p| p.x.is_finite() && p.y.is_finite());
        // The bands come first, so that they lie under all lines.
        for series in self.series.iter().filter(|series| series.style != Style::Points) {
            let upper = points(series).map(|p| (p.x, within(p.high)));
            let band: Vec<_> = upper.chain(points(series).rev().map(|p| (p.x, within(p.low)))).collect();
            chart.draw_series([Polygon::new(band, series.colour.rgb().mix(0.15))])?;
        }
        for series in &self.series {
            let colour = series.colour.rgb();
            if series.style == Style::Points {
                for p in points(series) {
                    let whisker = vec![(p.x, within(p.low)), (p.x, within(p.high))];
                    chart.draw_series([PathElement::new(whisker, colour.stroke_width(2))])?;
                }
            } else {
                let line: Vec<_> = points(series).map(|p| (p.x, within(p.y))).collect();
                chart.draw_series([PathElement::new(line, colour.stroke_width(2))])?;
            }
            if series.style != Style::Line {
                chart.draw_series(points(series).map(|p| Circle::new((p.x, within(p.y)), 4, colour.filled())))?;
            }
        }
        Ok(())
    }

    fn legend(&self, area: &DrawingArea<SVGBackend<'_>, Shift>) -> Result<()> {
        for (i, series) in self.series.iter().enumerate() {
            let y = 24 + 24 * i as i32;
            let colour = series.colour.rgb();
            if series.style != Style::Points {
                area.draw(&PathElement::new(vec![(0, y), (24, y)], colour.stroke_width(3)))?;
            }
            if series.style != Style::Line {
                area.draw(&Circle::new((12, y), 4, colour.filled()))?;
            }
            area.draw(&Text::new(series.label.clone(), (32, y - 6), (FONT, 14)))?;
        }
        Ok(())
    }
}
