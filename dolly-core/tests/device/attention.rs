//! Attention alone: sequences of different pasts that share steps and tensors.

use dolly_core::backend::candle::{CandleBackend, CandleCache, Compute};
use dolly_core::backend::{Backend, RotaryTable, Span};
use dolly_core::weights::RowSource;
use dolly_core::{Config, Device, WeightFormat};

use crate::{Model, gpu, largest_difference};

/// Inputs of attention; those from [`JUNK`] on are NaN.
struct Inputs(usize);

const JUNK: u32 = 60;

impl RowSource for Inputs {
    fn name(&self) -> &str {
        "inputs"
    }

    fn shape(&self) -> (usize, usize) {
        (JUNK as usize + 2, self.0)
    }

    fn read_rows(&self, first: usize, out: &mut [f32]) -> dolly_core::Result<()> {
        for (row, out) in (first..).zip(out.chunks_exact_mut(self.0)) {
            for (column, out) in out.iter_mut().enumerate() {
                let number = ((row * 7919 + column * 104_729) % 2003) as f32 / 1001.5 - 1.0;
                *out = if row < JUNK as usize { number } else { f32::NAN };
            }
        }
        Ok(())
    }
}

/// Attention alone, over ids that stand for its inputs.
struct Attention {
    backend: CandleBackend,
    config: Config,
    rotary: RotaryTable,
    table: <CandleBackend as Backend>::Embedding,
}

impl Attention {
    fn new() -> Self {
        let backend = match gpu() {
            Some(Device::Cuda(index)) => CandleBackend::on_gpu(index, Compute::F32).unwrap(),
            _ => CandleBackend::on_cpu(Compute::F32),
        };
        let standard = Model::named("standard").config;
        let config = Config::from_json_bytes(standard, "standard".as_ref()).unwrap();
        let rotary = RotaryTable::new(&config, 100).unwrap();
        let inputs = Inputs(3 * config.hidden_size);
        let table = backend.load_embedding(&inputs, WeightFormat::F32).unwrap();
        Self { backend, config, rotary, table }
    }

    fn cache(&self, tokens: usize) -> CandleCache {
        self.backend.new_cache(&self.config, tokens).unwrap()
    }

    /// Runs rows of several sequences, `(position, ids)` each, in both of the first layers.
    fn run(&self, rows: &[(usize, &[u32])], caches: &mut [&mut CandleCache]) -> Vec<f32> {
        let mut first_row = 0;
        let span = |(position, ids): &(usize, &[u32])| {
            let span = Span { first_row, rows: ids.len(), position: *position };
            first_row += ids.len();
            span
        };
        let spans: Vec<Span> = rows.iter().map(span).collect();
        let ids: Vec<u32> = rows.iter().flat_map(|(_, ids)| ids.iter().copied()).collect();
        let mut all = Vec::new();
        for layer in 0..self.config.num_hidden_layers.min(2) {
            let (mut qkv, mut out, mut values) = (None, None, Vec::new());
            // The layers get different inputs.
            let ids: Vec<u32> = ids.iter().map(|id| id ^ layer as u32).collect();
            self.backend.embed(&self.table, &ids, &mut qkv).unwrap();
            let (config, rotary) = (&self.config, &self.rotary);
            self.backend.attention(config, rotary, layer, &qkv, &spans, caches, &mut out).unwrap();
            self.backend.read(&out, &mut values).unwrap();
            all.push(values);
        }
        all.concat()
    }

    /// The last row of each layer of a sequence that is run alone, in one piece.
    fn last_alone(&self, ids: &[u32]) -> Vec<f32> {
        let all = self.run(&[(0, ids)], &mut [&mut self.cache(ids.len())]);
        let layers = all.chunks_exact(ids.len() * self.config.hidden_size);
        layers.flat_map(|layer| layer[layer.len() - self.config.hidden_size..].to_vec()).collect()
    }
}

#[test]
fn sequences_of_any_length_and_past_share_a_step() {
    let on = Attention::new();
    let hidden = on.config.hidden_size;
    let ids: Vec<u32> = (0..40).map(|n| (n * 17) % 58).collect();
    // Two of one capacity and length, one longer, one of another capacity.
    let lengths = [5, 20, 20, 33];
    let mut caches: Vec<CandleCache> = [40, 40, 40, 80].map(|tokens| on.cache(tokens)).into();
    for (cache, length) in caches.iter_mut().zip(lengths) {
        on.run(&[(0, &ids[..length])], &mut [&mut *cache]);
    }
    for step in 0..3 {
        // A guess that did not hold, full of NaN: its rows lie behind the first sequence's end.
        on.run(&[(lengths[0] + step, &[JUNK; 6])], &mut [&mut caches[0]]);
        let at = lengths.map(|length| length + step);
        let rows: Vec<(usize, &[u32])> = at.iter().map(|at| (*at, &ids[*at..=*at])).collect();
        let mut own: Vec<&mut CandleCache> = caches.iter_mut().collect();
        let found = on.run(&rows, &mut own);
        let layers: Vec<&[f32]> = found.chunks_exact(lengths.len() * hidden).collect();
        for (n, at) in at.iter().enumerate() {
            let found: Vec<f32> = layers
                .iter()
                .flat_map(|layer| layer[n * hidden..(n + 1) * hidden].to_vec())
                .collect();
            let off = largest_difference(&found, &on.last_alone(&ids[..=*at]));
            assert!(off <= 1e-5, "sequence {n}, step {step}: {off}");
        }
    }
    // One leaves, another copies rows of a neighbour in the same tensor and joins with a guess.
    caches.remove(1);
    let [first, second, _] = caches.as_mut_slice() else { panic!() };
    on.backend.copy_cache(second, 0, first, 0, 12).unwrap();
    let found = on.run(&[(12, &ids[12..14]), (23, &ids[23..24])], &mut [first, second]);
    let layers: Vec<&[f32]> = found.chunks_exact(3 * hidden).collect();
    for (row, tokens) in [(1, 14), (2, 24)] {
        let found: Vec<f32> = layers
            .iter()
            .flat_map(|layer| layer[row * hidden..(row + 1) * hidden].to_vec())
            .collect();
        let off = largest_difference(&found, &on.last_alone(&ids[..tokens]));
        assert!(off <= 1e-5, "{tokens} tokens: {off}");
    }
    assert!(on.backend.copy_cache(&caches[0], 39, &mut on.cache(40), 0, 2).is_err());
}
