//! The backend as the network uses it: loading, options, shapes, and life after `fork`.

use half::{bf16, f16};

use super::*;
use crate::ErrorKind;

fn backend(threads: usize) -> CpuBackend {
    CpuBackend::with_isa(CpuOptions { threads: Some(threads), ..Default::default() }, None).unwrap()
}

/// Element (r, c) is a small number without pattern; reading row `broken` fails.
struct Source {
    shape: (usize, usize),
    broken: Option<usize>,
}

fn element(row: usize, column: usize) -> f32 {
    ((row * 7919 + column * 104_729) % 2003) as f32 / 1001.5 - 1.0
}

impl RowSource for Source {
    fn name(&self) -> &str {
        "test.weight"
    }

    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn read_rows(&self, first: usize, out: &mut [f32]) -> Result<()> {
        for (i, row) in out.chunks_exact_mut(self.shape.1).enumerate() {
            if self.broken == Some(first + i) {
                return Err(Error::format("weights.bin", format!("row {} ends early", first + i)));
            }
            row.iter_mut().enumerate().for_each(|(c, x)| *x = element(first + i, c));
        }
        Ok(())
    }
}

fn source(rows: usize, columns: usize) -> Source {
    Source { shape: (rows, columns), broken: None }
}

fn input(backend: &CpuBackend, rows: usize, width: usize) -> Activations {
    let table = backend.load_embedding(&source(rows, width), WeightFormat::F32).unwrap();
    let mut out = backend.empty();
    backend.embed(&table, &(0..rows as u32).collect::<Vec<_>>(), &mut out).unwrap();
    out
}

fn values(backend: &CpuBackend, x: &Activations) -> Vec<f32> {
    let mut out = Vec::new();
    backend.read(x, &mut out).unwrap();
    out
}

#[test]
fn options_outside_their_range_are_errors() {
    for threads in [0, 4097, usize::MAX] {
        let error = CpuBackend::new(CpuOptions { threads: Some(threads), ..Default::default() })
            .err()
            .unwrap();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    }
    for isa in ["", "avx3", "AVX2 "] {
        let error = CpuBackend::with_isa(CpuOptions::default(), Some(isa)).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(error.to_string().contains("DOLLY_FORCE_ISA"), "{error}");
    }
    let portable = CpuBackend::with_isa(
        CpuOptions { threads: Some(1), ..Default::default() },
        Some("portable"),
    );
    assert_eq!(portable.unwrap().isa(), "portable");
}

/// The set named by the environment, seen by a process of its own.
#[test]
fn the_environment_names_the_instruction_set() {
    let report = |value: &str| {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "backend::cpu::tests::reports_its_set", "--ignored", "--nocapture"])
            .env("DOLLY_FORCE_ISA", value)
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(report("portable").contains("runs on portable"));
    assert!(report("sse9").contains("option DOLLY_FORCE_ISA: sse9 is not allowed"));
    assert!(report("").contains(&format!("runs on {}", backend(1).isa())));
}

#[test]
#[ignore = "run by the_environment_names_the_instruction_set with the variable set"]
fn reports_its_set() {
    match CpuBackend::new(CpuOptions { threads: Some(1), ..Default::default() }) {
        Ok(backend) => println!("runs on {}", backend.isa()),
        Err(error) => println!("{error}"),
    }
}

#[test]
fn embeddings_hold_what_their_format_keeps() {
    let (rows, width) = (50, 72);
    for format in &WeightFormat::ALL[1..] {
        let backend = backend(3);
        let table = backend.load_embedding(&source(rows, width), *format).unwrap();
        let ids = [49, 0, 7, 7, 31];
        let mut out = backend.empty();
        backend.embed(&table, &ids, &mut out).unwrap();
        assert_eq!((out.rows(), out.width()), (5, width));
        for (i, found) in values(&backend, &out).into_iter().enumerate() {
            let row = ids[i / width] as usize;
            let x = element(row, i % width);
            match format {
                WeightFormat::F32 => assert_eq!(found, x),
                WeightFormat::F16 => assert_eq!(found, f16::from_f32(x).to_f32()),
                WeightFormat::Bf16 => assert_eq!(found, bf16::from_f32(x).to_f32()),
                // Half a step of a scale of at most 1 / 127, and the scale's rounding to f16.
                _ => assert!((found - x).abs() < 0.5 / 127.0 + 5e-4, "{found} {x}"),
            }
        }
        assert!(backend.embed(&table, &[50], &mut out).is_err());
    }
}

