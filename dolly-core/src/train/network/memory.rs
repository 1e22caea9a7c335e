//! What a run holds in memory, from shapes alone: known before any of it is allocated.

use super::{NetworkOptions, Trained, head};
use crate::error::Result;
use crate::kernels::attention_gradient;
use crate::kernels::matmul::scratch_floats;
use crate::model::Config;
use crate::train::LoraConfig;
#[cfg(feature = "candle")]
use crate::train::options::Precision;

/// The largest batch of a run: no other has more tokens or a longer sequence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct BatchSize {
    /// Tokens of all its sequences.
    pub tokens: usize,
    /// Tokens of the longest sequence.
    pub longest: usize,
}

/// Bytes of a run, by what they are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Footprint {
    /// The network's weights, and those of adapters.
    pub weights: u64,
    /// Gradients of what is trained.
    pub gradients: u64,
    /// AdamW's two moments of what is trained.
    pub moments: u64,
    /// Activations, their gradients and scratch space: an upper bound.
    pub activations: u64,
}

impl Footprint {
    /// That of training a network of this shape on batches up to this size, in f32.
    pub(crate) fn new(config: &Config, options: &NetworkOptions, batch: BatchSize) -> Result<Self> {
        let adapters = match &options.trained {
            Trained::Adapters(lora) => adapter_weights(config, lora)?,
            Trained::All | Trained::Nothing => 0,
        };
        let trained = match &options.trained {
            Trained::All => config.parameters(),
            Trained::Adapters(_) => adapters,
            Trained::Nothing => 0,
        };
        Ok(Self {
            weights: config.parameters().saturating_add(adapters).saturating_mul(4),
            gradients: trained.saturating_mul(4),
            moments: trained.saturating_mul(8),
            activations: activations(config, options, batch),
        })
    }

    /// That of training on a device: the same but for the activations, which are an estimate.
    #[cfg(feature = "candle")]
    pub(crate) fn on_device(
        config: &Config,
        options: &NetworkOptions,
        batch: BatchSize,
        precision: Precision,
    ) -> Result<Self> {
        let activations = candle_activations(config, options, batch, precision);
        Ok(Self { activations, ..Self::new(config, options, batch)? })
    }

    /// All of it.
    pub(crate) fn total(&self) -> u64 {
        let Self { weights, gradients, moments, activations } = *self;
        [weights, gradients, moments, activations].into_iter().fold(0, u64::saturating_add)
    }
}

/// Weights of the adapters beside a network.
fn adapter_weights(config: &Config, lora: &LoraConfig) -> Result<u64> {
    let specs = config.tensors()?;
    let adapted = specs.iter().filter(|spec| {
        let module = spec.name.strip_suffix(".weight").unwrap_or_default();
        spec.shape.len() == 2 && module != "gpt_neox.embed_in" && lora.matches(module)
    });
    let sides = adapted.map(|spec| spec.shape.iter().map(|side| *side as u64).sum::<u64>());
    Ok(sides.sum::<u64>().saturating_mul(lora.rank as u64))
}

/// Bytes of everything that grows with the batch, and of scratch space.
///
/// Counted is the larger need of each buffer, as the passes size them (see [`Work`](super::Work)):
///
/// ```text
/// per token        streams (layers + 2) h, gradients 2 h, norms and branches 2 h,
///                  feed-forward i + max(i, 3 h), statistics 2, losses 1, ids and labels 6,
///                  adapters rank, with dropout + max(h, i)
/// and kept block   4 h + heads + i, + h where attention and feed-forward follow each other
/// per row of 256   h + vocabulary
/// per thread       packed operands, attention's 128 longest + (64 + 2 longest) width
/// per position     rotary dimensions
/// ```
fn activations(config: &Config, options: &NetworkOptions, batch: BatchSize) -> u64 {
    let product = |a: usize, b: usize| (a as u64).saturating_mul(b as u64);
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let wide = inner.max(3 * hidden);
    let layers = config.num_hidden_layers;
    let kept = if options.gradient_checkpointing { 1 } else { layers.max(1) };
    let middle = if config.use_parallel_residual { 0 } else { hidden };
    let block = 4 * hidden + config.num_attention_heads + inner + middle;
    let (rank, dropped) = match &options.trained {
        Trained::Adapters(lora) if lora.dropout > 0.0 => (lora.rank, hidden.max(inner)),
        Trained::Adapters(lora) => (lora.rank, 0),
        Trained::All | Trained::Nothing => (0, 0),
    };
    let tokens = [
        product(layers + 2, hidden),
        product(kept, block),
        (4 * hidden + inner + wide + 9) as u64,
        (rank as u64).saturating_add(dropped as u64),
    ];
    let tokens = tokens.into_iter().fold(0, u64::saturating_add);
    let predicted = batch.tokens.min(head::most_rows(config.vocab_size));
    let (width, longest) = (config.head_dim(), batch.longest);
    let columns = wide.max(config.vocab_size).max(rank);
    let thread = (scratch_floats(columns, columns.max(batch.tokens)) as u64)
        .saturating_add(attention_gradient::scratch_floats(longest, width) as u64);
    let floats = [
        tokens.saturating_mul(batch.tokens as u64),
        product(predicted, hidden.saturating_add(config.vocab_size)),
        (options.threads as u64).saturating_mul(thread),
        product(config.max_position_embeddings, config.rotary_dims),
    ];
    floats.into_iter().fold(0, u64::saturating_add).saturating_mul(4)
}

