//! Speed of the linear layers and the other operations, beside the limits of the machine.
//!
//! `cargo bench --bench kernels -- [threads] [isa] [formats]`. Limits and kernels are measured in the same
//! run, medians of several rounds: on a shared machine only their ratio means something.
#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used)]
#![allow(unsafe_code, reason = "limits are measured with the instructions that reach them")]

use std::hint::black_box;
use std::time::Instant;

use dolly_core::backend::Backend;
use dolly_core::backend::cpu::{Activations, CpuBackend, CpuOptions};
use dolly_core::model::Activation;
use dolly_core::weights::{RowSource, WeightFormat};

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

/// Median seconds of a call.
fn seconds(rounds: usize, mut call: impl FnMut()) -> f64 {
    call();
    let mut times: Vec<f64> = (0..rounds)
        .map(|_| {
            let start = Instant::now();
            call();
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[rounds / 2]
}

/// Runs `work` on each of `threads` threads at once.
fn together(threads: usize, work: impl Fn(usize) + Sync) {
    std::thread::scope(|scope| {
        for i in 1..threads {
            let work = &work;
            scope.spawn(move || work(i));
        }
        work(0);
    });
}

/// Sums words in more registers than the latency of an addition needs.
#[inline(always)]
fn sum(words: &[u64]) -> [u64; 32] {
    let mut sums = [0_u64; 32];
    for chunk in words.as_chunks::<32>().0 {
        for (sum, word) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_avx2(words: &[u64]) -> [u64; 32] {
    sum(words)
}

/// Bytes a second when every thread reads its share of memory far larger than the caches.
fn read_bandwidth(threads: usize) -> f64 {
    let words = vec![1_u64; 64 << 20];
    let share = words.len() / threads;
    let time = seconds(5, || {
        together(threads, |i| {
            let words = &words[i * share..(i + 1) * share];
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx2") {
                // SAFETY: detected in the line above.
                black_box(unsafe { sum_avx2(words) });
                return;
            }
            black_box(sum(words));
        });
    });
    (share * threads * 8) as f64 / time
}

/// Floating-point operations a second of dependent-free fused multiply-adds.
#[cfg(target_arch = "x86_64")]
fn fma_peak(threads: usize) -> f64 {
    use std::arch::x86_64::*;
    macro_rules! spin {
        ($features:literal, $splat:ident, $fma:ident, $add:ident, $first:ident) => {{
            #[target_feature(enable = $features)]
            fn spin(steps: usize) -> f32 {
                let mut acc = [$splat(1.0); 12];
                let (a, b) = ($splat(black_box(0.999)), $splat(black_box(1e-9)));
                for _ in 0..steps {
                    for acc in &mut acc {
                        *acc = $fma(*acc, a, b);
                    }
                }
                $first(acc[1..].iter().fold(acc[0], |sum, acc| $add(sum, *acc)))
            }
            spin as unsafe fn(usize) -> f32
        }};
    }
    let (spin, lanes) = if is_x86_feature_detected!("avx512f") {
        (spin!("avx512f", _mm512_set1_ps, _mm512_fmadd_ps, _mm512_add_ps, _mm512_cvtss_f32), 16)
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        (spin!("avx2,fma", _mm256_set1_ps, _mm256_fmadd_ps, _mm256_add_ps, _mm256_cvtss_f32), 8)
    } else {
        return f64::NAN;
    };
    let steps = 2_000_000;
    let time = seconds(5, || {
        together(threads, |_| {
            // SAFETY: the features were detected above.
            black_box(unsafe { spin(steps) });
        });
    });
    (threads * steps * 12 * lanes * 2) as f64 / time
}

#[cfg(not(target_arch = "x86_64"))]
fn fma_peak(_threads: usize) -> f64 {
    f64::NAN
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
    let (bandwidth, peak) = (read_bandwidth(threads), fma_peak(threads));
    println!("{threads} threads, {}, weight {OUTPUTS} x {INPUTS}", backend.isa());
    println!("limits: read {:.1} GB/s, f32 FMA {:.0} GFLOP/s", bandwidth / 1e9, peak / 1e9);
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
