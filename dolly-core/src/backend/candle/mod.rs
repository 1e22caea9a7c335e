//! The backend on candle tensors: the reference on the CPU, and the way to a GPU.
//!
//! Nothing here shares code with [`kernels`](crate::kernels), so the two check each other. The
//! operations are candle's and candle-nn's; what is fused there (layer norm, softmax, rotation) has
//! no backward pass, and nothing here is differentiated.
//!
//! Activations between the blocks are f32. A matrix is multiplied in the type it is held in, sums
//! and norms and softmax are f32. A product may round differently for other numbers of rows, so a
//! row's values depend on the other rows of a call within that rounding.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};

use self::attention::{Step, Tables, together};
pub use self::cache::CandleCache;
use self::weights::{Held, Matrix};
use crate::backend::{Backend, CacheFormat, Largest, RotaryTable, Span};
use crate::error::{Error, Result, try_vec};
use crate::model::{Activation, Config};
use crate::weights::{RowSource, WeightFormat};

mod attention;
mod cache;
mod device;
mod largest;
mod weights;

pub(crate) use self::device::{Gpu, allocating, fetch};

/// Rows in more runs than this are picked by their numbers, which have to be copied to the device.
const MOST_RUNS: usize = 8;

/// The type that attention computes in, and that keys and values are held in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compute {
    /// 32-bit floats.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl Compute {
    /// What goes with weights of which most are held in `format`.
    pub fn with_weights(format: WeightFormat) -> Self {
        match format {
            WeightFormat::F32 | WeightFormat::Auto => Self::F32,
            WeightFormat::Bf16 => Self::Bf16,
            _ => Self::F16,
        }
    }

    /// What a wanted format of keys and values asks for.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for 8-bit integers.
    pub fn with_cache(format: CacheFormat) -> Result<Self> {
        match format {
            CacheFormat::F32 => Ok(Self::F32),
            CacheFormat::F16 => Ok(Self::F16),
            CacheFormat::Bf16 => Ok(Self::Bf16),
            CacheFormat::Q8_0 => {
                let what = "keys and values in q8_0 on a GPU: f32, f16 or bf16";
                Err(Error::Unsupported(what.to_owned()))
            }
        }
    }

    fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }
}

/// Runs the network on candle tensors.
pub struct CandleBackend {
    device: Device,
    compute: Compute,
    /// Whether matrices are rounded to their format and held and multiplied in f32.
    widened: bool,
    steps: Mutex<Steps>,
    #[cfg(test)]
    uploads: std::sync::atomic::AtomicUsize,
}

/// What the layers of a step share.
#[derive(Default)]
struct Steps {
    /// With the address and size of the table it was made from.
    tables: Option<((usize, usize), Arc<Tables>)>,
    step: Option<Arc<Step>>,
    /// Whether that was just made, of the tokens and caches that the first layer is given.
    begun: bool,
    /// The numbers of logits' columns, once they are chosen among.
    columns: Option<Tensor>,
}

/// A weight and its bias, if it has one.
pub struct CandleLinear {
    weight: Matrix,
    bias: Option<Tensor>,
}

/// Weight, bias, epsilon of a layer norm.
pub struct CandleNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
}

impl CandleBackend {
    /// The reference on the CPU: everything in f32, matrices rounded to their formats by candle's
    /// own converters.
    pub fn cpu() -> Self {
        Self { widened: true, ..Self::on_cpu(Compute::F32) }
    }

    /// As on a GPU, on the CPU: matrices held in their formats.
    pub fn on_cpu(compute: Compute) -> Self {
        Self {
            device: Device::Cpu,
            compute,
            widened: false,
            steps: Mutex::default(),
            #[cfg(test)]
            uploads: Default::default(),
        }
    }

    /// On GPU `index`, with matrices held in their formats.
    ///
    /// # Errors
    /// [`Error::Device`] in a build without the feature `cuda`, and where no driver answers, there
    /// is no such GPU, or a library of CUDA is missing.
    pub fn on_gpu(index: usize, compute: Compute) -> Result<Self> {
        Ok(Self::on(Gpu::open(index)?, compute))
    }

    pub(crate) fn on(gpu: Gpu, compute: Compute) -> Self {
        Self { device: gpu.device, ..Self::on_cpu(compute) }
    }

    fn vector(&self, values: Vec<f32>, dtype: DType) -> Result<Tensor> {
        let len = values.len();
        let vector = Tensor::from_vec(values, len, &Device::Cpu)?.to_dtype(dtype)?;
        let vector = vector.to_device(&self.device)?;
        self.device.synchronize()?;
        Ok(vector)
    }

    /// The type an embedding table is held in: never less than its format.
    fn table_dtype(&self, format: WeightFormat) -> DType {
        match format {
            WeightFormat::F32 | WeightFormat::Auto => DType::F32,
            WeightFormat::Bf16 => DType::BF16,
            _ => DType::F16,
        }
    }

