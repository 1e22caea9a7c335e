//! The reference backend: the network's operations composed of candle's elementary ones.
//!
//! Nothing is fused and nothing shares code with [`kernels`](crate::kernels), so the two check each
//! other. Weights are rounded to the wanted format by candle's own converters and computed in f32.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{D, DType, Device, IndexOp, Tensor};

use crate::backend::{Backend, RotaryTable, Span};
use crate::error::{Error, Result, try_zeroed};
use crate::model::{Activation, Config};
use crate::weights::{
    RowSource, SUPER_BLOCK, StoredType, WeightFormat, dequantize, quantize_q4_k, quantize_q6_k,
};

/// Runs the network on candle tensors.
#[derive(Debug, Clone)]
pub struct CandleBackend {
    device: Device,
}

/// A weight `(in, out)` with its bias.
pub struct CandleLinear {
    weight: Tensor,
    bias: Option<Tensor>,
}

/// Weight, bias, epsilon of a layer norm.
pub struct CandleNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

/// Per layer, keys and values of the tokens so far, `(heads, tokens, head_dim)`.
pub struct CandleCache {
    layers: Vec<Option<(Tensor, Tensor)>>,
}

impl CandleBackend {
    /// The reference on the CPU.
    pub fn cpu() -> Self {
        Self { device: Device::Cpu }
    }

    fn tensor(&self, values: Vec<f32>, shape: impl Into<candle_core::Shape>) -> Result<Tensor> {
        Ok(Tensor::from_vec(values, shape, &self.device)?)
    }

    fn matrix(&self, source: &dyn RowSource, format: WeightFormat) -> Result<Tensor> {
        let (rows, cols) = source.shape();
        let mut values = try_zeroed(rows.saturating_mul(cols), source.name())?;
        source.read_rows(0, &mut values)?;
        let format = format.fitting(cols);
        if let WeightFormat::Q4K | WeightFormat::Q6K = format {
            round_super_blocks(&mut values, source, format);
        }
        round(self.tensor(values, (rows, cols))?, format)
    }

    fn rows_of(&self, table: &[f32], half: usize, span: &Span) -> Result<Tensor> {
        let (from, to) = (span.position * half, (span.position + span.rows) * half);
        self.tensor(table[from..to].to_vec(), (1, span.rows, half))
    }

    /// Attention of one sequence; `qkv` is `(rows, 3 hidden)`, the result `(rows, hidden)`.
    fn attend(
        &self,
        config: &Config,
        rotary: &RotaryTable,
        qkv: &Tensor,
        span: &Span,
        cache: &mut Option<(Tensor, Tensor)>,
    ) -> Result<Tensor> {
        let (heads, dim) = (config.num_attention_heads, config.head_dim());
        let qkv = qkv.reshape((span.rows, heads, 3, dim))?.permute((2, 1, 0, 3))?; // (3, h, t, d)
        let cos = self.rows_of(&rotary.cos, rotary.half, span)?;
        let sin = self.rows_of(&rotary.sin, rotary.half, span)?;
        let query = rotate(&qkv.i(0)?.contiguous()?, &cos, &sin)?;
        let key = rotate(&qkv.i(1)?.contiguous()?, &cos, &sin)?;
        let value = qkv.i(2)?.contiguous()?;
        let (key, value) = append(cache.take(), span.position, key, value)?;
        let scores = query.matmul(&key.t()?.contiguous()?)?;
        let scores = (scores * (1.0 / (dim as f64).sqrt()))?; // (h, t, s)
        let scores = scores.broadcast_add(&self.causal_mask(span)?)?;
        let scores = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
        let weights = scores.broadcast_div(&scores.sum_keepdim(D::Minus1)?)?;
        let mixed = weights.matmul(&value)?; // (h, t, d)
        *cache = Some((key, value));
        Ok(mixed.transpose(0, 1)?.reshape((span.rows, heads * dim))?)
    }

