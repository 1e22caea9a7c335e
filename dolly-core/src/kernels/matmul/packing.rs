//! Operands rearranged for the micro-kernel: panels of a few rows, the rows' elements of a step side
//! by side.

use super::{K_SLICE, Operand};
use crate::kernels::vector::Vector;

/// Floats between panels: a power of two from one to the next would put all panels that are written
/// together into the same few sets of the first cache.
const GAP: usize = 16;
/// Rows whose panels are written together where they lie side by side: a panel at a time would
/// touch a new page for every line it reads.
const TOGETHER: usize = 192;
/// Rows and steps that are transposed at a time.
const BLOCK: usize = 8;

/// Floats from one panel of `N` rows to the next.
pub(super) fn panel_floats<const N: usize>(steps: usize) -> usize {
    steps * N + GAP
}

/// Packs rows `first..first + count` of `m`, `N` at a time: `out[panel][step][row]`. Missing rows of
/// the last panel are zeros.
pub(super) fn pack<const N: usize>(
    kernel: unsafe fn(&[&[f32]], &mut [f32]),
    m: &Operand<'_>,
    (first, count): (usize, usize),
    (k, steps): (usize, usize),
    out: &mut [f32],
) {
    let panel = panel_floats::<N>(steps);
    let out = &mut out[..count.div_ceil(N) * panel];
    if m.transposed {
        let together = TOGETHER / N;
        for (group, out) in out.chunks_mut(together * panel).enumerate() {
            let done = group * together * N;
            pack_group::<N>(m, (first + done, count - done), (k, steps), out);
        }
        return;
    }
    let zeros = [0.0; K_SLICE];
    for (index, out) in out.chunks_exact_mut(panel).enumerate() {
        let row = first + index * N;
        let sources: [&[f32]; N] = std::array::from_fn(|r| match row + r < first + count {
            true => &m.data[(row + r) * m.stride + k..][..steps],
            false => &zeros[..steps],
        });
        // SAFETY: the kernel comes from a table whose instructions are there; all rows and the
        // panel have `steps` steps.
        unsafe { kernel(&sources, &mut out[..steps * N]) };
    }
}

/// Packs a few panels whose rows lie side by side in memory, a step of all of them at a time.
fn pack_group<const N: usize>(
    m: &Operand<'_>,
    (first, count): (usize, usize),
    (k, steps): (usize, usize),
    out: &mut [f32],
) {
    let panel = panel_floats::<N>(steps);
    let panels = out.len() / panel;
    let whole = (count / N).min(panels);
    let rest = count.min(panels * N) - whole * N;
    for step in 0..steps {
        let from = &m.data[(k + step) * m.stride + first..][..whole * N + rest];
        let (from, rest) = from.as_chunks::<N>();
        for (from, out) in from.iter().zip(out.chunks_exact_mut(panel)) {
            out[step * N..][..N].copy_from_slice(from);
        }
        if !rest.is_empty() {
            let cell = &mut out[whole * panel + step * N..][..N];
            cell.fill(0.0);
            cell[..rest.len()].copy_from_slice(rest);
        }
    }
}

/// `out[step][row] = rows[row][step]`.
///
/// # Safety
/// As [`Vector::splat`]; there is a row, and `out` has room for as many steps of all rows as each
/// row has floats.
#[inline(always)]
pub(in crate::kernels) unsafe fn interleave<V: Vector>(rows: &[&[f32]], out: &mut [f32]) {
    let n = rows.len();
    // The slice is not looked at again while it is written through the pointer.
    let len = out.len();
    let (steps, to) = (len / n, out.as_mut_ptr());
    let whole = steps - steps % BLOCK;
    for step in (0..whole).step_by(BLOCK) {
        // From the last rows to the first: where eight are more than there are, the last one stands
        // in, and what it writes past its step belongs to the first rows of the next.
        for first in (0..n).step_by(BLOCK).rev() {
            let row = |r: usize| rows[(first + r).min(n - 1)].as_ptr().wrapping_add(step);
            let from = std::array::from_fn(row);
            let fits = (step + BLOCK - 1) * n + first + BLOCK <= len;
            // SAFETY: eight floats from `step` on are inside every row. The last of the eight
            // writes ends inside `out`, or goes through `edge`.
            unsafe {
                if fits {
                    V::transpose(&from, to.add(step * n + first), n);
                    continue;
                }
                let mut edge = [0.0_f32; BLOCK * BLOCK];
                V::transpose(&from, edge.as_mut_ptr(), BLOCK);
                for (s, edge) in edge.chunks_exact(BLOCK).enumerate() {
                    let to = to.add((step + s) * n + first);
                    std::ptr::copy_nonoverlapping(edge.as_ptr(), to, BLOCK.min(n - first));
                }
            }
        }
    }
    for (s, cell) in out.chunks_exact_mut(n).enumerate().skip(whole) {
        for (row, x) in rows.iter().zip(cell) {
            *x = row[s];
        }
    }
}
