//! Low-rank additions to matrices, made as their rows are read.

use crate::error::{Error, Result};

/// Columns that are summed at a time, on the stack.
const PIECE: usize = 256;

/// `scale * B A`, to be added to a matrix `(outputs, inputs)`.
///
/// Every row is formed on its own, in f32: first `B A` over the rank, then the scale, then the
/// sum with the weights, as PEFT's `merge` does.
#[derive(Clone, PartialEq)]
pub(crate) struct LowRank {
    rank: usize,
    inputs: usize,
    /// `(rank, inputs)`.
    a: Vec<f32>,
    /// `(outputs, rank)`.
    b: Vec<f32>,
    scale: f32,
}

impl std::fmt::Debug for LowRank {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { rank, scale, .. } = self;
        f.debug_struct("LowRank").field("rank", rank).field("scale", scale).finish_non_exhaustive()
    }
}

impl LowRank {
    /// From A `(rank, inputs)` and B `(outputs, rank)`, row-major; the sizes must agree.
    pub fn new(rank: usize, a: Vec<f32>, b: Vec<f32>, scale: f32) -> Result<Self> {
        let whole = rank > 0 && a.len().is_multiple_of(rank) && b.len().is_multiple_of(rank);
        if !whole || a.is_empty() || b.is_empty() {
            let text = format!("rank {rank}, A of {} and B of {} weights", a.len(), b.len());
            return Err(Error::Internal(text));
        }
        Ok(Self { rank, inputs: a.len() / rank, a, b, scale })
    }

    /// `(outputs, inputs)` of the matrix it is added to.
    pub fn shape(&self) -> (usize, usize) {
        (self.b.len() / self.rank, self.inputs)
    }

    pub fn rank(&self) -> usize {
        self.rank
    }

    /// A, `(rank, inputs)`.
    pub fn a(&self) -> &[f32] {
        &self.a
    }

    /// B, `(outputs, rank)`.
    pub fn b(&self) -> &[f32] {
        &self.b
    }

    /// What `B A` is multiplied with.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// Adds rows `first..` to `out`, whole rows of the matrix.
    pub fn add_rows(&self, first: usize, out: &mut [f32]) {
        let rows = self.b.chunks_exact(self.rank).skip(first);
        for (b, out) in rows.zip(out.chunks_exact_mut(self.inputs)) {
            for (piece, out) in out.chunks_mut(PIECE).enumerate() {
                let mut sums = [0.0f32; PIECE];
                for (b, a) in b.iter().zip(self.a.chunks_exact(self.inputs)) {
                    let a = a.get(piece * PIECE..).unwrap_or_default();
                    for (sum, a) in sums.iter_mut().zip(a) {
                        *sum += b * a;
                    }
                }
                for (weight, sum) in out.iter_mut().zip(sums) {
                    *weight += self.scale * sum;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_the_product_whatever_the_pieces() {
        let (rank, inputs, outputs) = (3, 2 * PIECE + 7, 5);
        let wave = |n: usize, step: f32| (0..n).map(|i| (i as f32 * step).sin()).collect();
        let (a, b): (Vec<f32>, Vec<f32>) = (wave(rank * inputs, 0.7), wave(outputs * rank, 1.3));
        let sum = LowRank::new(rank, a.clone(), b.clone(), 0.25).unwrap();
        assert_eq!(sum.shape(), (outputs, inputs));
        let mut whole = vec![1.0f32; outputs * inputs];
        sum.add_rows(0, &mut whole);
        for (at, value) in whole.iter().enumerate() {
            let (row, column) = (at / inputs, at % inputs);
            let product: f64 = (0..rank)
                .map(|k| f64::from(b[row * rank + k]) * f64::from(a[k * inputs + column]))
                .sum();
            assert!((f64::from(*value) - (1.0 + 0.25 * product)).abs() < 1e-6);
        }
        for row in 0..outputs {
            let mut one = vec![1.0f32; inputs];
            sum.add_rows(row, &mut one);
            assert_eq!(one, whole[row * inputs..][..inputs], "row {row}");
        }
    }

    #[test]
    fn sizes_that_disagree_are_refused() {
        for (rank, a, b) in [(0, 4, 4), (3, 4, 6), (3, 6, 4), (2, 0, 4), (2, 4, 0)] {
            assert!(LowRank::new(rank, vec![0.0; a], vec![0.0; b], 1.0).is_err());
        }
    }
}
