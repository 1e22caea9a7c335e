//! What the machine itself gives, measured beside whatever is compared with it.
#![allow(unsafe_code, reason = "limits are measured with the instructions that reach them")]

use std::hint::black_box;
use std::time::Instant;

/// Streams that a thread reads side by side, as the kernels do: one alone leaves bandwidth unused.
const STREAMS: usize = 4;

/// Median seconds of a call.
pub fn seconds(rounds: usize, mut call: impl FnMut()) -> f64 {
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

/// Sums words of several streams in more registers than the latency of an addition needs.
#[inline(always)]
fn sum(words: &[u64]) -> [u64; 32] {
    let mut sums = [0_u64; 32];
    let mut streams =
        words.chunks_exact(words.len() / STREAMS).map(|s| s.as_chunks::<32>().0.iter());
    let streams: [_; STREAMS] = std::array::from_fn(|_| streams.next().unwrap_or_default());
    let [mut a, mut b, mut c, mut d] = streams;
    while let (Some(a), Some(b), Some(c), Some(d)) = (a.next(), b.next(), c.next(), d.next()) {
        for chunk in [a, b, c, d] {
            for (sum, word) in sums.iter_mut().zip(chunk) {
                *sum = sum.wrapping_add(*word);
            }
        }
    }
    sums
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_avx2(words: &[u64]) -> [u64; 32] {
    sum(words)
}

/// Far more memory than the caches hold, in huge pages where the system has them, as weights lie.
fn memory() -> Vec<u64> {
    let mut words: Vec<u64> = Vec::with_capacity(64 << 20);
    #[cfg(target_os = "linux")]
    // SAFETY: advice on memory that the vector owns; it changes no content.
    unsafe {
        let page = 2 << 20;
        let skip = words.as_ptr().cast::<u8>().align_offset(page);
        let bytes = (8 * words.capacity()).saturating_sub(skip) / page * page;
        libc::madvise(words.as_mut_ptr().cast::<u8>().add(skip).cast(), bytes, libc::MADV_HUGEPAGE);
    }
    words.resize(words.capacity(), 1);
    words
}

/// Bytes a second when every thread reads its share of memory far larger than the caches.
pub fn read_bandwidth(threads: usize) -> f64 {
    let words = memory();
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

/// What multiplies and adds.
#[derive(Clone, Copy)]
pub enum Arithmetic {
    /// Fused multiply-adds of f32.
    F32,
    /// Products of pairs of bf16.
    Bf16,
    /// Products of four bytes.
    Int8,
}

/// Operations a second of multiplications and additions that wait for nothing; `None` where this CPU
/// has no such instruction, or none is named here.
#[cfg(target_arch = "x86_64")]
pub fn peak(arithmetic: Arithmetic, threads: usize) -> Option<f64> {
    use std::arch::x86_64::*;
    // Sums, and what the instruction multiplies: any bits will do, of which zeros are numbers in all types.
    macro_rules! spin {
        ($features:literal, $register:ty, $operand:ty, $step:expr) => {{
            #[target_feature(enable = $features)]
            fn spin(steps: usize) {
                // SAFETY: zeros of every register type.
                let (mut acc, x): ([$register; 12], $operand) = unsafe { std::mem::zeroed() };
                let x = black_box(x);
                for _ in 0..steps {
                    for acc in &mut acc {
                        *acc = $step(*acc, x);
                    }
                }
                black_box(acc);
            }
            spin as unsafe fn(usize)
        }};
    }
    let has_avx512 = is_x86_feature_detected!("avx512f");
    let (spin, operations) = match arithmetic {
        Arithmetic::F32 if has_avx512 => {
            (spin!("avx512f", __m512, __m512, |acc, x| _mm512_fmadd_ps(x, x, acc)), 32)
        }
        Arithmetic::F32 if is_x86_feature_detected!("fma") => {
            (spin!("avx2,fma", __m256, __m256, |acc, x| _mm256_fmadd_ps(x, x, acc)), 16)
        }
        Arithmetic::Bf16 if is_x86_feature_detected!("avx512bf16") => (
            spin!("avx512f,avx512bf16", __m512, __m512bh, |acc, x| _mm512_dpbf16_ps(acc, x, x)),
            64,
        ),
        Arithmetic::Int8 if is_x86_feature_detected!("avx512vnni") => (
            spin!("avx512f,avx512vnni", __m512i, __m512i, |acc, x| _mm512_dpbusd_epi32(acc, x, x)),
            128,
        ),
        _ => return None,
    };
    let steps = 5_000_000;
    let time = seconds(5, || {
        together(threads, |_| {
            // SAFETY: the features were detected above.
            unsafe { spin(steps) };
        });
    });
    Some((threads * steps * 12 * operations) as f64 / time)
}

/// Unknown: no instructions are named here for other CPUs.
#[cfg(not(target_arch = "x86_64"))]
pub fn peak(_arithmetic: Arithmetic, _threads: usize) -> Option<f64> {
    None
}
