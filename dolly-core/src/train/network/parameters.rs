//! The tensors of a network in training: values, gradients, and where they come from.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::error::{Error, Result, try_vec, try_zeroed};
use crate::weights::{Checkpoint, RowSource};

/// Standard deviation of new weights (`initializer_range` of GPT-NeoX).
const INITIAL_DEVIATION: f32 = 0.02;

/// One tensor of the network.
#[derive(Debug, Clone)]
pub(crate) struct Parameter {
    /// Its name in the Hugging Face layout; for adapters, in PEFT's.
    pub name: String,
    /// `(rows, columns)` of a matrix, one number of a vector.
    pub shape: Vec<usize>,
    /// Values, row-major.
    pub values: Vec<f32>,
    /// Sum of the gradients since they were last cleared; empty when frozen, or held on a device.
    pub gradient: Vec<f32>,
    /// Whether it is trained.
    pub trainable: bool,
}

impl Parameter {
    /// A tensor of zeros, without room for a gradient.
    fn zeros(name: String, shape: Vec<usize>, trainable: bool) -> Result<Self> {
        let len = shape.iter().try_fold(1_usize, |n, d| n.checked_mul(*d)).unwrap_or(usize::MAX);
        let values = try_zeroed(len, &name)?;
        Ok(Self { name, shape, values, gradient: Vec::new(), trainable })
    }

    /// Bytes of values and gradient.
    pub(super) fn bytes(&self) -> u64 {
        4 * (self.values.len() + self.gradient.len()) as u64
    }

    /// Whether it is the bias or weight of a norm, or a bias: a vector.
    pub(super) fn is_vector(&self) -> bool {
        self.shape.len() == 1
    }

    /// Reads the values from a checkpoint; missing rows of a longer table are drawn from a normal
    /// distribution with the mean and deviation that the stored rows have in each column.
    pub(super) fn read(&mut self, checkpoint: &Checkpoint, numbers: &mut Normals) -> Result<()> {
        let [rows, columns] = *self.shape.as_slice() else {
            self.values = checkpoint.read_vec(&self.name, self.values.len())?;
            return Ok(());
        };
        let reader = checkpoint.reader(&self.name)?;
        let stored = reader.shape();
        if stored.1 != columns {
            let file = checkpoint.file_of(checkpoint.tensor(&self.name)?);
            let reason = format!("shape {stored:?}; the configuration says ({rows}, {columns})");
            return Err(Error::tensor(file, &self.name, reason));
        }
        let kept = rows.min(stored.0);
        // A few rows at a time: readers may hold scratch space for what they are asked.
        let group = (1_usize << 20).div_ceil(columns.max(1));
        for first in (0..kept).step_by(group) {
            let end = kept.min(first + group);
            reader.read_rows(first, &mut self.values[first * columns..end * columns])?;
        }
        extend(&mut self.values, kept, columns, numbers);
        Ok(())
    }

    /// Fills a new tensor as GPT-NeoX does: norms with ones, biases with zeros, matrices from a
    /// normal distribution of deviation 0.02.
    pub(super) fn initialise(&mut self, numbers: &mut Normals) {
        if self.is_vector() {
            let norm = self.name.contains("norm") && self.name.ends_with(".weight");
            self.values.fill(if norm { 1.0 } else { 0.0 });
        } else {
            self.values.fill_with(|| INITIAL_DEVIATION * numbers.next());
        }
    }
}

/// Draws the rows from `kept` on like those before.
fn extend(values: &mut [f32], kept: usize, columns: usize, numbers: &mut Normals) {
    let (old, new) = values.split_at_mut(kept * columns);
    if new.is_empty() {
        return;
    }
    let column = |c: usize| old.iter().skip(c).step_by(columns).map(|x| f64::from(*x));
    let count = kept.max(1) as f64;
    for c in 0..columns {
        let mean = column(c).sum::<f64>() / count;
        let variance = column(c).map(|x| (x - mean).powi(2)).sum::<f64>() / count;
        for to in new.iter_mut().skip(c).step_by(columns) {
            *to = (mean + variance.sqrt() * f64::from(numbers.next())) as f32;
        }
    }
}

/// Reproducible numbers of a standard normal distribution (Box and Muller, 1958).
pub(super) struct Normals {
    source: ChaCha8Rng,
    spare: Option<f32>,
}

impl Normals {
    pub(super) fn new(seed: u64) -> Self {
        Self { source: ChaCha8Rng::seed_from_u64(seed), spare: None }
    }

    /// Uniform in (0, 1].
    pub(super) fn uniform(&mut self) -> f64 {
        ((self.source.next_u64() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    pub(super) fn next(&mut self) -> f32 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * self.uniform()).sin_cos();
        self.spare = Some((radius * sin) as f32);
        (radius * cos) as f32
    }
}

/// The parameters under construction.
pub(super) struct Builder {
    pub parameters: Vec<Parameter>,
}

impl Builder {
    pub(super) fn new(count: usize) -> Result<Self> {
        Ok(Self { parameters: try_vec(count, "the list of parameters")? })
    }

    /// Adds a tensor of zeros; its index.
    pub(super) fn add(&mut self, name: String, shape: &[usize], trainable: bool) -> Result<usize> {
        self.parameters.push(Parameter::zeros(name, shape.to_vec(), trainable)?);
        Ok(self.parameters.len() - 1)
    }
}
