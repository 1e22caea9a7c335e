use std::sync::atomic::Ordering;

use super::*;
use crate::backend::Few;
use crate::model::{LogitReader, Logits, NeoX};

fn config() -> Config {
    Config {
        vocab_size: 300,
        hidden_size: 24,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        intermediate_size: 40,
        hidden_act: Activation::Gelu,
        layer_norm_eps: 1e-5,
        rotary_dims: 6,
        rotary_base: 10_000.0,
        rotary_scale: 1.0,
        max_position_embeddings: 100,
        use_parallel_residual: true,
        attention_bias: true,
        tie_word_embeddings: false,
        bos_token_id: None,
        eos_token_ids: Vec::new(),
        stored_format: WeightFormat::F32,
    }
}

fn network() -> NeoX<CandleBackend> {
    let backend = CandleBackend::on_cpu(Compute::F32);
    NeoX::random(backend, config(), WeightFormat::F32, 100).unwrap()
}

/// Wants of each row what it says, and keeps what it gets.
struct Rows {
    needed: Vec<Option<usize>>,
    taken: Vec<Taken>,
}

#[derive(Debug, PartialEq)]
enum Taken {
    Whole(Vec<f32>),
    First((u32, f32)),
}

impl LogitReader for Rows {
    fn needed(&self, row: usize) -> Option<usize> {
        self.needed[row]
    }

    fn decides(&self, row: usize, _: Few<'_>) -> bool {
        self.needed[row].is_some()
    }

    fn take(&mut self, row: usize, logits: Logits<'_>) {
        assert_eq!(row, self.taken.len());
        self.taken.push(match logits {
            Logits::Whole(logits) => Taken::Whole(logits.to_vec()),
            Logits::Largest(few) => Taken::First(few.pairs[0]),
        });
    }
}

/// Sequences of these lengths in caches of one size, and how to go on with some of them.
struct Live {
    network: NeoX<CandleBackend>,
    caches: Vec<CandleCache>,
    lengths: Vec<usize>,
}

impl Live {
    fn new(count: usize) -> Self {
        let network = network();
        let cache = |_| network.backend().new_cache(network.config(), 90).unwrap();
        let caches = (0..count).map(cache).collect();
        Self { network, caches, lengths: vec![0; count] }
    }

    /// Runs so many rows of each sequence and reads logits after some of them; gives the copies to
    /// the device, and what was read.
    fn step(&mut self, rows: &[usize], wanted: &[(usize, Option<usize>)]) -> (usize, Vec<Taken>) {
        let before = self.uploads();
        let (mut spans, mut caches, mut ids) = (Vec::new(), Vec::new(), Vec::new());
        for ((cache, length), rows) in self.caches.iter_mut().zip(&mut self.lengths).zip(rows) {
            if *rows > 0 {
                spans.push(Span { first_row: ids.len(), rows: *rows, position: *length });
                ids.extend((*length..*length + rows).map(|id| (id * 37 % 300) as u32));
                caches.push(cache);
                *length += rows;
            }
        }
        let mut work = self.network.workspace();
        self.network.forward(&ids, &spans, &mut caches, &mut work).unwrap();
        let needed = wanted.iter().map(|(_, needed)| *needed).collect();
        let mut reader = Rows { needed, taken: Vec::new() };
        let (rows, mut host): (Vec<usize>, _) = (wanted.iter().map(|row| row.0).collect(), vec![]);
        self.network.logits(&rows, &mut work, &mut host, &mut reader).unwrap();
        let whole = reader.taken.iter().filter(|row| matches!(row, Taken::Whole(_))).count();
        assert_eq!(host.len(), 300 * whole, "rows that nobody wanted whole were copied");
        (self.uploads() - before, reader.taken)
    }

    fn uploads(&self) -> usize {
        self.network.backend().uploads.load(Ordering::Relaxed)
    }
}

#[test]
fn a_step_is_one_copy_to_the_device() {
    let mut live = Live::new(4);
    // A prompt, then others beside a sequence that decodes, then all of them.
    assert_eq!(live.step(&[7, 0, 0, 0], &[(6, Some(1))]).0, 1);
    assert_eq!(live.step(&[1, 5, 0, 9], &[(0, Some(1)), (5, None), (14, Some(1))]).0, 1);
    assert_eq!(live.step(&[1, 1, 4, 1], &[(0, None), (1, None), (5, None), (6, None)]).0, 1);
    for _ in 0..3 {
        let wanted: Vec<_> = (0..4).map(|row| (row, Some(1))).collect();
        assert_eq!(live.step(&[1, 1, 1, 1], &wanted).0, 1);
    }
    // Rows in many runs are picked by a second copy of numbers.
    let wanted: Vec<_> = (0..=MOST_RUNS).map(|run| (2 * run, None)).collect();
    assert_eq!(live.step(&[2 * MOST_RUNS + 1, 0, 0, 0], &wanted).0, 2);
}

