//! What every backend's caches must do, whatever holds them.

use std::ops::Range;

use super::cpu::{CpuBackend, CpuOptions};
use super::*;
use crate::model::Activation;

/// Rows of the table before this one are numbers without pattern; this one and the next are NaN.
const JUNK: u32 = 60;

/// Inputs of attention.
struct Table {
    width: usize,
}

impl RowSource for Table {
    fn name(&self) -> &str {
        "inputs"
    }

    fn shape(&self) -> (usize, usize) {
        (JUNK as usize + 2, self.width)
    }

    fn read_rows(&self, first: usize, out: &mut [f32]) -> Result<()> {
        for (row, out) in (first..).zip(out.chunks_exact_mut(self.width)) {
            for (column, out) in out.iter_mut().enumerate() {
                let number = ((row * 7919 + column * 104_729) % 2003) as f32 / 1001.5 - 1.0;
                *out = if row < JUNK as usize { number } else { f32::NAN };
            }
        }
        Ok(())
    }
}

/// Attention alone, over sequences of ids that stand for its inputs.
pub(crate) struct Sequences<B: Backend> {
    pub backend: B,
    pub config: Config,
    rotary: RotaryTable,
    table: B::Embedding,
}

impl<B: Backend> Sequences<B> {
    pub const TOKENS: usize = 40;

    pub fn new(backend: B) -> Self {
        let config = Config {
            vocab_size: 1,
            hidden_size: 24,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            intermediate_size: 1,
            hidden_act: Activation::Gelu,
            layer_norm_eps: 1e-5,
            rotary_dims: 6,
            rotary_base: 10_000.0,
            rotary_scale: 1.0,
            max_position_embeddings: Self::TOKENS,
            use_parallel_residual: true,
            attention_bias: true,
            tie_word_embeddings: false,
            bos_token_id: None,
            eos_token_ids: Vec::new(),
            stored_format: WeightFormat::F32,
        };
        let rotary = RotaryTable::new(&config, Self::TOKENS).unwrap();
        let source = Table { width: 3 * config.hidden_size };
        let table = backend.load_embedding(&source, WeightFormat::F32).unwrap();
        Self { backend, config, rotary, table }
    }

    pub fn cache(&self, tokens: usize) -> B::Cache {
        self.backend.new_cache(&self.config, tokens).unwrap()
    }

    /// Runs `ids` behind the first `position` tokens of the cache; outputs of both layers.
    pub fn run(&self, cache: &mut B::Cache, position: usize, ids: &[u32]) -> [Vec<f32>; 2] {
        let span = Span { first_row: 0, rows: ids.len(), position };
        [0, 1].map(|layer| {
            let (mut qkv, mut out, mut values) =
                (self.backend.empty(), self.backend.empty(), Vec::new());
            // The layers get different inputs.
            let ids: Vec<u32> = ids.iter().map(|id| id ^ layer as u32).collect();
            self.backend.embed(&self.table, &ids, &mut qkv).unwrap();
            let (config, rotary) = (&self.config, &self.rotary);
            let caches = &mut [&mut *cache];
            self.backend.attention(config, rotary, layer, &qkv, &[span], caches, &mut out).unwrap();
            self.backend.read(&out, &mut values).unwrap();
            values
        })
    }

    /// The outputs of some tokens of a sequence that is run in one piece.
    pub fn whole(&self, ids: &[u32], wanted: Range<usize>) -> [Vec<f32>; 2] {
        let hidden = self.config.hidden_size;
        let all = self.run(&mut self.cache(ids.len()), 0, ids);
        all.map(|values| values[wanted.start * hidden..wanted.end * hidden].to_vec())
    }
}

pub(crate) fn cpu() -> Sequences<CpuBackend> {
    Sequences::new(
        CpuBackend::with_isa(CpuOptions { threads: Some(1), ..Default::default() }, None).unwrap(),
    )
}

fn ids(count: u32) -> Vec<u32> {
    (0..count).map(|n| (n * 17) % 58).collect()
}

fn copies_serve_as_the_rows_themselves<B: Backend>(
    on: &Sequences<B>,
    same: impl Fn([Vec<f32>; 2], [Vec<f32>; 2]),
) {
    let ids = ids(12);
    let (mut donor, mut part, mut to) = (on.cache(9), on.cache(3), on.cache(12));
    on.run(&mut donor, 0, &ids[..9]);
    // Tokens 4..7 by way of a cache that holds nothing else.
    on.backend.copy_cache(&donor, 4, &mut part, 0, 3).unwrap();
    on.backend.copy_cache(&donor, 0, &mut to, 0, 4).unwrap();
    on.backend.copy_cache(&part, 0, &mut to, 4, 3).unwrap();
    same(on.run(&mut to, 7, &ids[7..]), on.whole(&ids, 7..12));
    // The donor goes on as if nothing had happened.
    same(on.run(&mut donor, 7, &ids[7..9]), on.whole(&ids[..9], 7..9));
    assert!(on.backend.copy_cache(&part, 2, &mut donor, 0, 2).is_err());
}

fn rows_taken_back_leave_no_trace<B: Backend>(
    on: &Sequences<B>,
    same: impl Fn([Vec<f32>; 2], [Vec<f32>; 2]),
) {
    let ids = ids(12);
    let mut cache = on.cache(12);
    on.run(&mut cache, 0, &ids[..5]);
    // NaN spreads from any row that is read, with whatever weight.
    on.run(&mut cache, 5, &[JUNK; 4]);
    same(on.run(&mut cache, 5, &ids[5..7]), on.whole(&ids, 5..7));
    same(on.run(&mut cache, 7, &ids[7..]), on.whole(&ids, 7..12));
    // From the start again.
    same(on.run(&mut cache, 0, &ids[3..9]), on.whole(&ids[3..9], 0..6));
}

fn same_bits(a: [Vec<f32>; 2], b: [Vec<f32>; 2]) {
    let bits = |x: Vec<f32>| x.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    assert_eq!(a.map(bits), b.map(bits));
}

#[test]
fn caches_of_the_cpu_are_copied_and_cut() {
    copies_serve_as_the_rows_themselves(&cpu(), same_bits);
    rows_taken_back_leave_no_trace(&cpu(), same_bits);
}

#[cfg(feature = "candle")]
#[test]
fn caches_of_candle_are_copied_and_cut() {
    // Its products may round differently for other numbers of rows.
    let near = |a: [Vec<f32>; 2], b: [Vec<f32>; 2]| {
        let (a, b) = (a.concat(), b.concat());
        assert_eq!(a.len(), b.len());
        a.iter().zip(&b).for_each(|(a, b)| assert!((a - b).abs() <= 1e-6, "{a} {b}"));
    };
    let on = Sequences::new(candle::CandleBackend::cpu());
    copies_serve_as_the_rows_themselves(&on, near);
    rows_taken_back_leave_no_trace(&on, near);
}

#[test]
fn copies_beyond_a_cache_are_refused() {
    let on = cpu();
    let (from, mut to) = (on.cache(5), on.cache(4));
    for (at, start, tokens) in [(0, 0, 5), (3, 0, 3), (0, 3, 2), (usize::MAX, 0, 1), (0, 5, 0)] {
        assert!(on.backend.copy_cache(&from, at, &mut to, start, tokens).is_err());
    }
    on.backend.copy_cache(&from, 5, &mut to, 4, 0).unwrap();
    let other = Config { num_attention_heads: 1, hidden_size: 12, ..on.config.clone() };
    let mut other = on.backend.new_cache(&other, 5).unwrap();
    assert!(on.backend.copy_cache(&from, 0, &mut other, 0, 1).is_err());
}
