//! One page that holds everything, and each image as a file.

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
    /// An empty report in this folder, which is made where it is not there. The page is written at once, so that a
    /// folder without room or permission is found before the work is done.
    pub(crate) fn create(folder: &Path) -> Result<Self> {
        let report = Self { folder: folder.to_path_buf(), findings: Vec::new(), sections: String::new() };
        std::fs::create_dir_all(folder).map_err(|e| format!("cannot make the folder {}: {e}", folder.display()))?;
        report.write(PAGE, "")?;
        Ok(report)
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        std::fs::write(&path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
        Ok(path)
    }

    /// Adds a section and writes its images.
    pub(crate) fn add(&mut self, claim: &'static Claim, finding: Finding) -> Result<()> {
        let verdict = finding.verdict.name();
        let class = verdict.replace(' ', "-");
        write!(
            self.sections,
            "<section id=\"{}\">\n<h2>{} <span class=\"{class}\">{verdict}</span></h2>\n<p>{}.</p>\n<table>\n",
            claim.name,
            escape(claim.statement),
            escape(&finding.text),
        )?;
        for measure in &finding.measures {
            writeln!(self.sections, "<tr><td>{}</td><td>{measure}</td></tr>", escape(&measure.what))?;
        }
        writeln!(self.sections, "</table>")?;
        for figure in &finding.figures {
            let svg = figure.chart.svg()?;
            self.write(&format!("{}.svg", figure.name), &svg)?;
            let caption = escape(&figure.caption);
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

    /// Writes the page and says where it is.
    pub(crate) fn finish(&self) -> Result<PathBuf> {
        let mut rows = String::new();
        for (claim, finding) in &self.findings {
            let verdict = finding.verdict.name();
            writeln!(
                rows,
                "<tr><td><a href=\"#{}\">{}</a></td><td>{verdict}</td><td>{}</td></tr>",
                claim.name,
                escape(claim.statement),
                escape(&finding.text),
            )?;
        }
        let page = include_str!("report.html").replace("{rows}", &rows).replace("{sections}", &self.sections);
        self.write(PAGE, &page)
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