#[test]
fn rows_are_read_whole_or_as_their_largest() {
    let rows = [3, 2, 1, 1];
    let all = |needed: &[Option<usize>]| {
        Live::new(4).step(&rows, &(0..7).zip(needed.iter().copied()).collect::<Vec<_>>()).1
    };
    let whole = all(&[None; 7]);
    let mixed = [Some(1), None, Some(1), None, Some(40), Some(1), None];
    for needed in [[Some(1); 7], mixed, [Some(5); 7]] {
        for ((found, needed), expected) in all(&needed).iter().zip(needed).zip(&whole) {
            let Taken::Whole(logits) = expected else { panic!("asked for whole") };
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let first = logits.iter().position(|x| *x == max).unwrap() as u32;
            match needed {
                None => assert_eq!(found, expected),
                Some(_) => assert_eq!(*found, Taken::First((first, max))),
            }
        }
    }
}

/// What is selected in runs is what is selected by numbers.
#[test]
fn runs_of_rows_are_found() {
    assert_eq!(runs(&[3, 4, 5, 9, 1, 2]), Some(vec![(3, 3), (9, 1), (1, 2)]));
    assert_eq!(runs(&[]), None);
    let backend = CandleBackend::on_cpu(Compute::F32);
    let x = Tensor::arange(0f32, 60.0, &Device::Cpu).unwrap().reshape((20, 3)).unwrap();
    for rows in [vec![4], vec![0, 1, 2], vec![7, 3, 4, 19], (0..20).step_by(2).collect()] {
        let (mut out, mut values) = (None, Vec::new());
        backend.select_rows(&Some(x.clone()), &rows, &mut out).unwrap();
        backend.read(&out, &mut values).unwrap();
        let expected = rows.iter().flat_map(|row| (0..3).map(move |i| (3 * row + i) as f32));
        assert_eq!(values, expected.collect::<Vec<f32>>());
    }
    let beyond = backend.select_rows(&Some(x), &[20], &mut None);
    assert!(matches!(beyond, Err(Error::Device { .. })), "{beyond:?}");
}

/// Noise that repeats, or the same numbers read row by row.
struct Noise {
    tile: Vec<f32>,
    shape: (usize, usize),
    tells: bool,
}

impl RowSource for Noise {
    fn name(&self) -> &str {
        "noise"
    }

    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn repeated(&self) -> Option<&[f32]> {
        self.tells.then_some(&*self.tile)
    }

    fn read_rows(&self, first: usize, out: &mut [f32]) -> Result<()> {
        let start = first * self.shape.1;
        let value = |at: usize| self.tile[at % self.tile.len()];
        (start..).zip(out).for_each(|(at, out)| *out = value(at));
        Ok(())
    }
}

#[test]
fn what_repeats_is_made_on_the_device() {
    for shape in [(1, 1), (3, 5), (33, 32), (96, 40), (200, 7)] {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let matrix = |tells| {
                let tile = (0..101).map(|i| (i * 37 % 101) as f32 / 97.0 - 0.5).collect();
                let matrix = weights::dense(&Noise { tile, shape, tells }, dtype, &Device::Cpu);
                let matrix = matrix.unwrap();
                assert_eq!((matrix.dims2().unwrap(), matrix.dtype()), (shape, dtype));
                matrix.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap()
            };
            assert_eq!(matrix(true), matrix(false), "{shape:?} {dtype:?}");
        }
    }
}

#[test]
fn copies_to_the_host_are_in_order_and_never_abort() {
    let x = Tensor::arange(0f32, 24.0, &Device::Cpu).unwrap().reshape((4, 6)).unwrap();
    let mut out = vec![7.0; 100];
    // A part of a matrix, turned around, in another type.
    let part = x.narrow(0, 1, 2).unwrap().t().unwrap().to_dtype(DType::F16).unwrap();
    fetch(&part, "a part", &mut out).unwrap();
    assert_eq!(out, [6., 12., 7., 13., 8., 14., 9., 15., 10., 16., 11., 17.]);
    fetch(&x.narrow(0, 3, 1).unwrap(), "a row", &mut out).unwrap();
    assert_eq!(out, [18., 19., 20., 21., 22., 23.]);
    // More than any machine has.
    let vast = Tensor::zeros((1, 1), DType::F32, &Device::Cpu).unwrap();
    let vast = vast.broadcast_as((1 << 30, 1 << 20)).unwrap();
    match fetch(&vast, "far too much", &mut out) {
        Err(Error::OutOfMemory { what, bytes }) => {
            assert_eq!((what.as_str(), bytes), ("far too much", 1 << 52));
        }
        other => panic!("{other:?}"),
    }
}