    /// The numbers of `width` columns; they stay on the device.
    fn columns(&self, width: usize) -> Result<Tensor> {
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        match steps.columns.as_ref().filter(|columns| columns.elem_count() == width) {
            Some(columns) => Ok(columns.clone()),
            None => Ok(steps.columns.insert(largest::columns(width, &self.device)?).clone()),
        }
    }

    /// Copies numbers of a step to the device.
    fn upload(&self, words: Vec<u32>) -> Result<Tensor> {
        #[cfg(test)]
        self.uploads.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let count = words.len();
        Ok(Tensor::from_vec(words, count, &self.device)?)
    }

    /// What the layers of this step share: as [`begin`](Backend::begin) made it, or made at the
    /// first of them.
    fn step(
        &self,
        config: &Config,
        rotary: &RotaryTable,
        layer: usize,
        spans: &[Span],
        caches: &[&mut CandleCache],
    ) -> Result<Arc<Step>> {
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        let known = layer > 0 || std::mem::take(&mut steps.begun);
        if let Some(step) = steps.step.as_ref().filter(|step| known && step.is_for(spans)) {
            return Ok(Arc::clone(step));
        }
        self.plan(&mut steps, (config, rotary), (&[], spans), together(spans, caches, layer))
    }

    fn plan(
        &self,
        steps: &mut Steps,
        (config, rotary): (&Config, &RotaryTable),
        rows: (&[u32], &[Span]),
        members: Vec<(Vec<usize>, bool)>,
    ) -> Result<Arc<Step>> {
        let made_from = (rotary.cos.as_ptr() as usize, rotary.cos.len());
        let tables = match &steps.tables {
            Some((known, tables)) if *known == made_from => Arc::clone(tables),
            _ => {
                let tables = Arc::new(Tables::new(rotary, self.compute.dtype(), &self.device)?);
                steps.tables = Some((made_from, Arc::clone(&tables)));
                tables
            }
        };
        let upload = |words| self.upload(words);
        let step = Arc::new(Step::plan(config, &tables, rows, members, upload)?);
        steps.step = Some(Arc::clone(&step));
        Ok(step)
    }
}

/// The runs of rows that follow each other, `(first, rows)`; `None` where there are many.
fn runs(rows: &[usize]) -> Option<Vec<(usize, usize)>> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for row in rows {
        let full = runs.len() == MOST_RUNS;
        match runs.last_mut() {
            Some((first, count)) if *first + *count == *row => *count += 1,
            _ if full => return None,
            _ => runs.push((*row, 1)),
        }
    }
    (!runs.is_empty()).then_some(runs)
}

/// An activation of every element.
pub(crate) fn activate(x: Tensor, activation: Activation) -> Result<Tensor> {
    let sigmoid = |x: &Tensor| -> Result<Tensor> { Ok(((x.neg()?.exp()? + 1.0)?).recip()?) };
    Ok(match activation {
        Activation::Gelu => x.gelu_erf()?,
        Activation::GeluTanh => x.gelu()?,
        Activation::QuickGelu => (&x * sigmoid(&(&x * 1.702)?)?)?,
        Activation::Relu => x.relu()?,
        Activation::Silu => (&x * sigmoid(&x)?)?,
    })
}

impl Backend for CandleBackend {
    type Activations = Option<Tensor>;
    type Linear = CandleLinear;
    type Embedding = Tensor;
    type Norm = CandleNorm;
    type Cache = CandleCache;

    fn load_linear(
        &self,
        weight: &dyn RowSource,
        bias: Option<Vec<f32>>,
        format: WeightFormat,
    ) -> Result<CandleLinear> {
        let weight = match self.widened {
            true => Matrix::Dense(weights::rounded(weight, format, &self.device)?),
            false => weights::held(weight, format, &self.device)?,
        };
        let bias = bias.map(|bias| self.vector(bias, weight.output())).transpose()?;
        Ok(CandleLinear { weight, bias })
    }

    fn load_embedding(&self, weight: &dyn RowSource, format: WeightFormat) -> Result<Tensor> {
        match self.widened {
            true => weights::rounded(weight, format, &self.device),
            false => weights::dense(weight, self.table_dtype(format), &self.device),
        }
    }

    fn load_norm(&self, weight: Vec<f32>, bias: Vec<f32>, eps: f32) -> Result<CandleNorm> {
        let (weight, bias) = (self.vector(weight, DType::F32)?, self.vector(bias, DType::F32)?);
        Ok(CandleNorm { weight, bias, eps })
    }

    fn linear_bytes(&self, out_features: usize, in_features: usize, format: WeightFormat) -> u64 {
        let held = match self.widened {
            true => Held::Rounded,
            false => Held::of(format, in_features),
        };
        let weights = (out_features as u64).saturating_mul(in_features as u64);
        held.bytes(weights, &self.device)
    }

    fn embedding_bytes(&self, rows: usize, width: usize, format: WeightFormat) -> u64 {
        let held = match self.widened {
            true => Held::Rounded,
            false => Held::Dense(self.table_dtype(format)),
        };
        held.bytes((rows as u64).saturating_mul(width as u64), &self.device)
    }

