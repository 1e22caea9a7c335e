//! Networks of random weights: what is measured needs a shape and no checkpoint.

use crate::backend::{Backend, RotaryTable};
use crate::error::Result;
use crate::model::Config;
use crate::model::neox::{Layer, NeoX};
use crate::weights::{RowSource, WeightFormat};

/// Numbers that are made once; every matrix repeats them, its rows at odd places.
const TILE: usize = (1 << 20) + 7;

/// A matrix of noise of deviation about 0.02.
struct Noise<'a> {
    tile: &'a [f32],
    shape: (usize, usize),
}

impl RowSource for Noise<'_> {
    fn name(&self) -> &str {
        "noise"
    }

    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn repeated(&self) -> Option<&[f32]> {
        Some(self.tile)
    }

    fn read_rows(&self, first: usize, out: &mut [f32]) -> Result<()> {
        let (mut at, mut rest) = (first.wrapping_mul(self.shape.1) % self.tile.len(), out);
        while !rest.is_empty() {
            let len = rest.len().min(self.tile.len() - at);
            let (head, tail) = rest.split_at_mut(len);
            head.copy_from_slice(&self.tile[at..at + len]);
            (at, rest) = (0, tail);
        }
        Ok(())
    }
}

/// The tile: SplitMix64 (Steele et al., 2014), uniform.
fn tile() -> Vec<f32> {
    let mut state = 0u64;
    let mut draw = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z >> 40) as f32 / (1 << 24) as f32 - 0.5) * 0.07
    };
    (0..TILE).map(|_| draw()).collect()
}

impl<B: Backend> NeoX<B> {
    /// A network of `config`'s shape for sequences of `context_length` tokens, with random weights
    /// in `format`: for measuring, no memory limit is planned against.
    #[doc(hidden)]
    pub fn random(
        backend: B,
        config: Config,
        format: WeightFormat,
        context_length: usize,
    ) -> Result<Self> {
        let tile = tile();
        let (hidden, inner, vocab) =
            (config.hidden_size, config.intermediate_size, config.vocab_size);
        let mut bytes = 0u64;
        let mut linear = |rows: usize, cols: usize, bias: bool| -> Result<B::Linear> {
            bytes = bytes.saturating_add(backend.linear_bytes(rows, cols, format));
            let source = Noise { tile: &tile, shape: (rows, cols) };
            backend.load_linear(&source, bias.then(|| vec![0.0; rows]), format)
        };
        let norm = || backend.load_norm(vec![1.0; hidden], vec![0.0; hidden], 1e-5);
        let mut layer = || -> Result<Layer<B>> {
            Ok(Layer {
                input_norm: norm()?,
                post_attention_norm: norm()?,
                query_key_value: linear(3 * hidden, hidden, config.attention_bias)?,
                dense: linear(hidden, hidden, config.attention_bias)?,
                dense_h_to_4h: linear(inner, hidden, true)?,
                dense_4h_to_h: linear(hidden, inner, true)?,
            })
        };
        let layers = (0..config.num_hidden_layers).map(|_| layer()).collect::<Result<_>>()?;
        let head = linear(vocab, hidden, false)?;
        let source = Noise { tile: &tile, shape: (vocab, hidden) };
        let embedding = backend.load_embedding(&source, format)?;
        let final_norm = norm()?;
        let rotary = RotaryTable::new(&config, context_length)?;
        let table = backend.embedding_bytes(vocab, hidden, format);
        let weight_bytes = bytes.saturating_add(table).saturating_add(rotary.bytes());
        Ok(Self { backend, config, embedding, layers, final_norm, head, rotary, weight_bytes })
    }
}
