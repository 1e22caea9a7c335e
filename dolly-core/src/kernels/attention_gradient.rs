//! Causal attention over whole sequences and its backward pass, for training.
//!
//! Per sequence and head, queries a block at a time, nothing of size `tokens²` is kept:
//!
//! ```text
//! forward   S = scale Q K^T, P = softmax(S), O = P V             keeps L = log sum exp S per query
//! backward  P = exp(S - L)                                       S formed again
//!           dV += P^T dO      dP = dO V^T      dS = scale P (dP - rowsum(P dP))
//!           dQ  = dS K        dK += dS^T Q
//! ```
//!
//! (Dao et al., 2022, FlashAttention, with whole rows instead of an online softmax.) Queries, keys
//! and values are those of GPT-NeoX's fused projection, `(rows, heads, (q, k, v), width)`, rotated.

use std::sync::{Mutex, PoisonError};

use super::linear::resize;
use super::matmul::{self, MatmulScratch, Operand, Target, matmul_here};
use super::pool::{Pool, Shared};
use super::table::Kernels;
use crate::error::{Result, try_vec};

/// Queries whose scores are held together.
const BLOCK: usize = 64;

/// Rows of one sequence within the rows of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rows {
    /// First row.
    pub first: usize,
    /// Number of rows.
    pub count: usize,
}

/// The shape of the heads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    /// Heads of a row.
    pub count: usize,
    /// Width of one.
    pub width: usize,
}

impl Heads {
    fn hidden(self) -> usize {
        self.count * self.width
    }
}

/// What one thread needs.
#[derive(Default)]
struct Worker {
    product: MatmulScratch,
    scores: Vec<f32>,
    slopes: Vec<f32>,
    block: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// Most floats that a thread holds for sequences of up to `longest` rows and heads of `width`.
pub(crate) fn scratch_floats(longest: usize, width: usize) -> usize {
    let scores = BLOCK.saturating_mul(longest).saturating_mul(2);
    let rows = longest.saturating_mul(2).saturating_add(BLOCK).saturating_mul(width);
    let side = longest.max(width).max(BLOCK);
    let product = matmul::scratch_floats(side, side);
    product.saturating_add(scores).saturating_add(rows)
}

/// Scratch space of every thread of a pool.
pub(crate) struct AttentionScratch(Vec<Mutex<Worker>>);

impl AttentionScratch {
    /// Room for `threads` threads, empty.
    pub(crate) fn new(threads: usize) -> Result<Self> {
        let mut workers = try_vec(threads.max(1), "attention scratch")?;
        workers.resize_with(threads.max(1), Mutex::default);
        Ok(Self(workers))
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        let workers = self.0.iter().map(|w| w.lock().unwrap_or_else(PoisonError::into_inner));
        workers
            .map(|w| {
                let floats = [&w.scores, &w.slopes, &w.block, &w.keys, &w.values];
                w.product.bytes() + floats.iter().map(|v| 4 * v.capacity() as u64).sum::<u64>()
            })
            .sum()
    }
}

/// The inputs that both passes share.
pub(crate) struct Attention<'a> {
    /// Instruction set.
    pub kernels: Kernels,
    /// Threads.
    pub pool: &'a Pool,
    /// Shape of the heads.
    pub heads: Heads,
    /// The rotated projection, `(rows, 3 hidden)`.
    pub qkv: &'a [f32],
    /// The sequences; rows of different ones do not overlap.
    pub sequences: &'a [Rows],
}

/// One sequence and head.
struct Item<'a> {
    all: &'a Attention<'a>,
    rows: Rows,
    head: usize,
    scale: f32,
}

