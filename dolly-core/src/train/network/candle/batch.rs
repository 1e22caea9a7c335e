//! A batch on the device: its ids, its labels, and how attention groups its sequences.

use candle_core::{DType, Device, Tensor};

use crate::error::{Error, Result, try_vec};
use crate::kernels::attention_gradient::Rows;
use crate::model::Config;
use crate::train::network::head;
use crate::train::network::plan::Plan;

/// Scores of attention that a network holds together: 256 MiB.
pub(in crate::train::network) const SCORES: usize = 1 << 26;

/// A checked batch.
pub(super) struct Batch {
    /// Input tokens `(rows)`.
    pub ids: Tensor,
    pub groups: Vec<Group>,
    /// Predicted rows, a few at a time.
    pub labels: Vec<Labels>,
}

/// Rows whose next token is predicted.
pub(super) struct Labels {
    /// `(count)`.
    pub rows: Tensor,
    /// The tokens `(count, 1)`.
    pub ids: Tensor,
}

/// Sequences side by side, padded to the length of the longest.
pub(super) struct Group {
    first: usize,
    rows: usize,
    pub sequences: usize,
    pub longest: usize,
    /// Which row stands at each place, the row after the last where none does; and the place of
    /// each row. Unset where all are equally long.
    places: Option<[Tensor; 2]>,
    /// Zeros and -infinity `(longest, longest)`. Padding needs no mask of its own: it comes last, so
    /// no row looks at it, and what it looks at is not read.
    pub mask: Tensor,
}

impl Batch {
    /// `scores`: most scores of attention that are held together, unless one sequence has more.
    pub fn new(plan: &Plan, config: &Config, scores: usize, device: &Device) -> Result<Self> {
        let predicted = plan.labels.len();
        let chunks = predicted.div_ceil(head::most_rows(config.vocab_size)).max(1);
        let mut labels = try_vec(chunks, "a batch")?;
        for chunk in plan.labels.chunks(predicted.div_ceil(chunks).max(1)) {
            let mut rows: Vec<u32> = try_vec(chunk.len(), "a batch")?;
            let mut ids: Vec<u32> = try_vec(chunk.len(), "a batch")?;
            for (row, id) in chunk {
                rows.push(number(*row)?);
                ids.push(*id);
            }
            let ids = Tensor::from_vec(ids, (chunk.len(), 1), device)?;
            labels.push(Labels { rows: Tensor::new(rows, device)?, ids });
        }
        let groups = divide(&plan.sequences, config.num_attention_heads, scores).into_iter();
        Ok(Self {
            ids: Tensor::new(plan.ids.as_slice(), device)?,
            groups: groups.map(|group| Group::new(group, device)).collect::<Result<_>>()?,
            labels,
        })
    }
}

fn number(row: usize) -> Result<u32> {
    u32::try_from(row).map_err(|_| Error::InvalidInput(format!("a batch of {row} tokens or more")))
}

/// Neighbours whose padded scores are no more than `scores`.
fn divide(sequences: &[Rows], heads: usize, scores: usize) -> Vec<&[Rows]> {
    let mut groups = Vec::new();
    let (mut start, mut longest) = (0, 0);
    for (end, sequence) in sequences.iter().enumerate() {
        let most = sequence.count.max(longest);
        let one = most.saturating_mul(most).saturating_mul(heads);
        if end > start && one.saturating_mul(end + 1 - start) > scores {
            groups.extend(sequences.get(start..end));
            (start, longest) = (end, sequence.count);
        } else {
            longest = most;
        }
    }
    groups.extend(sequences.get(start..));
    groups
}

impl Group {
    fn new(sequences: &[Rows], device: &Device) -> Result<Self> {
        let longest = sequences.iter().map(|s| s.count).max().unwrap_or_default();
        let first = sequences.first().map_or(0, |s| s.first);
        let rows = sequences.iter().map(|s| s.count).sum();
        let even = sequences.iter().all(|s| s.count == longest);
        let places = (!even).then(|| places(sequences, (first, rows, longest), device));
        Ok(Self {
            first,
            rows,
            sequences: sequences.len(),
            longest,
            places: places.transpose()?,
            mask: mask(longest, device)?,
        })
    }

    /// This group's of all rows `(rows, width)`, padded with zeros: `(sequences longest, width)`.
    pub fn pad(&self, x: &Tensor) -> Result<Tensor> {
        let own = x.narrow(0, self.first, self.rows)?;
        Ok(match &self.places {
            None => own,
            Some([at, _]) => own.pad_with_zeros(0, 0, 1)?.index_select(at, 0)?,
        })
    }

    /// The inverse of [`pad`](Self::pad), without the other groups' rows.
    pub fn unpad(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match &self.places {
            None => x.clone(),
            Some([_, of]) => x.index_select(of, 0)?,
        })
    }
}

fn places(
    sequences: &[Rows],
    (first, rows, longest): (usize, usize, usize),
    device: &Device,
) -> Result<[Tensor; 2]> {
    let mut at: Vec<u32> = try_vec(sequences.len().saturating_mul(longest), "a batch")?;
    let mut of: Vec<u32> = try_vec(rows, "a batch")?;
    for (index, sequence) in sequences.iter().enumerate() {
        for position in 0..longest {
            let held = position < sequence.count;
            at.push(number(if held { sequence.first - first + position } else { rows })?);
            if held {
                of.push(number(index * longest + position)?);
            }
        }
    }
    Ok([Tensor::new(at, device)?, Tensor::new(of, device)?])
}

/// Zero where a row may look, -infinity beyond it.
fn mask(longest: usize, device: &Device) -> Result<Tensor> {
    let shape = (longest, longest);
    let counting = Tensor::arange(0, number(longest)?, device)?;
    let own = counting.reshape((longest, 1))?.broadcast_as(shape)?;
    let seen = counting.broadcast_as(shape)?.le(&own)?;
    let zero = Tensor::zeros(shape, DType::F32, device)?;
    let hidden = Tensor::full(f32::NEG_INFINITY, shape, device)?;
    Ok(seen.where_cond(&zero, &hidden)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_hold_no_more_scores_than_allowed() {
        let rows = |counts: &[usize]| -> Vec<Rows> {
            let mut first = 0;
            let next = |count: &usize| {
                let rows = Rows { first, count: *count };
                first += count;
                rows
            };
            counts.iter().map(next).collect()
        };
        let sizes = |counts: &[usize]| -> Vec<usize> {
            divide(&rows(counts), 16, SCORES).iter().map(|group| group.len()).collect()
        };
        // 16 heads of 1024 by 1024 scores are a quarter of what is allowed.
        assert_eq!(sizes(&[1024; 6]), [4, 2]);
        assert_eq!(sizes(&[5000, 1, 1]), [1, 2]);
        assert_eq!(sizes(&[1, 1, 5000]), [2, 1]);
        assert_eq!(sizes(&[3]), [1]);
    }
}
