//! Seeded orders: the same on every machine, and documented so that others can repeat them.
//!
//! The generator is ChaCha with 8 rounds (`rand_chacha`), its key the seed as 8 little-endian bytes
//! followed by 24 zero bytes, its stream number the purpose. A number below `n` is drawn as 64-bit
//! words `x` until `x < 2^64 - 2^64 mod n`; it is `x mod n`. The order is Fisher and Yates': for `i`
//! from the last place down to 1, the elements at `i` and at a drawn number below `i + 1` change
//! places.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::error::{Error, Result, try_vec};

/// What an order is for: two purposes draw different orders from one seed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Purpose {
    Shuffle = 0,
    Split = 1,
}

/// The numbers below `len` in the order of `seed`.
pub(super) fn permutation(len: usize, seed: u64, purpose: Purpose) -> Result<Vec<usize>> {
    let mut key = [0; 32];
    for (to, from) in key.iter_mut().zip(seed.to_le_bytes()) {
        *to = from;
    }
    let mut rng = ChaCha8Rng::from_seed(key);
    rng.set_stream(purpose as u64);
    let mut order = try_vec(len, "an order of rows")?;
    order.extend(0..len);
    for place in (1..len).rev() {
        // No more than `place`, which is a usize.
        let other = below(&mut rng, place as u64 + 1) as usize;
        order.swap(place, other);
    }
    Ok(order)
}

/// A number below `n`, each as likely as the others.
fn below(rng: &mut ChaCha8Rng, n: u64) -> u64 {
    // 2^64 mod n, in 64 bits.
    let rest = n.wrapping_neg() % n;
    loop {
        let drawn = rng.next_u64();
        if drawn <= u64::MAX - rest {
            return drawn % n;
        }
    }
}

/// How many rows a split sets apart.
///
/// ```
/// use dolly_core::dataset::SplitSize;
/// assert_eq!(SplitSize::from(1000), SplitSize::Rows(1000));
/// assert_eq!(SplitSize::from(0.02), SplitSize::Fraction(0.02));
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum SplitSize {
    /// So many rows.
    Rows(usize),
    /// This share of all rows, rounded to the nearest number of rows, at least one.
    Fraction(f64),
}

impl From<usize> for SplitSize {
    fn from(rows: usize) -> Self {
        Self::Rows(rows)
    }
}

impl From<f64> for SplitSize {
    fn from(fraction: f64) -> Self {
        Self::Fraction(fraction)
    }
}

impl SplitSize {
    /// Rows to set apart of `len`; at least one row is left on either side.
    pub(super) fn rows(self, len: usize) -> Result<usize> {
        let rows = match self {
            Self::Rows(rows) => rows,
            Self::Fraction(share) if share > 0.0 && share < 1.0 => {
                let rows = (share * len as f64).round() as usize;
                rows.clamp(1, len.saturating_sub(1).max(1))
            }
            Self::Fraction(share) => {
                return Err(Error::option("split", share, "a fraction above 0 and below 1"));
            }
        };
        if rows == 0 || rows >= len {
            let value = format!("{rows} of {len} rows");
            return Err(Error::option("split", value, "at least one row on either side"));
        }
        Ok(rows)
    }
}

/// Which of `len` rows a split sets apart: one flag per row.
pub(super) fn set_apart(len: usize, rows: usize, seed: u64) -> Result<Vec<bool>> {
    let order = permutation(len, seed, Purpose::Split)?;
    let mut apart = try_vec(len, "a split of rows")?;
    apart.resize(len, false);
    for row in order.into_iter().take(rows) {
        if let Some(flag) = apart.get_mut(row) {
            *flag = true;
        }
    }
    Ok(apart)
}
