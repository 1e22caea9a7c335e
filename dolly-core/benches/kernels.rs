//! Speed of the linear layers and the other operations, beside the limits of the machine.
//!
//! `cargo bench --bench kernels -- [threads] [isa] [formats]`. Limits and kernels are measured in the same
//! run, medians of several rounds: on a shared machine only their ratio means something.
#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used)]

use std::time::Instant;

use dolly_core::backend::Backend;
use dolly_core::backend::cpu::{Activations, CpuBackend, CpuOptions};
use dolly_core::model::Activation;
use dolly_core::weights::{RowSource, WeightFormat};
use support::limits::{Arithmetic, peak, read_bandwidth, seconds};

mod support;

const INPUTS: usize = 2560;
const OUTPUTS: usize = 10_240;

/// Small numbers that differ, without storing them.
struct Pattern(usize, usize);

impl RowSource for Pattern {
    fn name(&self) -> &str {
        "pattern"
    }

    fn shape(&self) -> (usize, usize) {
        (self.0, self.1)
    }

    fn read_rows(&self, first: usize, out: &mut [f32]) -> dolly_core::Result<()> {
        for (i, x) in out.iter_mut().enumerate() {
            let n = ((first * self.1 + i) as u32).wrapping_mul(0x9e37_79b9) >> 8;
            *x = n as f32 / (1 << 24) as f32 - 0.5;
        }
        Ok(())
    }
}

fn input(backend: &CpuBackend, rows: usize, width: usize) -> Activations {
    let table = backend.load_embedding(&Pattern(rows, width), WeightFormat::F32).unwrap();
    let ids: Vec<u32> = (0..rows as u32).collect();
    let mut x = backend.empty();
    backend.embed(&table, &ids, &mut x).unwrap();
    x
}

fn main() {
    let mut numbers = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let threads = numbers.next().and_then(|n| n.parse().ok());
    let isa = numbers.next();
    let backend =
        CpuBackend::with_isa(CpuOptions { threads, ..Default::default() }, isa.as_deref()).unwrap();
    let threads = backend.threads();
    let bandwidth = read_bandwidth(threads);
    let of = |arithmetic| peak(arithmetic, threads).unwrap_or(f64::NAN);
    let (peak, bf16, int8) = (of(Arithmetic::F32), of(Arithmetic::Bf16), of(Arithmetic::Int8));
    println!("{threads} threads, {}, weight {OUTPUTS} x {INPUTS}", backend.isa());
    println!(
        "limits: read {:.1} GB/s; f32 {:.0}, bf16 {:.0}, int8 {:.0} GOP/s",
        bandwidth / 1e9,
        peak / 1e9,
        bf16 / 1e9,
        int8 / 1e9,
    );
    let wanted: Vec<WeightFormat> = numbers.map(|name| name.parse().unwrap()).collect();
    for format in &WeightFormat::ALL[1..] {
        if wanted.is_empty() || wanted.contains(format) {
            linear(&backend, *format, bandwidth, peak);
        }
    }
    hand_over(threads, isa.as_deref());
    for rows in [1, 512] {
        let x = input(&backend, rows, INPUTS);
        let norm = backend.load_norm(vec![1.0; INPUTS], vec![0.0; INPUTS], 1e-5).unwrap();
        let mut out = backend.empty();
        let time = seconds(50, || backend.layer_norm(&x, &norm, &mut out).unwrap());
        println!("layer norm {rows} x {INPUTS}: {:.2} us", time * 1e6);
    }
}

/// What it costs to share an operation: a product too small to gain by it, on one thread and on all.
fn hand_over(threads: usize, isa: Option<&str>) {
    let times = [1, threads].map(|threads| {
        let options = CpuOptions { threads: Some(threads), ..Default::default() };
        let backend = CpuBackend::with_isa(options, isa).unwrap();
        let layer = backend.load_linear(&Pattern(192, 192), None, WeightFormat::F32).unwrap();
        let (x, mut out) = (input(&backend, 1, 192), backend.empty());
        backend.install(|| {
            seconds(9, || {
                for _ in 0..10_000 {
                    backend.linear(&x, &layer, None, &mut out).unwrap();
                }
            })
        }) / 10_000.0
    });
    let (alone, shared) = (times[0] * 1e6, times[1] * 1e6);
    println!("192 x 192, 1 row: {alone:.2} us on one thread, {shared:.2} us on {threads}");
}

fn linear(backend: &CpuBackend, format: WeightFormat, bandwidth: f64, peak: f64) {
    let source = Pattern(OUTPUTS, INPUTS);
    let start = Instant::now();
    let bias = Some(vec![0.1; OUTPUTS]);
    let layer = backend.load_linear(&source, bias, format).unwrap();
    let loading = start.elapsed().as_secs_f64();
    let bytes = backend.linear_bytes(OUTPUTS, INPUTS, format) as f64;
    println!(
        "{format}: packed at {:.2} GB/s of f32",
        (4 * OUTPUTS * INPUTS) as f64 / loading / 1e9
    );
    let mut out = backend.empty();
    for rows in [1, 2, 4, 8, 64, 512] {
        let x = input(backend, rows, INPUTS);
        let rounds = if rows < 64 { 30 } else { 7 };
        let time = backend.install(|| {
            seconds(rounds, || {
                backend.linear(&x, &layer, Some(Activation::Gelu), &mut out).unwrap();
            })
        });
        let operations = (2 * rows * OUTPUTS * INPUTS) as f64;
        println!(
            "  {rows:>3} rows: {:8.3} ms  {:6.1} GB/s ({:3.0} %)  {:7.1} GOP/s ({:3.0} % of f32)",
            time * 1e3,
            bytes / time / 1e9,
            100.0 * bytes / time / bandwidth,
            operations / time / 1e9,
            100.0 * operations / time / peak,
        );
    }
}