#[test]
fn linear_adds_bias_and_applies_the_activation() {
    let backend = backend(2);
    let (rows, outputs, inputs) = (9, 37, 50);
    let bias: Vec<f32> = (0..outputs).map(|i| i as f32 / 10.0 - 2.0).collect();
    let layer = backend
        .load_linear(&source(outputs, inputs), Some(bias.clone()), WeightFormat::F32)
        .unwrap();
    let x = input(&backend, rows, inputs);
    let mut out = backend.empty();
    for (activation, function) in [
        (None, (|x| x) as fn(f64) -> f64),
        (Some(Activation::Relu), |x| x.max(0.0)),
        (Some(Activation::Silu), |x| x / (1.0 + (-x).exp())),
        (Some(Activation::Gelu), |x| x * libm::erfc(-x / 2f64.sqrt()) / 2.0),
    ] {
        backend.linear(&x, &layer, activation, &mut out).unwrap();
        for (i, found) in values(&backend, &out).into_iter().enumerate() {
            let (r, n) = (i / outputs, i % outputs);
            let dot: f64 =
                (0..inputs).map(|k| f64::from(element(r, k)) * f64::from(element(n, k))).sum();
            let expected = function(dot + f64::from(bias[n]));
            assert!((f64::from(found) - expected).abs() < 2e-5, "{activation:?} {r} {n}");
        }
    }
}

#[test]
fn sizes_are_those_promised() {
    let backend = backend(1);
    assert_eq!(backend.linear_bytes(33, 65, WeightFormat::F32), 48 * 65 * 4);
    // Weights lie in pairs of K.
    assert_eq!(backend.linear_bytes(33, 65, WeightFormat::Bf16), 48 * 66 * 2);
    assert_eq!(backend.linear_bytes(33, 65, WeightFormat::Q8_0), 48 * 3 * 34);
    assert_eq!(backend.linear_bytes(33, 65, WeightFormat::Q4_0), 48 * 3 * 18);
    assert_eq!(backend.linear_bytes(33, 512, WeightFormat::Q4K), 48 * 2 * 148);
    assert_eq!(backend.linear_bytes(33, 512, WeightFormat::Q6K), 48 * 2 * 210);
    assert_eq!(backend.linear_bytes(33, 65, WeightFormat::Q4K), 48 * 3 * 34);
    assert_eq!(backend.embedding_bytes(33, 512, WeightFormat::Q4K), 33 * 2 * 144);
    assert_eq!(backend.embedding_bytes(33, 512, WeightFormat::Q6K), 33 * 2 * 210);
    assert_eq!(backend.embedding_bytes(33, 65, WeightFormat::Q6K), 33 * 3 * 34);
    assert_eq!(backend.embedding_bytes(33, 65, WeightFormat::F16), 33 * 65 * 2);
    assert_eq!(backend.embedding_bytes(33, 65, WeightFormat::Q4_0), 33 * 3 * 34);
    let cache = |heads, dim, tokens, format| attention::cache_bytes(3, heads, dim, tokens, format);
    assert_eq!(cache(5, 80, 7, CacheFormat::F32), 3 * 5 * 16 * (80 + 80) * 4);
    assert_eq!(cache(5, 80, 17, CacheFormat::F16), 3 * 5 * 32 * (80 + 80) * 2);
    assert_eq!(cache(5, 7, 16, CacheFormat::Bf16), 3 * 5 * 16 * (8 + 16) * 2);
    assert_eq!(cache(5, 7, 16, CacheFormat::Q8_0), 3 * 5 * 16 * (7 + 16 + 8));
    assert_eq!(backend.linear_bytes(usize::MAX, usize::MAX, WeightFormat::Q4_0), u64::MAX);
    assert_eq!(cache(1, usize::MAX, 2, CacheFormat::F16), u64::MAX);
    assert_eq!(cache(usize::MAX, 64, usize::MAX, CacheFormat::F16), u64::MAX);
}

#[test]
fn failures_while_loading_are_typed() {
    let backend = backend(2);
    for broken in [0, 15, 16, 99] {
        let source = Source { shape: (100, 40), broken: Some(broken) };
        for format in &WeightFormat::ALL[1..] {
            let error = backend.load_linear(&source, None, *format).err().unwrap();
            assert!(error.to_string().contains(&format!("row {broken} ")), "{error}");
            let error = backend.load_embedding(&source, *format).err().unwrap();
            assert!(error.to_string().contains(&format!("row {broken} ")), "{error}");
        }
    }
    assert!(backend.load_linear(&source(4, 4), None, WeightFormat::Auto).is_err());
    assert!(backend.load_linear(&source(4, 4), Some(vec![0.0; 3]), WeightFormat::F32).is_err());
    assert!(backend.load_norm(vec![0.0; 3], vec![0.0; 4], 1e-5).is_err());
}

