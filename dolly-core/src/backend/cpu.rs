//! The CPU backend: own kernels over plain buffers.
//!
//! Weights are packed while they are read, in the format asked for; activations are f32 between
//! operations, and integers or bf16 beside weights that are multiplied so. Results are a
//! function of model, format and instruction set: not of threads, batch or chunks (see
//! [`kernels`](crate::kernels)).

use super::{Backend, CacheFormat, RotaryTable, Span};
use crate::error::{Error, Result};
use crate::kernels::Kernels;
use crate::kernels::arena::Arena;
use crate::kernels::attention::{self, AttentionScratch, Heads, KvCache};
use crate::kernels::embedding::{RowTable, table_bytes};
use crate::kernels::linear::{Epilogue, InputScratch, Matrix, linear, matrix_bytes, resize};
use crate::kernels::pack::Layout;
use crate::kernels::pool::{self, Pool};
use crate::model::{Activation, Config};
use crate::weights::{RowSource, WeightFormat};

/// Below this many floats a second thread costs more than it saves.
const PARALLEL_FROM: usize = 1 << 15;
/// More threads than any machine has: a typing error, not a wish.
const MOST_THREADS: usize = 4096;

/// How a [`CpuBackend`] runs.
#[derive(Debug, Clone, Default)]
pub struct CpuOptions {
    /// Threads that compute, 1 to 4096; unset: as many as the process may use.
    pub threads: Option<usize>,
    /// How keys and values are held.
    pub cache: CacheFormat,
}

/// Runs the network on the CPU.
///
/// The instruction set is the best this CPU has, or the one named by the environment variable
/// `DOLLY_FORCE_ISA` (`portable`, `avx2`, `avx512`, `avx512vnni`, `avx512bf16`). Cheap operations run on the
/// caller's thread.
///
/// ```
/// use dolly_core::backend::cpu::{CpuBackend, CpuOptions};
/// let backend = CpuBackend::new(CpuOptions { threads: Some(2), ..Default::default() })?;
/// assert_eq!(backend.threads(), 2);
/// # Ok::<(), dolly_core::Error>(())
/// ```
pub struct CpuBackend {
    kernels: Kernels,
    pool: Pool,
    /// Where weights lie.
    arena: Arena,
    cache: CacheFormat,
}

/// `(rows, width)` floats, row-major.
#[derive(Default)]
pub struct Activations {
    data: Vec<f32>,
    rows: usize,
    width: usize,
    /// Memory of the operation that writes here.
    input: InputScratch,
    attention: AttentionScratch,
}

/// A packed weight and its bias.
pub struct Linear {
    matrix: Matrix,
    bias: Option<Vec<f32>>,
}

/// An embedding table.
pub struct Embedding(RowTable);

/// Weight, bias and epsilon of a layer norm.
pub struct Norm {
    weight: Vec<f32>,
    bias: Vec<f32>,
    eps: f32,
}

/// Keys and values of one sequence.
pub struct Cache(KvCache);

impl CpuBackend {
    /// Picks the instruction set and starts the threads.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] when `threads` is out of range, or `DOLLY_FORCE_ISA` names a set
    /// that is unknown or that this CPU lacks; [`Error::Device`] when threads cannot be started.
    pub fn new(options: CpuOptions) -> Result<Self> {
        let forced = std::env::var_os("DOLLY_FORCE_ISA").filter(|name| !name.is_empty());
        Self::with_isa(options, forced.as_ref().map(|name| name.to_string_lossy()).as_deref())
    }

    /// As [`new`](Self::new), with the instruction set by name instead of the environment.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_isa(options: CpuOptions, isa: Option<&str>) -> Result<Self> {
        let threads = match options.threads {
            Some(threads) if !(1..=MOST_THREADS).contains(&threads) => {
                return Err(Error::option("threads", threads, "1 to 4096"));
            }
            Some(threads) => threads,
            None => std::thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS),
        };
        let kernels = Kernels::select(isa)?;
        tracing::debug!(isa = kernels.name(), threads, "CPU backend");
        Ok(Self {
            kernels,
            pool: Pool::new(threads)?,
            arena: Arena::default(),
            cache: options.cache,
        })
    }

    /// Name of the instruction set in use: `portable`, `avx2`, `avx512` (F, BW, DQ and VL),
    /// `avx512vnni`, which multiplies integers faster, or `avx512bf16`, which does so with bf16 too.
    pub fn isa(&self) -> &'static str {
        self.kernels.name()
    }

    /// Holds keys and values in what goes with weights of `format`: f32 and f16 in the same, others in bf16
    /// where the CPU multiplies that, else in f16.
    pub fn with_cache_beside(mut self, format: WeightFormat) -> Self {
        self.cache = match format {
            WeightFormat::F32 => CacheFormat::F32,
            WeightFormat::F16 => CacheFormat::F16,
            _ if self.kernels.multiplies_bf16() => CacheFormat::Bf16,
            _ => CacheFormat::F16,
        };
        self
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Calls `work(first row, rows of out)` for groups of rows from the backend's threads.
    fn by_rows(&self, out: &mut Activations, work: impl Fn(usize, &mut [f32]) + Sync) {
        let (rows, width) = (out.rows, out.width);
        let parallel = out.data.len() >= PARALLEL_FROM;
        pool::rows(&self.pool, &mut out.data, rows, width, parallel, work);
    }

    /// The product of a linear layer into `out`, which has its shape.
    fn product(
        &self,
        x: &Activations,
        layer: &Linear,
        epilogue: Epilogue,
        out: &mut Activations,
    ) -> Result<()> {
        let inputs = layer.matrix.shape().1;
        if x.width != inputs {
            return Err(mismatch("width of a linear layer's input", inputs, x.width));
        }
        linear(
            self.kernels,
            &self.pool,
            &layer.matrix,
            (&x.data, x.rows),
            layer.bias.as_deref(),
            epilogue,
            &mut out.data,
            &mut out.input,
        )
    }
}

