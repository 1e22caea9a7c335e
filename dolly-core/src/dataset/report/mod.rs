//! What is in a set: counts, lengths, and what a reader should look at before training on it.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{Dataset, ReadSummary, Record, SameRow, SetInfo, clean, parallel};
use crate::error::{Error, Result};
use crate::prompt::{DollyPrompt, Instruction, strip};
use crate::tokenizer::Tokenizer;

mod text;

/// Description of a set; as text by `Display`, as JSON by serde.
///
/// ```
/// use dolly_core::dataset::{Dataset, ReadOptions, Record};
/// let rows = [Record::new("Name a colour.", "Blue."), Record::new("Name a colour.", "Red.")];
/// let data = Dataset::from_records(rows, "mine", &ReadOptions::default())?;
/// let report = data.report(None, None)?;
/// assert_eq!((report.rows, report.duplicates.questions), (2, 1));
/// assert_eq!(report.lengths.response.max, 5); // characters: no tokenizer was given
/// assert!(report.to_string().starts_with("2 rows"));
/// # Ok::<(), dolly_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Report {
    /// Number of rows.
    pub rows: u64,
    /// Rows per category, most first, then by name.
    pub categories: Vec<CategoryRows>,
    /// How long prompts and responses are.
    pub lengths: Lengths,
    /// Rows whose length, prompt and response together, reaches the length that was asked about.
    pub too_long: Option<TooLong>,
    /// Fields without text.
    pub empty: Empties,
    /// Rows that occur more than once.
    pub duplicates: Duplicates,
    /// Footnote marks such as `[5]`, as left by Wikipedia.
    pub footnotes: Footnotes,
    /// The sets the rows came from.
    pub sources: Vec<SetInfo>,
    /// What was found while the files were read, skipped rows included.
    pub files: Vec<ReadSummary>,
}

/// Rows of one category.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CategoryRows {
    /// Its name; `None` for rows without one.
    pub category: Option<String>,
    /// Number of rows.
    pub rows: u64,
}

/// What a length counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum LengthUnit {
    /// Tokens as in training: the prompt with its framing, the response with its end.
    Tokens,
    /// Characters of instruction and context, and of the response.
    Characters,
}

/// How long the rows are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Lengths {
    /// What is counted.
    pub unit: LengthUnit,
    /// Of prompts: instruction and context.
    pub prompt: Quantiles,
    /// Of responses.
    pub response: Quantiles,
    /// Of both together.
    pub total: Quantiles,
    /// Rows by total length, in ranges that double.
    pub histogram: Vec<Bin>,
}

/// Quantiles by nearest rank: the least value that at least this share of all values reach or stay
/// below. All are 0 where there are no rows.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Quantiles {
    /// The least.
    pub min: u64,
    /// A quarter of the values is no larger.
    pub p25: u64,
    /// The median.
    pub p50: u64,
    /// Three quarters.
    pub p75: u64,
    /// 90 %.
    pub p90: u64,
    /// 95 %.
    pub p95: u64,
    /// 99 %.
    pub p99: u64,
    /// The largest.
    pub max: u64,
    /// The mean.
    pub mean: f64,
    /// The sum.
    pub sum: u64,
}

/// Rows whose total length lies in a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Bin {
    /// The least length of the range.
    pub from: u64,
    /// The largest.
    pub to: u64,
    /// Number of rows.
    pub rows: u64,
}

/// Rows that training drops because their end would be cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TooLong {
    /// The length asked about: rows of this length or more count, as in the original.
    pub max_length: u64,
    /// How many there are.
    pub rows: u64,
    /// The places of the first of them, at most 100.
    pub first: Vec<u64>,
}

/// Fields without text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Empties {
    /// Rows without context.
    pub context: u64,
    /// Rows without category.
    pub category: u64,
    /// Instructions of blanks only.
    pub blank_instruction: u64,
    /// Contexts that are there and hold blanks only.
    pub blank_context: u64,
    /// Responses of blanks only.
    pub blank_response: u64,
}

/// Rows that are equal to an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Duplicates {
    /// Equal in instruction and context.
    pub questions: u64,
    /// Equal in all fields.
    pub rows: u64,
}

/// Footnote marks: one to three digits in brackets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Footnotes {
    /// Rows with at least one.
    pub rows: u64,
    /// Marks in instructions.
    pub instruction: u64,
    /// Marks in contexts.
    pub context: u64,
    /// Marks in responses.
    pub response: u64,
}

/// Lengths of one row's prompt and response.
type Pair = (u64, u64);

impl Dataset {
    /// Rows per category, most first, then by name.
    pub fn categories(&self) -> Vec<CategoryRows> {
        let mut counts: HashMap<Option<&str>, u64> = HashMap::new();
        for record in self.iter() {
            *counts.entry(record.category.as_deref()).or_default() += 1;
        }
        let mut rows: Vec<_> = counts
            .into_iter()
            .map(|(name, rows)| CategoryRows { category: name.map(str::to_owned), rows })
            .collect();
        rows.sort_by(|a, b| b.rows.cmp(&a.rows).then_with(|| a.category.cmp(&b.category)));
        rows
    }