/// Bytes of everything on a device that grows with the batch, and of passing tensors.
///
/// The passes hold what [`activations`] counts; besides, operations that make new tensors hold a few
/// of the widest at a time, and attention all scores of a group. Padding may double its rows.
#[cfg(feature = "candle")]
fn candle_activations(
    config: &Config,
    options: &NetworkOptions,
    batch: BatchSize,
    precision: Precision,
) -> u64 {
    let size = match precision {
        Precision::F32 => 4,
        Precision::Bf16 => 2,
    };
    let (hidden, inner) = (config.hidden_size as u64, config.intermediate_size as u64);
    let (layers, vocabulary) = (config.num_hidden_layers as u64, config.vocab_size as u64);
    let (tokens, longest) = (batch.tokens as u64, batch.longest as u64);
    let kept = if options.gradient_checkpointing { 1 } else { layers.max(1) };
    let block = (2 * 4 * hidden + hidden + inner) * size + 4 * hidden;
    let passing = 4 * (6 * hidden + 5 * inner.max(3 * hidden));
    let token = (layers + 2) * 4 * hidden + kept.saturating_mul(block) + passing;
    let heads = config.num_attention_heads as u64;
    let scores = heads.saturating_mul(longest).saturating_mul(tokens).saturating_mul(2);
    let group =
        (super::candle::SCORES as u64).max(heads.saturating_mul(longest.saturating_mul(longest)));
    let predicted = tokens.min(head::most_rows(config.vocab_size) as u64);
    let matrix = hidden.saturating_mul(vocabulary.max(inner).max(3 * hidden));
    let bytes = [
        token.saturating_mul(tokens),
        scores.min(group).saturating_mul(4 * 4),
        predicted.saturating_mul(vocabulary).saturating_mul(4 * 4),
        // An update's passing tensors.
        matrix.saturating_mul(4 * 4),
        4 * (config.max_position_embeddings as u64).saturating_mul(config.rotary_dims as u64),
    ];
    bytes.into_iter().fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::network::tests::network;
    use crate::train::network::{Network, Parameter, Sequence, Start};

    /// A network large enough for the batch to outweigh the scratch space.
    fn config(parallel: bool) -> Config {
        let small = NetworkOptions {
            threads: 1,
            gradient_checkpointing: true,
            dropout: 0.0,
            trained: Trained::Nothing,
        };
        Config {
            hidden_size: 64,
            num_attention_heads: 4,
            intermediate_size: 256,
            num_hidden_layers: 6,
            vocab_size: 512,
            max_position_embeddings: 400,
            use_parallel_residual: parallel,
            ..network("standard", &small).config().clone()
        }
    }

    fn check(config: &Config, options: &NetworkOptions, lengths: &[usize]) {
        let ids: Vec<u32> = (0..400).collect();
        let batch: Vec<_> =
            lengths.iter().map(|n| Sequence { ids: &ids[..*n], first_label: 1 }).collect();
        let start = Start::initialised(config.clone(), &options.trained, 1).unwrap();
        let mut network = Network::new(start, options).unwrap();
        network.accumulate(&batch, 1.0, 1).unwrap();
        network.losses(&batch).unwrap();
        let size = BatchSize {
            tokens: lengths.iter().sum(),
            longest: lengths.iter().copied().max().unwrap(),
        };
        let plan = Footprint::new(config, options, size).unwrap();
        let parameters: u64 = network.parameters().iter().map(Parameter::bytes).sum();
        assert_eq!(plan.weights + plan.gradients, parameters, "{options:?}");
        assert_eq!(plan.moments, 2 * plan.gradients);
        // What is held for the length of a call only: the batch's plan, and a stream of its own.
        let passing = size.tokens as u64 * (24 + 4 * config.hidden_size as u64);
        let tables = 4 * (config.max_position_embeddings * config.rotary_dims) as u64;
        let held = network.memory_bytes() - parameters + passing + tables;
        let planned = plan.activations;
        assert!(held <= planned && planned <= held + held / 8, "{held} of {planned}: {options:?}");
    }

    /// What a network holds after its largest batch is at most what was foreseen, and not much less.
    #[test]
    fn the_bound_holds_and_is_near() {
        let lora = |dropout| {
            let targets = ["query_key_value", "dense_4h_to_h"].map(str::to_owned).to_vec();
            Trained::Adapters(LoraConfig { rank: 4, dropout, targets, ..LoraConfig::default() })
        };
        for parallel in [true, false] {
            let config = config(parallel);
            for (trained, dropout) in
                [(Trained::All, 0.0), (Trained::All, 0.1), (lora(0.0), 0.0), (lora(0.1), 0.1)]
            {
                for (threads, gradient_checkpointing) in [(1, true), (2, false)] {
                    let trained = trained.clone();
                    let options =
                        NetworkOptions { threads, gradient_checkpointing, dropout, trained };
                    check(&config, &options, &[200, 320, 7, 320]);
                }
            }
        }
    }

    #[test]
    fn sizes_beyond_memory_do_not_overflow() {
        let options = NetworkOptions {
            threads: 1024,
            gradient_checkpointing: false,
            dropout: 0.1,
            trained: Trained::Adapters(LoraConfig { rank: usize::MAX, ..LoraConfig::default() }),
        };
        let batch = BatchSize { tokens: usize::MAX, longest: usize::MAX };
        assert_eq!(Footprint::new(&config(false), &options, batch).unwrap().total(), u64::MAX);
    }
}