impl Activations {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Floats in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    fn reshape(&mut self, rows: usize, width: usize) -> Result<()> {
        resize(&mut self.data, rows.saturating_mul(width), "activations")?;
        (self.rows, self.width) = (rows, width);
        Ok(())
    }
}

impl Cache {
    /// Tokens it holds at most.
    pub fn tokens(&self) -> usize {
        self.0.tokens()
    }
}

fn layout(format: WeightFormat) -> Result<Layout> {
    Layout::of(format)
        .ok_or_else(|| Error::Internal("the weight format was not resolved".to_owned()))
}

fn mismatch(what: &str, expected: usize, found: usize) -> Error {
    Error::Internal(format!("{what}: expected {expected}, found {found}"))
}

impl Backend for CpuBackend {
    type Activations = Activations;
    type Linear = Linear;
    type Embedding = Embedding;
    type Norm = Norm;
    type Cache = Cache;

    fn install<R: Send>(&self, step: impl FnOnce() -> R + Send) -> R {
        self.pool.install(step)
    }

    fn bytes(&self, x: &Activations) -> u64 {
        4 * x.data.capacity() as u64 + x.input.bytes() + x.attention.bytes()
    }

    fn load_linear(
        &self,
        weight: &dyn RowSource,
        bias: Option<Vec<f32>>,
        format: WeightFormat,
    ) -> Result<Linear> {
        let outputs = weight.shape().0;
        if let Some(bias) = bias.as_ref().filter(|bias| bias.len() != outputs) {
            return Err(mismatch("values of a bias", outputs, bias.len()));
        }
        Ok(Linear { matrix: Matrix::pack(&self.pool, &self.arena, weight, layout(format)?)?, bias })
    }

    fn load_embedding(&self, weight: &dyn RowSource, format: WeightFormat) -> Result<Embedding> {
        Ok(Embedding(RowTable::load(&self.pool, &self.arena, weight, layout(format)?)?))
    }

    fn load_norm(&self, weight: Vec<f32>, bias: Vec<f32>, eps: f32) -> Result<Norm> {
        if weight.len() != bias.len() {
            return Err(mismatch("values of a norm's bias", weight.len(), bias.len()));
        }
        Ok(Norm { weight, bias, eps })
    }

    fn linear_bytes(&self, out_features: usize, in_features: usize, format: WeightFormat) -> u64 {
        Layout::of(format)
            .map_or(u64::MAX, |layout| matrix_bytes(out_features, in_features, layout))
    }

    fn embedding_bytes(&self, rows: usize, width: usize, format: WeightFormat) -> u64 {
        Layout::of(format).map_or(u64::MAX, |layout| table_bytes(rows, width, layout))
    }

    fn new_cache(&self, config: &Config, tokens: usize) -> Result<Cache> {
        let (layers, heads) = (config.num_hidden_layers, config.num_attention_heads);
        Ok(Cache(KvCache::new(layers, heads, config.head_dim(), tokens, self.cache)?))
    }

    fn cache_bytes(&self, config: &Config, tokens: usize) -> u64 {
        let (layers, heads) = (config.num_hidden_layers, config.num_attention_heads);
        attention::cache_bytes(layers, heads, config.head_dim(), tokens, self.cache)
    }

    fn owns_caches(&self) -> bool {
        true
    }

    fn copy_cache(
        &self,
        from: &Cache,
        at: usize,
        to: &mut Cache,
        start: usize,
        tokens: usize,
    ) -> Result<()> {
        to.0.copy_from(start, &from.0, at, tokens)
    }

