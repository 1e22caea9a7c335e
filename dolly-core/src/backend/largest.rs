//! The largest values of rows: what a choice among few tokens needs of its logits.

use std::cmp::Ordering;

/// The largest values of some rows, which a device found.
#[derive(Debug, Clone)]
pub struct Largest {
    /// `(rows, count)` pairs of column and value.
    pairs: Vec<(u32, f32)>,
    count: usize,
    /// Of each row, whether it held neither NaN nor positive infinity.
    sound: Vec<bool>,
    /// Length of the rows they were found in.
    columns: usize,
}

/// The largest values of one row.
///
/// No value that is left out is above the last one. Which of the columns that equal the last one
/// are among them is open, except where there is one pair alone: that is the first of the largest.
#[derive(Debug, Clone, Copy)]
pub struct Few<'a> {
    /// Columns and values, the largest first, equal ones in the columns' order; never none.
    pub pairs: &'a [(u32, f32)],
    /// Whether the row has no other values.
    pub complete: bool,
}

impl Largest {
    /// Takes over `(rows, count)` pairs of rows of `columns` values, in any order within a row.
    pub fn new(mut pairs: Vec<(u32, f32)>, sound: Vec<bool>, columns: usize) -> Self {
        let count = pairs.len().checked_div(sound.len()).unwrap_or(0);
        let falling = |a: &(u32, f32), b: &(u32, f32)| {
            b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal).then(a.0.cmp(&b.0))
        };
        for (row, _) in pairs.chunks_exact_mut(count.max(1)).zip(&sound).filter(|(_, s)| **s) {
            row.sort_unstable_by(falling);
        }
        Self { pairs, count, sound, columns }
    }

    /// The largest values of row `index`; `None` where it held NaN or infinity, or is not there.
    pub fn row(&self, index: usize) -> Option<Few<'_>> {
        let sound = self.sound.get(index).copied().unwrap_or(false);
        let pairs = self.pairs.get(index * self.count..(index + 1) * self.count)?;
        let complete = pairs.len() == self.columns;
        (sound && !pairs.is_empty()).then_some(Few { pairs, complete })
    }
}