    /// Describes the set. Lengths are in tokens with a tokenizer, else in characters; with
    /// `max_length`, rows of that length or more are counted.
    ///
    /// Encoding takes all cores. Errors with [`Error::InvalidInput`] on text that the vocabulary has
    /// no tokens for.
    pub fn report(
        &self,
        tokenizer: Option<&Tokenizer>,
        max_length: Option<usize>,
    ) -> Result<Report> {
        let lengths = self.row_lengths(tokenizer)?;
        let totals: Vec<u64> = lengths.iter().map(|(prompt, response)| prompt + response).collect();
        let too_long = max_length.map(|limit| too_long(&totals, limit as u64));
        Ok(Report {
            rows: self.len() as u64,
            categories: self.categories(),
            lengths: Lengths {
                unit: match tokenizer {
                    Some(_) => LengthUnit::Tokens,
                    None => LengthUnit::Characters,
                },
                prompt: quantiles(lengths.iter().map(|pair| pair.0).collect()),
                response: quantiles(lengths.iter().map(|pair| pair.1).collect()),
                histogram: histogram(&totals),
                total: quantiles(totals),
            },
            too_long,
            empty: self.empties(),
            duplicates: Duplicates {
                questions: self.count_duplicates(SameRow::Question),
                rows: self.count_duplicates(SameRow::Whole),
            },
            footnotes: self.footnotes(),
            sources: self.sources.clone(),
            files: self.summaries.clone(),
        })
    }

    fn row_lengths(&self, tokenizer: Option<&Tokenizer>) -> Result<Vec<Pair>> {
        let Some(tokenizer) = tokenizer else {
            let chars = |text: &str| text.chars().count() as u64;
            let pair = |r: &Record| (chars(&r.instruction) + chars(&r.context), chars(&r.response));
            return Ok(self.iter().map(pair).collect());
        };
        let prompt = DollyPrompt::new(tokenizer);
        parallel::map(&self.rows, |row| {
            let record = &row.record;
            let question = Instruction::new(&record.instruction).context(&record.context);
            let asked = prompt.encode(tokenizer, &question, Default::default())?;
            let answered = prompt.encode_response(tokenizer, &record.response)?;
            Ok::<Pair, Error>((asked.len() as u64, answered.len() as u64))
        })
    }

    fn empties(&self) -> Empties {
        let mut empty = Empties::default();
        let blank = |text: &str| u64::from(!text.is_empty() && strip(text).is_empty());
        for record in self.iter() {
            empty.context += u64::from(record.context.is_empty());
            empty.category += u64::from(record.category.is_none());
            empty.blank_instruction += blank(&record.instruction);
            empty.blank_context += blank(&record.context);
            empty.blank_response += blank(&record.response);
        }
        empty
    }

    fn footnotes(&self) -> Footnotes {
        let mut found = Footnotes::default();
        for record in self.iter() {
            let fields = [&record.instruction, &record.context, &record.response];
            let [instruction, context, response] = fields.map(|text| clean::count_footnotes(text));
            found.rows += u64::from(instruction + context + response > 0);
            found.instruction += instruction;
            found.context += context;
            found.response += response;
        }
        found
    }
}

fn too_long(totals: &[u64], limit: u64) -> TooLong {
    let places = (0u64..).zip(totals).filter(|(_, total)| **total >= limit);
    let first = places.clone().take(100).map(|(place, _)| place).collect();
    TooLong { max_length: limit, rows: places.count() as u64, first }
}

fn quantiles(mut values: Vec<u64>) -> Quantiles {
    values.sort_unstable();
    let (count, sum) = (values.len(), values.iter().sum::<u64>());
    // The rank, counted from 1, is the share of all values rounded up.
    let at = |percent: usize| {
        let rank = (count.saturating_mul(percent)).div_ceil(100);
        values.get(rank.saturating_sub(1)).copied().unwrap_or(0)
    };
    Quantiles {
        min: at(0),
        p25: at(25),
        p50: at(50),
        p75: at(75),
        p90: at(90),
        p95: at(95),
        p99: at(99),
        max: at(100),
        mean: sum as f64 / count.max(1) as f64,
        sum,
    }
}

/// Ranges 0, 1, 2..3, 4..7 and so on, from the first to the last that any row is in.
fn histogram(totals: &[u64]) -> Vec<Bin> {
    let mut bins = [0u64; 65];
    for total in totals {
        // The number of bits is at most 64.
        if let Some(bin) = bins.get_mut((u64::BITS - total.leading_zeros()) as usize) {
            *bin += 1;
        }
    }
    let used = |rows: &u64| *rows > 0;
    let first = bins.iter().position(used).unwrap_or(0);
    let last = bins.iter().rposition(used).map_or(0, |last| last + 1);
    let bin = |(bits, rows): (u32, u64)| match bits.checked_sub(1) {
        None => Bin { from: 0, to: 0, rows },
        Some(power) => Bin { from: 1 << power, to: (1 << power) + ((1 << power) - 1), rows },
    };
    let bins = (0u32..).zip(bins).take(last).skip(first);
    bins.map(bin).collect()
}
