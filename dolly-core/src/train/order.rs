//! Which sequences a step trains on: a function of seed and step alone.

use std::ops::Range;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::error::{Result, try_vec};
use crate::generate::sampler::derive_seed;

/// How rows fall into batches, batches into steps, steps into epochs.
///
/// As in transformers' `Trainer`: the last batch of an epoch may be smaller, its last step may
/// have fewer batches, and no step spans two epochs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plan {
    pub rows: usize,
    pub batch_size: usize,
    pub accumulation: usize,
}

impl Plan {
    /// Rows of a full step.
    fn step_rows(&self) -> usize {
        self.batch_size.saturating_mul(self.accumulation)
    }

    pub fn steps_per_epoch(&self) -> u64 {
        self.rows.div_ceil(self.step_rows()) as u64
    }

    /// Steps of a run.
    pub fn total_steps(&self, epochs: usize, max_steps: Option<u64>) -> u64 {
        max_steps.unwrap_or(self.steps_per_epoch().saturating_mul(epochs as u64))
    }

    /// Epoch and rows (positions in that epoch's order) of step number `step`, from 0.
    pub fn locate(&self, step: u64) -> (u64, Range<usize>) {
        let per_epoch = self.steps_per_epoch().max(1);
        let (epoch, index) = (step / per_epoch, step % per_epoch);
        let start = self.step_rows().saturating_mul(index as usize).min(self.rows);
        (epoch, start..start.saturating_add(self.step_rows()).min(self.rows))
    }

    /// Epochs gone after `steps` steps, with the share of the one under way.
    pub fn epochs_after(&self, steps: u64) -> f64 {
        let per_epoch = self.steps_per_epoch().max(1);
        let (epoch, index) = (steps / per_epoch, steps % per_epoch);
        let done = self.step_rows().saturating_mul(index as usize).min(self.rows);
        epoch as f64 + done as f64 / self.rows.max(1) as f64
    }
}

/// The order of `rows` rows in an epoch: every one once, shuffled by seed and epoch.
pub(crate) fn epoch_order(rows: usize, seed: u64, epoch: u64) -> Result<Vec<usize>> {
    let mut order = try_vec(rows, "the order of rows")?;
    order.extend(0..rows);
    let mut rng = ChaCha8Rng::seed_from_u64(derive_seed(seed, epoch as usize + 1));
    for last in (1..rows).rev() {
        order.swap(last, below(&mut rng, last as u64 + 1) as usize);
    }
    Ok(order)
}

/// A number below `bound`, each equally likely: draws from the incomplete last multiple of `bound`
/// are drawn again.
fn below(rng: &mut ChaCha8Rng, bound: u64) -> u64 {
    let limit = u64::MAX - u64::MAX % bound;
    loop {
        let draw = rng.next_u64();
        if draw < limit {
            return draw % bound;
        }
    }
}

/// The seed of dropout in batch `batch` of step `step`.
pub(crate) fn noise(seed: u64, step: u64, batch: usize) -> u64 {
    // Another stream than the order's: derived from the bits the other does not use.
    derive_seed(derive_seed(!seed, step as usize + 1), batch + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_row_once_an_epoch(rows in 1usize..200, batch in 1usize..9, accumulation in 1usize..5) {
            let plan = Plan { rows, batch_size: batch, accumulation };
            let mut seen = Vec::new();
            for step in 0..plan.steps_per_epoch() {
                let (epoch, range) = plan.locate(step);
                prop_assert_eq!(epoch, 0);
                prop_assert!(!range.is_empty() && range.len() <= batch * accumulation);
                seen.extend(range);
            }
            prop_assert_eq!(seen, (0..rows).collect::<Vec<_>>());
            prop_assert_eq!(plan.locate(plan.steps_per_epoch()).0, 1);
            prop_assert_eq!(plan.epochs_after(plan.steps_per_epoch()), 1.0);
        }

        #[test]
        fn an_order_is_a_permutation(rows in 0usize..300, seed: u64, epoch in 0u64..5) {
            let order = epoch_order(rows, seed, epoch).unwrap();
            let mut sorted = order.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..rows).collect::<Vec<_>>());
            prop_assert_eq!(order, epoch_order(rows, seed, epoch).unwrap());
        }
    }

    /// Steps of an epoch as `transformers.Trainer.set_initial_training_values` counts them:
    /// `max(len(loader) // accumulation + (len(loader) % accumulation > 0), 1)`.
    #[test]
    fn steps_are_counted_as_transformers_does() {
        for (rows, batch_size, accumulation, steps) in
            [(10, 4, 1, 3), (10, 4, 2, 2), (9, 4, 4, 1), (16, 4, 4, 1), (17, 4, 4, 2), (1, 8, 8, 1)]
        {
            let plan = Plan { rows, batch_size, accumulation };
            assert_eq!(plan.steps_per_epoch(), steps, "{plan:?}");
            assert_eq!(plan.total_steps(3, None), 3 * steps);
            assert_eq!(plan.total_steps(3, Some(7)), 7);
        }
    }

    #[test]
    fn epochs_and_seeds_differ() {
        let order = |seed, epoch| epoch_order(50, seed, epoch).unwrap();
        assert_ne!(order(1, 0), order(1, 1));
        assert_ne!(order(1, 0), order(2, 0));
        assert_ne!(order(1, 0), (0..50).collect::<Vec<_>>());
    }

    /// Each of the 6 orders of 3 rows is equally likely: chi-squared with 5 degrees of freedom
    /// stays below its 0.999 quantile, 20.5.
    #[test]
    fn orders_are_uniform() {
        let mut counts = std::collections::HashMap::new();
        for seed in 0..6000 {
            *counts.entry(epoch_order(3, seed, 0).unwrap()).or_insert(0u32) += 1;
        }
        let chi: f64 = counts.values().map(|n| (f64::from(*n) - 1000.0).powi(2) / 1000.0).sum();
        assert!(counts.len() == 6 && chi < 20.5, "{chi}: {counts:?}");
    }
}