    fn causal_mask(&self, span: &Span) -> Result<Tensor> {
        let total = span.position + span.rows;
        let mut mask = try_zeroed(span.rows.saturating_mul(total), "causal mask")?;
        for row in 0..span.rows {
            let first_hidden = row * total + span.position + row + 1;
            mask[first_hidden..(row + 1) * total].fill(f32::NEG_INFINITY);
        }
        self.tensor(mask, (1, span.rows, total))
    }
}

/// The first `position` tokens of a layer's cache, then `key` and `value`.
fn append(
    cache: Option<(Tensor, Tensor)>,
    position: usize,
    key: Tensor,
    value: Tensor,
) -> Result<(Tensor, Tensor)> {
    let Some((keys, values)) = cache.filter(|_| position > 0) else {
        return Ok((key, value));
    };
    let (keys, values) = (keys.narrow(1, 0, position)?, values.narrow(1, 0, position)?);
    Ok((Tensor::cat(&[&keys, &key], 1)?, Tensor::cat(&[&values, &value], 1)?))
}

/// x[..2 half] rotated by the NeoX pairing (i, i + half); the rest passes.
fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (half, dim) = (cos.dim(D::Minus1)?, x.dim(D::Minus1)?);
    if half == 0 {
        return Ok(x.clone());
    }
    let (a, b) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
    let rest = x.narrow(D::Minus1, 2 * half, dim - 2 * half)?;
    let first = (a.broadcast_mul(cos)? - b.broadcast_mul(sin)?)?;
    let second = (b.broadcast_mul(cos)? + a.broadcast_mul(sin)?)?;
    Ok(Tensor::cat(&[&first, &second, &rest], D::Minus1)?)
}

/// Rounds to a format's values and back to f32. Rows that are no multiple of a block are padded.
fn round(x: Tensor, format: WeightFormat) -> Result<Tensor> {
    let quantized = |dtype: GgmlDType| -> Result<Tensor> {
        let cols = x.dim(1)?;
        let padding = cols.next_multiple_of(32) - cols;
        let padded = x.pad_with_zeros(1, 0, padding)?;
        let rounded = QTensor::quantize(&padded, dtype)?.dequantize(x.device())?;
        Ok(rounded.narrow(1, 0, cols)?.contiguous()?)
    };
    match format {
        WeightFormat::F16 => Ok(x.to_dtype(DType::F16)?.to_dtype(DType::F32)?),
        WeightFormat::Bf16 => Ok(x.to_dtype(DType::BF16)?.to_dtype(DType::F32)?),
        WeightFormat::Q8_0 => quantized(GgmlDType::Q8_0),
        WeightFormat::Q4_0 => quantized(GgmlDType::Q4_0),
        WeightFormat::F32 | WeightFormat::Auto | WeightFormat::Q4K | WeightFormat::Q6K => Ok(x),
    }
}

/// Rounds rows that were not stored in these blocks, as this library does: candle's search finds
/// other scales.
fn round_super_blocks(values: &mut [f32], source: &dyn RowSource, format: WeightFormat) {
    let stored = match format {
        WeightFormat::Q4K => StoredType::Q4K,
        _ => StoredType::Q6K,
    };
    if source.blocks() == Some(stored) {
        return;
    }
    for block in values.as_chunks_mut::<SUPER_BLOCK>().0 {
        match format {
            WeightFormat::Q4K => dequantize(stored, &quantize_q4_k(block), block),
            _ => dequantize(stored, &quantize_q6_k(block), block),
        }
    }
}