impl Attention<'_> {
    /// `out` is `(rows, hidden)`; `log_sums` `(heads, rows)`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory) when scratch space cannot grow.
    pub(crate) fn forward(
        &self,
        scratch: &AttentionScratch,
        out: &mut [f32],
        log_sums: &mut [f32],
    ) -> Result<()> {
        let rows = self.check(out.len());
        assert_eq!(log_sums.len(), rows * self.heads.count);
        let (out, log_sums) = (Shared::new(out), Shared::new(log_sums));
        self.each(scratch, |item, worker| item.forward(worker, &out, &log_sums, rows))
    }

    /// `d_out` is `(rows, hidden)`; `d_qkv` `(rows, 3 hidden)` is overwritten.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub(crate) fn backward(
        &self,
        scratch: &AttentionScratch,
        log_sums: &[f32],
        d_out: &[f32],
        d_qkv: &mut [f32],
    ) -> Result<()> {
        let rows = self.check(d_out.len());
        assert_eq!(log_sums.len(), rows * self.heads.count);
        assert_eq!(d_qkv.len(), self.qkv.len());
        let d_qkv = Shared::new(d_qkv);
        self.each(scratch, |item, worker| {
            let log_sums = &log_sums[item.head * rows + item.rows.first..];
            item.backward(worker, log_sums, d_out, &d_qkv)
        })
    }

    /// Number of rows, after checking that all sequences are inside them.
    fn check(&self, out: usize) -> usize {
        let hidden = self.heads.hidden();
        let rows = out / hidden.max(1);
        assert!(rows * hidden == out && self.qkv.len() == 3 * out);
        let mut next = 0;
        for sequence in self.sequences {
            assert!(sequence.first >= next, "sequences overlap");
            next = sequence.first + sequence.count;
        }
        assert!(next <= rows);
        rows
    }

    fn each(
        &self,
        scratch: &AttentionScratch,
        work: impl Fn(&Item<'_>, &mut Worker) -> Result<()> + Sync,
    ) -> Result<()> {
        let scale = 1.0 / (self.heads.width as f32).sqrt();
        let failure = Mutex::new(None);
        let items = self.sequences.len() * self.heads.count;
        self.pool.run(items, true, |worker, range| {
            let Some(worker) = scratch.0.get(worker) else { return };
            let mut worker = worker.lock().unwrap_or_else(PoisonError::into_inner);
            for i in range {
                let rows = self.sequences[i / self.heads.count];
                let item = Item { all: self, rows, head: i % self.heads.count, scale };
                if let Err(error) = work(&item, &mut worker) {
                    failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            }
        });
        failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}

impl<'a> Item<'a> {
    /// The rows from `from` on of part 0 (queries), 1 (keys) or 2 (values).
    fn part(&self, part: usize, from: usize) -> (&'a [f32], usize) {
        let (width, stride) = (self.all.heads.width, 3 * self.all.heads.hidden());
        let at = (self.rows.first + from) * stride + (3 * self.head + part) * width;
        (&self.all.qkv[at..], stride)
    }

    fn rows_of(&self, part: usize, from: usize) -> Operand<'a> {
        let (data, stride) = self.part(part, from);
        Operand::rows(data, stride)
    }

    fn columns_of(&self, part: usize) -> Operand<'a> {
        let (data, stride) = self.part(part, 0);
        Operand::transposed(data, stride)
    }

    fn forward(
        &self,
        worker: &mut Worker,
        out: &Shared<f32>,
        log_sums: &Shared<f32>,
        all_rows: usize,
    ) -> Result<()> {
        let (kernels, width, count) = (self.all.kernels, self.all.heads.width, self.rows.count);
        resize(&mut worker.block, BLOCK * width, "attention outputs")?;
        for first in (0..count).step_by(BLOCK) {
            let rows = BLOCK.min(count - first);
            let seen = first + rows;
            self.scores(worker, first, rows)?;
            for r in 0..rows {
                let row = &mut worker.scores[r * seen..(r + 1) * seen];
                let (own, later) = row.split_at_mut(first + r + 1);
                let most = kernels.max(own) * self.scale;
                let sum = kernels.exp_minus(self.scale, most, own);
                kernels.scale(1.0 / sum, own);
                later.fill(0.0);
                let at = self.head * all_rows + self.rows.first + first + r;
                // SAFETY: one element of this head and row; nobody else has this item.
                unsafe { *log_sums.get().add(at) = most + sum.ln() };
            }
            let weights = Operand::rows(&worker.scores, seen);
            let target = Target { data: &mut worker.block, stride: width, accumulate: false };
            let values = self.rows_of(2, 0);
            let extent = (rows, seen, width);
            matmul_here(kernels, &mut worker.product, weights, values, target, extent)?;
            self.store(
                &worker.block,
                rows,
                first,
                out,
                (self.all.heads.hidden(), self.head * width),
            );
        }
        Ok(())
    }

    /// Leaves `Q K^T` of a block of queries in `worker.scores`, `(rows, first + rows)`.
    fn scores(&self, worker: &mut Worker, first: usize, rows: usize) -> Result<()> {
        let (width, seen) = (self.all.heads.width, first + rows);
        resize(&mut worker.scores, rows * seen, "attention scores")?;
        let target = Target { data: &mut worker.scores, stride: seen, accumulate: false };
        let (queries, keys) = (self.rows_of(0, first), self.columns_of(1));
        let extent = (rows, width, seen);
        matmul_here(self.all.kernels, &mut worker.product, queries, keys, target, extent)
    }

    /// Copies `rows` rows of this head to rows `first..` of `to`, whose rows are `stride` floats
    /// and hold this head from `column` on.
    fn store(
        &self,
        from: &[f32],
        rows: usize,
        first: usize,
        to: &Shared<f32>,
        (stride, column): (usize, usize),
    ) {
        let width = self.all.heads.width;
        for (r, row) in from.chunks_exact(width).take(rows).enumerate() {
            let at = (self.rows.first + first + r) * stride + column;
            // SAFETY: the row is inside `to` (`check`), and these columns belong to this item.
            unsafe { std::ptr::copy_nonoverlapping(row.as_ptr(), to.get().add(at), width) };
        }
    }

    fn backward(
        &self,
        worker: &mut Worker,
        log_sums: &[f32],
        d_out: &[f32],
        d_qkv: &Shared<f32>,
    ) -> Result<()> {
        let (kernels, width, count) = (self.all.kernels, self.all.heads.width, self.rows.count);
        let hidden = self.all.heads.hidden();
        resize(&mut worker.block, BLOCK * width, "gradients of queries")?;
        for whole in [&mut worker.keys, &mut worker.values] {
            resize(whole, count * width, "gradients of keys and values")?;
            whole.fill(0.0);
        }
        for first in (0..count).step_by(BLOCK) {
            let rows = BLOCK.min(count - first);
            let seen = first + rows;
            self.scores(worker, first, rows)?;
            let at = (self.rows.first + first) * hidden + self.head * width;
            let d_out = Operand::rows(&d_out[at..], hidden);
            self.slopes(worker, log_sums, d_out, (first, rows))?;
            let Worker { product, scores, slopes, block, keys, values } = &mut *worker;
            let mut run = |a, b, data: &mut Vec<f32>, accumulate, extent| {
                let target = Target { data, stride: width, accumulate };
                matmul_here(kernels, product, a, b, target, extent)
            };
            run(Operand::transposed(scores, seen), d_out, values, true, (seen, rows, width))?;
            let queries = self.rows_of(0, first);
            run(Operand::transposed(slopes, seen), queries, keys, true, (seen, rows, width))?;
            let all_keys = self.rows_of(1, 0);
            run(Operand::rows(slopes, seen), all_keys, block, false, (rows, seen, width))?;
            self.store(block, rows, first, d_qkv, (3 * hidden, 3 * self.head * width));
        }
        for (part, whole) in [(1, &worker.keys), (2, &worker.values)] {
            self.store(whole, count, 0, d_qkv, (3 * hidden, (3 * self.head + part) * width));
        }
        Ok(())
    }

    /// Turns scores into weights, and leaves the gradient of the scores in `worker.slopes`.
    fn slopes(
        &self,
        worker: &mut Worker,
        log_sums: &[f32],
        d_out: Operand<'_>,
        (first, rows): (usize, usize),
    ) -> Result<()> {
        let (kernels, width, seen) = (self.all.kernels, self.all.heads.width, first + rows);
        resize(&mut worker.slopes, rows * seen, "gradients of scores")?;
        let target = Target { data: &mut worker.slopes, stride: seen, accumulate: false };
        let extent = (rows, width, seen);
        matmul_here(kernels, &mut worker.product, d_out, self.columns_of(2), target, extent)?;
        for r in 0..rows {
            let own = first + r + 1;
            let weights = &mut worker.scores[r * seen..(r + 1) * seen];
            let slopes = &mut worker.slopes[r * seen..(r + 1) * seen];
            kernels.exp_minus(self.scale, log_sums[first + r], &mut weights[..own]);
            weights[own..].fill(0.0);
            let dot = kernels.dot(&weights[..own], &slopes[..own]);
            kernels.softmax_backward(&weights[..own], dot, self.scale, &mut slopes[..own]);
            slopes[own..].fill(0.0);
        }
        Ok(())
    }
}
