//! Every kernel of every instruction set against f64, with the error budget beside each test.

mod attention;
mod attention_gradient;
mod blocks;
mod gradient;
mod linear;
mod math;
mod matmul;
mod rows;
mod same;

use super::pool::Pool;
use super::table::Kernels;
use crate::error::Result;
use crate::weights::RowSource;

/// The sets this CPU can run; skipped ones are reported, and portable is never skipped.
fn sets() -> Vec<Kernels> {
    let mut names = Vec::new();
    for (name, available) in Kernels::sets() {
        if available {
            names.push(name);
        } else {
            eprintln!("SKIPPED: this CPU lacks {name}; its kernels were not tested");
        }
    }
    assert!(names.contains(&"portable"));
    if cfg!(miri) {
        // A lane at a time interpreted: most of the time, and what every CPU runs anyway.
        names.retain(|name| *name != "portable");
    }
    eprintln!("kernel sets under test: {}", names.join(", "));
    names.into_iter().map(|name| Kernels::select(Some(name)).unwrap()).collect()
}

/// Sizes for a CPU, or the few that an interpreter of its instructions (Miri) gets through.
const fn sizes<T>(all: &'static [T], few: &'static [T]) -> &'static [T] {
    if cfg!(miri) { few } else { all }
}

fn pool(threads: usize) -> Pool {
    Pool::new(threads).unwrap()
}

/// Reproducible numbers (SplitMix64), roughly normal.
struct Numbers(u64);

impl Numbers {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn uniform(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 24) as f32
    }

    fn normal(&mut self) -> f32 {
        (0..6).map(|_| self.uniform() - 0.5).sum::<f32>() * std::f32::consts::SQRT_2
    }

    fn normals(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.normal()).collect()
    }
}

/// A matrix in memory.
struct Rows {
    values: Vec<f32>,
    shape: (usize, usize),
}

impl Rows {
    fn new(values: Vec<f32>, rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns);
        Self { values, shape: (rows, columns) }
    }
}

impl RowSource for Rows {
    fn name(&self) -> &str {
        "test.weight"
    }

    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn read_rows(&self, first: usize, out: &mut [f32]) -> Result<()> {
        let start = first * self.shape.1;
        out.copy_from_slice(&self.values[start..start + out.len()]);
        Ok(())
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}
