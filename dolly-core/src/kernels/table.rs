//! One table of kernels per instruction set, and the choice of one.

use super::gradient;
use super::k_quant;
use super::matmul;
use super::pack::Layout;
use super::portable::Portable;
use super::quant::{self, BlockSum, QuantRow, QuantTile, Unpacking};
use super::rows::{self, Sums};
use super::tile::{self, Bf16, F16, F32, I8, Tile};
use super::vector::{LANES, Vector};
use crate::error::{Error, Result};
use crate::model::Activation;

/// Weight and bias of a layer norm.
pub(crate) type Norm<'a> = (&'a [f32], &'a [f32]);

/// From a row of floats to its pairs of bf16.
pub(super) type Round = unsafe fn(&[f32], &mut [f32]);

/// Kernels of one instruction set.
///
/// Every function needs the set's instructions; a table is reachable only through [`Kernels`],
/// which checks for them. New sets add a table: nothing else changes.
#[allow(clippy::type_complexity, reason = "names for signatures used once would hide them")]
pub(super) struct Table {
    /// Name of the set in `DOLLY_FORCE_ISA` and the log.
    pub name: &'static str,
    /// Whether this CPU has the instructions.
    pub available: fn() -> bool,
    /// Panels a float tile of many rows takes: [`Vector::PANELS`].
    pub panels: usize,
    /// Most rows a float tile takes.
    pub float_rows: usize,
    /// Most rows an integer tile takes.
    pub quant_rows: usize,
    pub tile_f32: unsafe fn(&Tile),
    pub tile_f16: unsafe fn(&Tile),
    pub tile_bf16: unsafe fn(&Tile),
    /// Rounds a row to what `tile_bf16` multiplies, where that is pairs of bf16 and not floats.
    pub round_bf16: Option<Round>,
    pub tile_i8: unsafe fn(&Tile),
    pub tile_q8_0: unsafe fn(&QuantTile),
    pub tile_q4_0: unsafe fn(&QuantTile),
    pub tile_q4_k: unsafe fn(&QuantTile),
    pub tile_q6_k: unsafe fn(&QuantTile),
    /// What the tiles add to a format's integers, and expect taken off where sums begin.
    pub offset: fn(Layout) -> i32,
    /// Better than these tiles for more rows than they take, where there is one.
    pub unpacking: fn(Layout) -> Option<&'static Unpacking>,
    pub widen_f16: unsafe fn(*const u8, *mut f32, usize),
    pub widen_bf16: unsafe fn(*const u8, *mut f32, usize),
    pub quantize_row: for<'a> unsafe fn(&'a [f32], QuantRow<'a>) -> f32,
    pub layer_norm: unsafe fn(&[f32], &[f32], &[f32], f32, &mut [f32]),
    pub layer_norm_pair: unsafe fn(&[f32], (Norm<'_>, Norm<'_>), f32, (&mut [f32], &mut [f32])),
    pub add: unsafe fn(&mut [f32], &[f32]),
    pub finish: unsafe fn(&Sums<'_>),
    pub matmul_tile: unsafe fn(usize, usize, *const f32, *const f32, *mut f32, usize, bool),
    pub interleave: unsafe fn(&[&[f32]], &mut [f32]),
    pub layer_norm_backward: unsafe fn(&[f32], &[f32], f32, &[f32], &mut [f32]) -> (f32, f32),
    pub layer_norm_weights: unsafe fn(&[f32], &[f32], (f32, f32), &mut [f32], &mut [f32]),
    pub activate: unsafe fn(Activation, &[f32], &mut [f32]),
    pub activation_backward: unsafe fn(Activation, &[f32], &mut [f32]),
    pub exp_minus: unsafe fn(f32, f32, &mut [f32]) -> f32,
    pub max: unsafe fn(&[f32]) -> f32,
    pub scale: unsafe fn(f32, &mut [f32]),
    pub dot: unsafe fn(&[f32], &[f32]) -> f32,
    pub softmax_backward: unsafe fn(&[f32], f32, f32, &mut [f32]),
}

/// Instantiates the shared bodies for a vector type inside functions that carry `$features`.
macro_rules! table {
    ($module:ident, $vector:ty, [$(#[$features:meta])*], { $($field:ident: $value:expr),* $(,)? }) => {
        mod $module {
            use super::*;
            table!(@stamp $vector, [$(#[$features])*]
                tile_f32(t: &Tile) => tile::run::<V, F32>(t);
                tile_f16(t: &Tile) => tile::run::<V, F16>(t);
                tile_bf16(t: &Tile) => tile::run::<V, Bf16>(t);
                tile_i8(t: &Tile) => tile::run::<V, I8>(t);
                widen_f16(from: *const u8, to: *mut f32, n: usize) => tile::widen::<V, F16>(from, to, n);
                widen_bf16(from: *const u8, to: *mut f32, n: usize) => tile::widen::<V, Bf16>(from, to, n);
                layer_norm(x: &[f32], w: &[f32], b: &[f32], eps: f32, out: &mut [f32])
                    => rows::layer_norm::<V>(x, w, b, eps, out);
                layer_norm_pair(x: &[f32], norms: (Norm<'_>, Norm<'_>), eps: f32, out: (&mut [f32], &mut [f32]))
                    => rows::layer_norm_pair::<V>(x, norms, eps, out);
                add(x: &mut [f32], y: &[f32]) => rows::add::<V>(x, y);
                finish(sums: &Sums<'_>) => rows::finish::<V>(sums);
                matmul_tile(panels: usize, k: usize, a: *const f32, b: *const f32, c: *mut f32, stride: usize, keep: bool)
                    => matmul::tile::<V>(panels, k, a, b, c, stride, keep);
                interleave(rows: &[&[f32]], out: &mut [f32]) => matmul::packing::interleave::<V>(rows, out);
                layer_norm_backward(x: &[f32], w: &[f32], eps: f32, dy: &[f32], dx: &mut [f32]) -> (f32, f32)
                    => gradient::layer_norm::<V>(x, w, eps, dy, dx);
                layer_norm_weights(x: &[f32], dy: &[f32], stats: (f32, f32), dw: &mut [f32], db: &mut [f32])
                    => gradient::layer_norm_weights::<V>(x, dy, stats, dw, db);
                activate(act: Activation, x: &[f32], out: &mut [f32]) => gradient::activate_row::<V>(act, x, out);
                activation_backward(act: Activation, x: &[f32], d: &mut [f32])
                    => gradient::activation::<V>(act, x, d);
                exp_minus(scale: f32, shift: f32, x: &mut [f32]) -> f32 => gradient::exp_minus::<V>(scale, shift, x);
                max(x: &[f32]) -> f32 => gradient::max::<V>(x);
                scale(by: f32, x: &mut [f32]) => gradient::scale::<V>(by, x);
                dot(x: &[f32], y: &[f32]) -> f32 => gradient::dot::<V>(x, y);
                softmax_backward(p: &[f32], dot: f32, by: f32, d: &mut [f32])
                    => gradient::softmax::<V>(p, dot, by, d);
            );
            pub(super) static TABLE: Table = Table {
                panels: V::PANELS,
                tile_f32, tile_f16, tile_bf16, tile_i8, widen_f16, widen_bf16, layer_norm, layer_norm_pair, add, finish,
                matmul_tile, interleave, layer_norm_backward, layer_norm_weights, activate, activation_backward,
                exp_minus, max, scale, dot, softmax_backward,
                $($field: $value),*
            };
        }
    };
    (@stamp $vector:ty, $features:tt
        $($name:ident($($arg:ident: $type:ty),*) $(-> $out:ty)? => $body:expr;)*) => {
        type V = $vector;
        $(table!(@function $features $name($($arg: $type),*) $(-> $out)? => $body);)*
    };
    (@function [$(#[$features:meta])*] $name:ident($($arg:ident: $type:ty),*) $(-> $out:ty)? => $body:expr) => {
        $(#[$features])*
        #[allow(unused_unsafe, reason = "some bodies are safe and only compiled with the features")]
        unsafe fn $name($($arg: $type),*) $(-> $out)? {
            // SAFETY: this function has the features of `V`; its caller vouches for the operands.
            unsafe { $body }
        }
    };
}

table!(portable_table, Portable, [], {
    name: "portable",
    available: || true,
    float_rows: 2,
    quant_rows: 4,
    tile_q8_0: quant::tile_q8_0,
    tile_q4_0: quant::tile_q4_0,
    tile_q4_k: k_quant::tile_q4_k,
    tile_q6_k: k_quant::tile_q6_k,
    round_bf16: None,
    offset: |_| 0,
    unpacking: |_| None,
    quantize_row: quant::quantize_row,
});

#[cfg(target_arch = "x86_64")]
table!(avx2_table, super::super::avx2::Avx2, [#[target_feature(enable = "avx2,fma,f16c")]], {
    name: "avx2",
    available: has_avx2,
    float_rows: 6,
    quant_rows: 4,
    tile_q8_0: super::super::avx2_quant::tile_q8_0,
    tile_q4_0: super::super::avx2_quant::tile_q4_0,
    tile_q4_k: super::super::avx2_k_quant::tile_q4_k,
    tile_q6_k: super::super::avx2_k_quant::tile_q6_k,
    round_bf16: None,
    offset: |_| 0,
    unpacking: super::super::avx2_unpacked::unpacking,
    quantize_row: super::super::avx2_quant::quantize_row,
});

#[cfg(target_arch = "x86_64")]
table!(avx512_table, super::super::avx512::Avx512, [
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
], {
    name: "avx512",
    available: has_avx512,
    float_rows: 12,
    quant_rows: 4,
    tile_q8_0: super::super::avx2_quant::tile_q8_0,
    tile_q4_0: super::super::avx2_quant::tile_q4_0,
    tile_q4_k: super::super::avx2_k_quant::tile_q4_k,
    tile_q6_k: super::super::avx2_k_quant::tile_q6_k,
    round_bf16: None,
    offset: |_| 0,
    unpacking: super::super::avx2_unpacked::unpacking,
    quantize_row: super::super::avx2_quant::quantize_row,
});

/// AVX-512 with byte products (VNNI), which its first CPUs lack.
#[cfg(target_arch = "x86_64")]
static AVX512_VNNI: Table = Table {
    name: "avx512vnni",
    available: || has_avx512() && std::arch::is_x86_feature_detected!("avx512vnni"),
    quant_rows: 8,
    tile_q8_0: super::avx512_quant::tile_q8_0,
    tile_q4_0: super::avx512_quant::tile_q4_0,
    offset: super::avx512_quant::offset,
    unpacking: |layout| match layout {
        Layout::Q8_0 | Layout::Q4_0 => None,
        other => super::avx2_unpacked::unpacking(other),
    },
    ..avx512_table::TABLE
};

/// AVX-512 with byte products and products of bf16.
#[cfg(target_arch = "x86_64")]
static AVX512_BF16: Table = Table {
    name: "avx512bf16",
    available: || (AVX512_VNNI.available)() && std::arch::is_x86_feature_detected!("avx512bf16"),
    tile_bf16: super::avx512_bf16::tile_bf16,
    round_bf16: Some(super::avx512_bf16::round_row),
    ..AVX512_VNNI
};

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    std::arch::is_x86_feature_detected!("avx2")
        && std::arch::is_x86_feature_detected!("fma")
        && std::arch::is_x86_feature_detected!("f16c")
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    has_avx2()
        && std::arch::is_x86_feature_detected!("avx512f")
        && std::arch::is_x86_feature_detected!("avx512bw")
        && std::arch::is_x86_feature_detected!("avx512dq")
        && std::arch::is_x86_feature_detected!("avx512vl")
}

/// Every table of this build, best last.
#[cfg(target_arch = "x86_64")]
static TABLES: [&Table; 5] =
    [&portable_table::TABLE, &avx2_table::TABLE, &avx512_table::TABLE, &AVX512_VNNI, &AVX512_BF16];
/// Every table of this build, best last.
#[cfg(not(target_arch = "x86_64"))]
static TABLES: [&Table; 1] = [&portable_table::TABLE];

/// The kernels of one instruction set that this CPU has.
#[derive(Clone, Copy)]
pub(crate) struct Kernels(&'static Table);

impl Kernels {
    /// The best set this CPU has, or the one named.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] when the name is unknown or the CPU lacks the set.
    pub(crate) fn select(forced: Option<&str>) -> Result<Self> {
        let chosen = match forced {
            None => TABLES.iter().rev().find(|table| (table.available)()),
            Some(name) => {
                let table = TABLES.iter().find(|table| table.name.eq_ignore_ascii_case(name));
                let table = table.ok_or_else(|| not_allowed(name.to_owned()))?;
                if !(table.available)() {
                    return Err(not_allowed(format!("{name} (this CPU lacks it)")));
                }
                Some(table)
            }
        };
        chosen.map(|table| Self(table)).ok_or_else(|| not_allowed("nothing".to_owned()))
    }

    /// Names of the sets that this build has and this CPU can or cannot run.
    #[cfg(test)]
    pub(crate) fn sets() -> Vec<(&'static str, bool)> {
        TABLES.iter().map(|table| (table.name, (table.available)())).collect()
    }

    /// The set's name.
    pub(crate) fn name(self) -> &'static str {
        self.0.name
    }

    /// Whether products of bf16 are the set's own, and faster than those of floats.
    pub(crate) fn multiplies_bf16(self) -> bool {
        self.0.round_bf16.is_some()
    }

    /// The functions; calling them is unsafe for their operands only, the CPU is checked.
    pub(super) fn table(self) -> &'static Table {
        self.0
    }

    /// Normalises a row; see [`Backend::layer_norm`](crate::backend::Backend::layer_norm).
    pub(crate) fn layer_norm(self, x: &[f32], w: &[f32], b: &[f32], eps: f32, out: &mut [f32]) {
        assert!(w.len() == x.len() && b.len() == x.len() && out.len() == x.len());
        // SAFETY: the table's instructions are there; the lengths agree.
        unsafe { (self.0.layer_norm)(x, w, b, eps, out) }
    }

    /// As [`layer_norm`](Self::layer_norm), of one row by two norms.
    pub(crate) fn layer_norm_pair(
        self,
        x: &[f32],
        norms: (Norm<'_>, Norm<'_>),
        eps: f32,
        out: (&mut [f32], &mut [f32]),
    ) {
        for ((w, b), out) in [(norms.0, &out.0), (norms.1, &out.1)] {
            assert!(w.len() == x.len() && b.len() == x.len() && out.len() == x.len());
        }
        // SAFETY: the table's instructions are there; the lengths agree.
        unsafe { (self.0.layer_norm_pair)(x, norms, eps, out) }
    }

    /// `x += y`.
    pub(crate) fn add(self, x: &mut [f32], y: &[f32]) {
        assert_eq!(x.len(), y.len());
        // SAFETY: the table's instructions are there; the lengths agree.
        unsafe { (self.0.add)(x, y) }
    }

    /// Rounds a row of `x.len()` activations to whole blocks of integers: the first of every `group`
    /// blocks of the outputs. Returns what its sums begin with.
    pub(crate) fn quantize_row(
        self,
        x: &[f32],
        integers: &mut [i8],
        scales: &mut [f32],
        sums: &mut [BlockSum],
        group: usize,
    ) -> f32 {
        let blocks = x.len().div_ceil(quant::QUANT_BLOCK);
        let places = integers.len() / quant::QUANT_BLOCK;
        assert!(places.div_ceil(group) == blocks);
        assert!(integers.len().is_multiple_of(quant::QUANT_BLOCK));
        assert!(scales.len() == places && sums.len() == places);
        // SAFETY: the table's instructions are there; the lengths agree.
        unsafe { (self.0.quantize_row)(x, QuantRow { integers, scales, sums, group }) }
    }
}

fn not_allowed(value: String) -> Error {
    let allowed =
        "portable, or what the CPU has of avx2, avx512, avx512vnni and avx512bf16, or unset";
    Error::option("DOLLY_FORCE_ISA", value, allowed)
}

const _: () = {
    // The bodies rely on a vector being exactly sixteen floats.
    const fn sixteen<V: Vector>() {
        assert!(size_of::<V>() == 4 * LANES);
    }
    sixteen::<Portable>();
    #[cfg(target_arch = "x86_64")]
    sixteen::<super::avx2::Avx2>();
    #[cfg(target_arch = "x86_64")]
    sixteen::<super::avx512::Avx512>();
};