    fn new_cache(&self, config: &Config, tokens: usize) -> Result<CandleCache> {
        CandleCache::new(config, tokens, self.compute.dtype(), &self.device)
    }

    fn cache_bytes(&self, config: &Config, tokens: usize) -> u64 {
        cache::bytes(config, tokens, self.compute.dtype())
    }

    fn copy_cache(
        &self,
        from: &CandleCache,
        at: usize,
        to: &mut CandleCache,
        start: usize,
        tokens: usize,
    ) -> Result<()> {
        to.copy_from(start, from, at, tokens)
    }

    fn empty(&self) -> Option<Tensor> {
        None
    }

    fn bytes(&self, x: &Option<Tensor>) -> u64 {
        x.as_ref().map_or(0, |x| (x.dtype().size_in_bytes() * x.elem_count()) as u64)
    }

    fn begin(
        &self,
        config: &Config,
        rotary: &RotaryTable,
        ids: &[u32],
        spans: &[Span],
        caches: &[&mut CandleCache],
    ) -> Result<()> {
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        steps.begun = false;
        self.plan(&mut steps, (config, rotary), (ids, spans), together(spans, caches, 0))?;
        steps.begun = true;
        Ok(())
    }

    fn embed(&self, table: &Tensor, ids: &[u32], out: &mut Option<Tensor>) -> Result<()> {
        let step = self.steps.lock().unwrap_or_else(PoisonError::into_inner).step.clone();
        let ids = match step.as_ref().and_then(|step| step.ids(ids)) {
            Some(ids) => ids.clone(),
            None => self.upload(ids.to_vec())?,
        };
        *out = Some(table.index_select(&ids, 0)?.to_dtype(DType::F32)?);
        Ok(())
    }

    fn layer_norm(
        &self,
        x: &Option<Tensor>,
        norm: &CandleNorm,
        out: &mut Option<Tensor>,
    ) -> Result<()> {
        let x = filled(x)?.contiguous()?;
        *out = Some(candle_nn::ops::layer_norm(&x, &norm.weight, &norm.bias, norm.eps)?);
        Ok(())
    }

    fn linear(
        &self,
        x: &Option<Tensor>,
        linear: &CandleLinear,
        activation: Option<Activation>,
        out: &mut Option<Tensor>,
    ) -> Result<()> {
        let mut y = linear.weight.product(filled(x)?)?;
        if let Some(bias) = &linear.bias {
            y = y.broadcast_add(bias)?;
        }
        *out = Some(match activation {
            Some(activation) => activate(y, activation)?,
            None => y,
        });
        Ok(())
    }

    fn linear_add(
        &self,
        x: &Option<Tensor>,
        linear: &CandleLinear,
        out: &mut Option<Tensor>,
    ) -> Result<()> {
        let mut y = None;
        self.linear(x, linear, None, &mut y)?;
        *out = Some((filled(out)? + filled(&y)?.to_dtype(DType::F32)?)?);
        Ok(())
    }

    fn attention(
        &self,
        config: &Config,
        rotary: &RotaryTable,
        layer: usize,
        qkv: &Option<Tensor>,
        spans: &[Span],
        caches: &mut [&mut CandleCache],
        out: &mut Option<Tensor>,
    ) -> Result<()> {
        let qkv = filled(qkv)?.to_dtype(self.compute.dtype())?;
        let step = self.step(config, rotary, layer, spans, caches)?;
        *out = Some(step.attend(config, layer, &qkv, caches)?);
        Ok(())
    }

    fn select_rows(
        &self,
        x: &Option<Tensor>,
        rows: &[usize],
        out: &mut Option<Tensor>,
    ) -> Result<()> {
        let x = filled(x)?;
        if let Some(runs) = runs(rows) {
            let runs = runs.iter().map(|(first, count)| x.narrow(0, *first, *count));
            let runs = runs.collect::<Result<Vec<_>, _>>()?;
            *out = Some(match &*runs {
                [one] => one.clone(),
                runs => Tensor::cat(runs, 0)?,
            });
            return Ok(());
        }
        let mut picked: Vec<u32> = try_vec(rows.len(), "row numbers")?;
        picked.extend(rows.iter().map(|row| *row as u32));
        *out = Some(x.index_select(&self.upload(picked)?, 0)?);
        Ok(())
    }

    fn read(&self, x: &Option<Tensor>, out: &mut Vec<f32>) -> Result<()> {
        fetch(filled(x)?, "activations", out)
    }

    fn largest(&self, x: &Option<Tensor>, count: usize) -> Result<Option<Largest>> {
        let x = filled(x)?;
        let width = x.dim(1)?;
        if !largest::can_find(count, width) {
            return Ok(None);
        }
        let columns = self.columns(width)?;
        largest::largest(x, &columns, count).map(Some)
    }
}

fn filled(x: &Option<Tensor>) -> Result<&Tensor> {
    x.as_ref().ok_or_else(|| Error::Internal("activations read before they were written".into()))
}

#[cfg(test)]
mod tests;
