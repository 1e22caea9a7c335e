//! A report as text.

use std::fmt::{Display, Formatter, Result};

use super::{LengthUnit, Quantiles, Report};

/// Most rows of a kind that are listed.
const MAX_LISTED: usize = 20;

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        writeln!(f, "{} rows", self.rows)?;
        self.sets(f)?;
        self.lengths(f)?;
        self.categories(f)?;
        self.findings(f)?;
        self.files(f)
    }
}

impl Report {
    fn sets(&self, f: &mut Formatter<'_>) -> Result {
        for info in &self.sources {
            let licence = info.licence.as_deref().unwrap_or("licence not given");
            let source = info.source.as_deref().unwrap_or("source not given");
            writeln!(f, "  {}: {} rows, {licence}, {source}", info.name, info.rows)?;
            for step in &info.steps {
                writeln!(f, "    {step}")?;
            }
        }
        Ok(())
    }

    fn lengths(&self, f: &mut Formatter<'_>) -> Result {
        let unit = match self.lengths.unit {
            LengthUnit::Tokens => "tokens",
            LengthUnit::Characters => "characters",
        };
        let names = ["min", "p25", "p50", "p75", "p90", "p95", "p99", "max", "mean"];
        write!(f, "{:<20}", format!("length in {unit}"))?;
        for name in names {
            write!(f, " {name:>8}")?;
        }
        writeln!(f)?;
        let rows = [
            ("prompt", &self.lengths.prompt),
            ("response", &self.lengths.response),
            ("total", &self.lengths.total),
        ];
        for (name, q) in rows {
            let Quantiles { min, p25, p50, p75, p90, p95, p99, max, mean, .. } = q;
            write!(f, "  {name:<18}")?;
            for value in [min, p25, p50, p75, p90, p95, p99, max] {
                write!(f, " {value:>8}")?;
            }
            writeln!(f, " {mean:>8.1}")?;
        }
        writeln!(f, "  {} {unit} in all", self.lengths.total.sum)?;
        if let Some(long) = &self.too_long {
            let (rows, limit) = (long.rows, long.max_length);
            writeln!(f, "  {rows} rows of {limit} {unit} or more")?;
        }
        Ok(())
    }

    fn categories(&self, f: &mut Formatter<'_>) -> Result {
        writeln!(f, "categories")?;
        for one in self.categories.iter().take(MAX_LISTED) {
            let name = one.category.as_deref().unwrap_or("(none)");
            let share = 100.0 * one.rows as f64 / self.rows.max(1) as f64;
            writeln!(f, "  {name:<24} {:>8} {share:>6.1} %", one.rows)?;
        }
        match self.categories.len().checked_sub(MAX_LISTED) {
            Some(more @ 1..) => writeln!(f, "  and {more} more"),
            _ => Ok(()),
        }
    }

    fn findings(&self, f: &mut Formatter<'_>) -> Result {
        let (e, d, n) = (&self.empty, &self.duplicates, &self.footnotes);
        writeln!(f, "empty: {} contexts, {} categories", e.context, e.category)?;
        writeln!(
            f,
            "blanks only: {} instructions, {} contexts, {} responses",
            e.blank_instruction, e.blank_context, e.blank_response
        )?;
        writeln!(
            f,
            "duplicates: {} by instruction and context, {} by all fields",
            d.questions, d.rows
        )?;
        writeln!(
            f,
            "footnote marks: {} in instructions, {} in contexts, {} in responses; {} rows",
            n.instruction, n.context, n.response, n.rows
        )
    }

    fn files(&self, f: &mut Formatter<'_>) -> Result {
        for file in &self.files {
            let name = file.file.display();
            if !file.extra_fields.is_empty() {
                let one = |(name, rows): (&String, &u64)| format!("{name} ({rows})");
                let fields: Vec<_> = file.extra_fields.iter().take(MAX_LISTED).map(one).collect();
                writeln!(f, "{name}: fields not used: {}", fields.join(", "))?;
            }
            if file.skipped > 0 {
                writeln!(f, "{name}: {} rows skipped", file.skipped)?;
                for bad in file.first_skipped.iter().take(MAX_LISTED) {
                    let field = bad.field.as_ref().map_or_else(String::new, |n| format!("{n}: "));
                    writeln!(f, "  line {}: {field}{}", bad.line, bad.reason)?;
                }
            }
        }
        Ok(())
    }
}
