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

/// Floating-point operations a second of dependent-free fused multiply-adds.
#[cfg(target_arch = "x86_64")]
pub fn fma_peak(threads: usize) -> f64 {
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

/// Unknown: no instructions are named here for other CPUs.
#[cfg(not(target_arch = "x86_64"))]
pub fn fma_peak(_threads: usize) -> f64 {
    f64::NAN
}
