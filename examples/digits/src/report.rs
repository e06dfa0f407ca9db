//! The report: one page with all results, and each chart as a file.

use crate::Result;
use crate::claims::{Claim, Finding};
use std::fmt::Write;
use std::path::{Path, PathBuf};

const PAGE: &str = "report.html";

pub(crate) struct Report {
    folder: PathBuf,
    findings: Vec<(&'static Claim, Finding)>,
    /// The page's sections so far.
    sections: String,
}

impl Report {
    /// An empty report in this folder, which is created if it does not exist. An empty page is written at once, so that
    /// an unwritable folder is reported before any network is trained.
    pub(crate) fn create(folder: &Path) -> Result<Self> {
        let report = Self { folder: folder.to_path_buf(), findings: Vec::new(), sections: String::new() };
        std::fs::create_dir_all(folder).map_err(|e| format!("cannot create the folder {}: {e}", folder.display()))?;
        report.write(PAGE, "")?;
        Ok(report)
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        std::fs::write(&path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
        Ok(path)
    }

    /// Adds a section to the page, and writes its charts.
    pub(crate) fn add(&mut self, claim: &'static Claim, finding: Finding) -> Result<()> {
        let verdict = finding.verdict.name();
        let class = verdict.replace(' ', "-");
        write!(
            self.sections,
            "<section id=\"{}\">\n<h2>{} <span class=\"{class}\">{verdict}</span></h2>\n<p>Measured: {}.</p>\n<table>\n",
            claim.name,
            html(claim.statement),
            html(&finding.text),
        )?;
        for measure in &finding.measures {
            writeln!(self.sections, "<tr><td>{}</td><td>{measure}</td></tr>", html(&measure.what))?;
        }
        writeln!(self.sections, "</table>")?;
        for figure in &finding.figures {
            let svg = figure.chart.svg()?;
            self.write(&format!("{}.svg", figure.name), &svg)?;
            let caption = html(&figure.caption);
            writeln!(self.sections, "<figure>\n{svg}\n<figcaption>{caption}</figcaption>\n</figure>")?;
        }
        writeln!(self.sections, "</section>")?;
        self.findings.push((claim, finding));
        Ok(())
    }

    /// All findings as a Markdown table.
    pub(crate) fn table(&self) -> String {
        let mut table = String::from("| `--only` | claim | on these digits | measured |\n|---|---|---|---|\n");
        for (claim, finding) in &self.findings {
            let (name, verdict) = (claim.name, finding.verdict.name());
            table += &format!("| {name} | {} | {verdict} | {} |\n", claim.statement, finding.text);
        }
        table
    }

    /// Writes the page, which says how many images there were, and returns its path.
    pub(crate) fn finish(&self, images: usize) -> Result<PathBuf> {
        let mut rows = String::new();
        for (claim, finding) in &self.findings {
            let verdict = finding.verdict.name();
            writeln!(
                rows,
                "<tr><td><a href=\"#{}\">{}</a></td><td>{verdict}</td><td>{}</td></tr>",
                claim.name,
                html(claim.statement),
                html(&finding.text),
            )?;
        }
        let page = include_str!("report.html")
            .replace("{images}", &images.to_string())
            .replace("{rows}", &rows)
            .replace("{sections}", &self.sections);
        self.write(PAGE, &page)
    }
}

/// The text as HTML: code between backticks becomes a `<code>` element.
fn html(text: &str) -> String {
    let escape = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let mut html = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('`')
        && let Some((code, after)) = after.split_once('`')
    {
        html += &format!("{}<code>{}</code>", escape(before), escape(code));
        rest = after;
    }
    html + &escape(rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claims::{Measure, Unit, Verdict};
    use crate::figures::{Axis, Chart, Colour, Figure, Point, Series, Style};

    #[test]
    fn code_between_backticks() {
        assert_eq!(html("a < `b<c>` & `d`."), "a &lt; <code>b&lt;c&gt;</code> &amp; <code>d</code>.");
        assert_eq!(html("`a` and one ` alone"), "<code>a</code> and one ` alone");
        assert_eq!(html(""), "");
    }

    #[test]
    fn a_page_shows_all_code_as_code() {
        static CLAIM: Claim = Claim { name: "code", statement: "`a<b` holds", check: |_| Err("not called".into()) };
        let points = vec![Point::new(0.0, 1.0), Point::new(1.0, 2.0)];
        let series = vec![Series { label: "y".into(), colour: Colour::Blue, points, style: Style::Line }];
        let chart = Chart { title: "chart", x: Axis::linear("x"), y: Axis::linear("y"), series };
        let finding = Finding {
            verdict: Verdict::Holds,
            text: "time with `c&d`".into(),
            measures: vec![Measure::new("time in `e>f`", 1.0, Unit::Seconds)],
            figures: vec![Figure { name: "chart", caption: "Drawn from `g`.".into(), chart }],
        };
        let folder = std::env::temp_dir().join(format!("batchnorm-digits-{}-code", std::process::id()));
        let mut report = Report::create(&folder).unwrap();
        report.add(&CLAIM, finding).unwrap();
        let page = std::fs::read_to_string(report.finish(1797).unwrap()).unwrap();
        std::fs::remove_dir_all(folder).unwrap();
        for part in [
            "<h2><code>a&lt;b</code> holds <span",
            "<p>Measured: time with <code>c&amp;d</code>.</p>",
            "<td>time in <code>e&gt;f</code></td>",
            "<figcaption>Drawn from <code>g</code>.</figcaption>",
            "<a href=\"#code\"><code>a&lt;b</code> holds</a>",
            "<td>time with <code>c&amp;d</code></td>",
        ] {
            assert!(page.contains(part), "{part} in {page}");
        }
        assert!(!page.contains('`'));
    }
}