fn activate(x: Tensor, activation: Activation) -> Result<Tensor> {
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
        let weight = self.matrix(weight, format)?.t()?.contiguous()?;
        let bias = bias.map(|bias| {
            let len = bias.len();
            self.tensor(bias, len)
        });
        Ok(CandleLinear { weight, bias: bias.transpose()? })
    }

    fn load_embedding(&self, weight: &dyn RowSource, format: WeightFormat) -> Result<Tensor> {
        self.matrix(weight, format)
    }

    fn load_norm(&self, weight: Vec<f32>, bias: Vec<f32>, eps: f32) -> Result<CandleNorm> {
        let len = weight.len();
        let (weight, bias) = (self.tensor(weight, len)?, self.tensor(bias, len)?);
        Ok(CandleNorm { weight, bias, eps: f64::from(eps) })
    }

    fn linear_bytes(&self, out_features: usize, in_features: usize, _: WeightFormat) -> u64 {
        4 * (out_features as u64).saturating_mul(in_features as u64)
    }

    fn embedding_bytes(&self, rows: usize, width: usize, _: WeightFormat) -> u64 {
        4 * (rows as u64).saturating_mul(width as u64)
    }

    fn new_cache(&self, config: &Config, _: usize) -> Result<CandleCache> {
        Ok(CandleCache { layers: vec![None; config.num_hidden_layers] })
    }

    fn cache_bytes(&self, config: &Config, tokens: usize) -> u64 {
        let row = 2 * 4 * config.hidden_size as u64 * config.num_hidden_layers as u64;
        row.saturating_mul(tokens as u64)
    }

    fn copy_cache(
        &self,
        from: &CandleCache,
        at: usize,
        to: &mut CandleCache,
        start: usize,
        tokens: usize,
    ) -> Result<()> {
        for (from, to) in from.layers.iter().zip(&mut to.layers) {
            let Some((keys, values)) = from else {
                return Err(Error::Internal("an empty cache was copied".to_owned()));
            };
            // Copied, not narrowed: a view would hold on to the whole of the other cache.
            let copied = |x: &Tensor| x.narrow(1, at, tokens)?.force_contiguous();
            *to = Some(append(to.take(), start, copied(keys)?, copied(values)?)?);
        }
        Ok(())
    }

    fn empty(&self) -> Option<Tensor> {
        None
    }

    fn bytes(&self, x: &Option<Tensor>) -> u64 {
        x.as_ref().map_or(0, |x| 4 * x.elem_count() as u64)
    }

    fn embed(&self, table: &Tensor, ids: &[u32], out: &mut Option<Tensor>) -> Result<()> {
        let ids = Tensor::new(ids, &self.device)?;
        *out = Some(table.index_select(&ids, 0)?);
        Ok(())
    }

    fn layer_norm(
        &self,
        x: &Option<Tensor>,
        norm: &CandleNorm,
        out: &mut Option<Tensor>,
    ) -> Result<()> {
        let x = filled(x)?;
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let scaled = centred.broadcast_div(&(variance + norm.eps)?.sqrt()?)?;
        *out = Some(scaled.broadcast_mul(&norm.weight)?.broadcast_add(&norm.bias)?);
        Ok(())
    }

    fn linear(
        &self,
        x: &Option<Tensor>,
        linear: &CandleLinear,
        activation: Option<Activation>,
        out: &mut Option<Tensor>,
    ) -> Result<()> {
        let mut y = filled(x)?.matmul(&linear.weight)?;
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
        *out = Some((filled(out)? + filled(&y)?)?);
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
        let qkv = filled(qkv)?;
        let mut parts = Vec::with_capacity(spans.len());
        for (span, cache) in spans.iter().zip(caches) {
            let rows = qkv.narrow(0, span.first_row, span.rows)?;
            parts.push(self.attend(config, rotary, &rows, span, &mut cache.layers[layer])?);
        }
        *out = Some(Tensor::cat(&parts, 0)?);
        Ok(())
    }

    fn select_rows(
        &self,
        x: &Option<Tensor>,
        rows: &[usize],
        out: &mut Option<Tensor>,
    ) -> Result<()> {
        let rows: Vec<u32> = rows.iter().map(|row| *row as u32).collect();
        *out = Some(filled(x)?.index_select(&Tensor::new(rows, &self.device)?, 0)?);
        Ok(())
    }

    fn read(&self, x: &Option<Tensor>, out: &mut Vec<f32>) -> Result<()> {
        *out = filled(x)?.flatten_all()?.to_vec1()?;
        Ok(())
    }
}

fn filled(x: &Option<Tensor>) -> Result<&Tensor> {
    x.as_ref().ok_or_else(|| Error::Internal("activations read before they were written".into()))
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Device { device: "candle".to_owned(), reason: error.to_string() }
    }
}