#[test]
fn sizes_no_machine_has_are_out_of_memory() {
    let backend = backend(2);
    for shape in [(1 << 50, 1 << 10), (usize::MAX, 1), (1, usize::MAX), (usize::MAX, usize::MAX)] {
        for format in [WeightFormat::F32, WeightFormat::Q4_0, WeightFormat::Q4K] {
            let source = Source { shape, broken: None };
            for error in [
                backend.load_linear(&source, None, format).err().unwrap(),
                backend.load_embedding(&source, format).err().unwrap(),
            ] {
                assert_eq!(error.kind(), ErrorKind::Memory, "{shape:?} {format} {error}");
            }
        }
    }
    assert_eq!(
        KvCache::new(1 << 20, 1 << 20, 80, 1 << 20, CacheFormat::F16).err().unwrap().kind(),
        ErrorKind::Memory
    );
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let backend = backend(1);
    let x = input(&backend, 3, 20);
    let layer = backend.load_linear(&source(8, 21), None, WeightFormat::F32).unwrap();
    let norm = backend.load_norm(vec![1.0; 21], vec![0.0; 21], 1e-5).unwrap();
    let mut out = backend.empty();
    assert!(backend.linear(&x, &layer, None, &mut out).is_err());
    assert!(backend.layer_norm(&x, &norm, &mut out).is_err());
    let fitting = backend.load_linear(&source(8, 20), None, WeightFormat::F32).unwrap();
    for mut sum in [backend.empty(), input(&backend, 2, 8), input(&backend, 3, 9)] {
        assert!(backend.linear_add(&x, &fitting, &mut sum).is_err());
    }
    let mut pair = (backend.empty(), backend.empty());
    assert!(backend.layer_norm_pair(&x, (&norm, &norm), (&mut pair.0, &mut pair.1)).is_err());
    assert!(backend.linear_add(&x, &layer, &mut input(&backend, 3, 8)).is_err());
    assert!(backend.select_rows(&x, &[0, 3], &mut out).is_err());
}

#[test]
fn rows_are_selected_in_the_order_asked_for() {
    let backend = backend(1);
    let x = input(&backend, 5, 3);
    let mut out = backend.empty();
    backend.select_rows(&x, &[4, 0, 4], &mut out).unwrap();
    let expected: Vec<f32> =
        [4, 0, 4].iter().flat_map(|r| (0..3).map(move |c| element(*r, c))).collect();
    assert_eq!(values(&backend, &out), expected);
    backend.select_rows(&x, &[], &mut out).unwrap();
    assert_eq!((out.rows(), values(&backend, &out).len()), (0, 0));
}

#[test]
fn empty_inputs_give_empty_outputs() {
    let backend = backend(2);
    let x = input(&backend, 0, 16);
    let mut out = backend.empty();
    for format in &WeightFormat::ALL[1..] {
        let layer = backend.load_linear(&source(8, 16), None, *format).unwrap();
        backend.linear(&x, &layer, None, &mut out).unwrap();
        assert_eq!((out.rows(), out.width()), (0, 8));
    }
    let norm = backend.load_norm(vec![1.0; 16], vec![0.0; 16], 1e-5).unwrap();
    backend.layer_norm(&x, &norm, &mut out).unwrap();
    assert_eq!(out.rows(), 0);
}

#[test]
fn one_backend_serves_many_threads() {
    let backend = backend(2);
    let layer = backend.load_linear(&source(300, 200), None, WeightFormat::Q8_0).unwrap();
    let x = input(&backend, 4, 200);
    let mut out = backend.empty();
    backend.linear(&x, &layer, None, &mut out).unwrap();
    let expected = values(&backend, &out);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let mut out = backend.empty();
                for _ in 0..50 {
                    backend.install(|| backend.linear(&x, &layer, None, &mut out)).unwrap();
                    assert_eq!(values(&backend, &out), expected);
                }
            });
        }
    });
}

/// A step inside a step would wait for itself if the second asked for a turn.
#[test]
fn installed_work_may_install_and_panic() {
    let backend = backend(2);
    assert_eq!(backend.install(|| backend.install(|| 7)), 7);
    let panics = std::panic::AssertUnwindSafe(|| backend.install(|| panic!("by request")));
    assert!(std::panic::catch_unwind(panics).is_err());
    assert_eq!(backend.install(|| 8), 8);
}

/// The child of a fork has none of the pool's threads; it must compute all the same, not wait.
#[cfg(unix)]
#[test]
#[allow(unsafe_code, reason = "fork has no safe form")]
fn works_in_a_forked_child() {
    unsafe extern "C" {
        fn fork() -> i32;
        fn waitpid(process: i32, status: *mut i32, options: i32) -> i32;
        fn alarm(seconds: u32) -> u32;
        fn _exit(status: i32) -> !;
    }
    let backend = backend(3);
    let layer = backend.load_linear(&source(640, 320), None, WeightFormat::F32).unwrap();
    let x = input(&backend, 4, 320);
    let mut out = backend.empty();
    backend.linear(&x, &layer, None, &mut out).unwrap();
    let expected = values(&backend, &out);
    // SAFETY: the child only computes, touches nothing another thread holds, and leaves through
    // `_exit`; the alarm ends it should it hang.
    let status = unsafe {
        match fork() {
            0 => {
                alarm(30);
                let same = backend.linear(&x, &layer, None, &mut out).is_ok()
                    && values(&backend, &out) == expected;
                _exit(if same { 0 } else { 1 })
            }
            child => {
                let mut status = -1;
                assert_eq!(waitpid(child, &mut status, 0), child);
                status
            }
        }
    };
    assert_eq!(status, 0, "the child hung or computed something else");
}