    fn empty(&self) -> Activations {
        Activations::default()
    }

    fn embed(&self, table: &Embedding, ids: &[u32], out: &mut Activations) -> Result<()> {
        let (rows, width) = table.0.shape();
        if let Some(id) = ids.iter().find(|&&id| id as usize >= rows) {
            return Err(mismatch("token ids below", rows, *id as usize));
        }
        out.reshape(ids.len(), width)?;
        self.by_rows(out, |first, out| {
            for (row, id) in out.chunks_exact_mut(width).zip(&ids[first..]) {
                table.0.read(*id as usize, row);
            }
        });
        Ok(())
    }

    fn layer_norm(&self, x: &Activations, norm: &Norm, out: &mut Activations) -> Result<()> {
        if norm.weight.len() != x.width {
            return Err(mismatch("width of a norm's input", norm.weight.len(), x.width));
        }
        out.reshape(x.rows, x.width)?;
        self.by_rows(out, |first, out| {
            let x = x.data[first * x.width..].chunks_exact(x.width);
            for (out, x) in out.chunks_exact_mut(norm.weight.len()).zip(x) {
                self.kernels.layer_norm(x, &norm.weight, &norm.bias, norm.eps, out);
            }
        });
        Ok(())
    }

    fn layer_norm_pair(
        &self,
        x: &Activations,
        norms: (&Norm, &Norm),
        out: (&mut Activations, &mut Activations),
    ) -> Result<()> {
        let (first, second) = norms;
        for norm in [first, second] {
            if norm.weight.len() != x.width {
                return Err(mismatch("width of a norm's input", norm.weight.len(), x.width));
            }
        }
        if first.eps != second.eps {
            self.layer_norm(x, first, out.0)?;
            return self.layer_norm(x, second, out.1);
        }
        out.0.reshape(x.rows, x.width)?;
        out.1.reshape(x.rows, x.width)?;
        let parallel = x.data.len() >= PARALLEL_FROM;
        let (sizes, both) = ((x.width, x.width), (&mut *out.0.data, &mut *out.1.data));
        pool::pieces(&self.pool, both, sizes, x.rows, parallel, |row, a, b| {
            let x = &x.data[row * x.width..(row + 1) * x.width];
            let norms = ((&*first.weight, &*first.bias), (&*second.weight, &*second.bias));
            self.kernels.layer_norm_pair(x, norms, first.eps, (a, b));
        });
        Ok(())
    }

    fn linear(
        &self,
        x: &Activations,
        layer: &Linear,
        activation: Option<Activation>,
        out: &mut Activations,
    ) -> Result<()> {
        out.reshape(x.rows, layer.matrix.shape().0)?;
        self.product(x, layer, Epilogue { activation, add: false }, out)
    }

    fn linear_add(&self, x: &Activations, layer: &Linear, out: &mut Activations) -> Result<()> {
        let outputs = layer.matrix.shape().0;
        if (out.rows, out.width) != (x.rows, outputs) {
            return Err(mismatch("values of a sum", x.rows * outputs, out.data.len()));
        }
        self.product(x, layer, Epilogue { activation: None, add: true }, out)
    }

    fn attention(
        &self,
        config: &Config,
        rotary: &RotaryTable,
        layer: usize,
        qkv: &Activations,
        spans: &[Span],
        caches: &mut [&mut Cache],
        out: &mut Activations,
    ) -> Result<()> {
        let heads = Heads { count: config.num_attention_heads, dim: config.head_dim(), layer };
        let hidden = heads.count.saturating_mul(heads.dim);
        if qkv.width != hidden.saturating_mul(3) {
            return Err(mismatch("width of an attention's input", hidden * 3, qkv.width));
        }
        out.reshape(qkv.rows, hidden)?;
        attention::attention(
            self.kernels,
            &self.pool,
            &heads,
            rotary,
            &qkv.data,
            spans,
            caches.iter_mut().map(|cache| &mut cache.0),
            &mut out.data,
            &mut out.attention,
        )
    }

    fn select_rows(&self, x: &Activations, rows: &[usize], out: &mut Activations) -> Result<()> {
        if let Some(row) = rows.iter().find(|&&row| row >= x.rows) {
            return Err(mismatch("row numbers below", x.rows, *row));
        }
        out.reshape(rows.len(), x.width)?;
        for (out, row) in out.data.chunks_exact_mut(x.width.max(1)).zip(rows) {
            out.copy_from_slice(&x.data[row * x.width..(row + 1) * x.width]);
        }
        Ok(())
    }

    fn read(&self, x: &Activations, out: &mut Vec<f32>) -> Result<()> {
        resize(out, x.data.len(), "activations")?;
        out.copy_from_slice(&x.data);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
