//! Attention over caches on the device: what a step needs once, and what each layer computes.

use std::ops::Range;

use candle_core::{D, DType, Device, Tensor};

use super::cache::{CandleCache, merge};
use crate::backend::{RotaryTable, Span};
use crate::error::{Error, Result};
use crate::model::Config;

/// Tables that stay on the device from the first step on.
pub(super) struct Tables {
    /// Cosines and sines `(positions, half)` in the type that attention computes in; none where
    /// nothing is rotated.
    turns: Option<[Tensor; 2]>,
    /// 0, 1, 2 ... up to the number of positions.
    counting: Tensor,
}

impl Tables {
    pub fn new(rotary: &RotaryTable, dtype: DType, device: &Device) -> Result<Self> {
        let shape = (rotary.positions, rotary.half);
        let table = |values: &[f32]| -> Result<Tensor> {
            Ok(Tensor::from_slice(values, shape, &Device::Cpu)?
                .to_dtype(dtype)?
                .to_device(device)?)
        };
        let positions = u32::try_from(rotary.positions)
            .map_err(|_| Error::Internal(format!("{} positions", rotary.positions)))?;
        let turns =
            (rotary.half > 0).then(|| Ok::<_, Error>([table(&rotary.cos)?, table(&rotary.sin)?]));
        Ok(Self { turns: turns.transpose()?, counting: Tensor::arange(0, positions, device)? })
    }
}

/// What all layers of a step share.
pub(super) struct Step {
    /// The tokens, here and on the device; none where they were not told.
    ids: (Vec<u32>, Option<Tensor>),
    spans: Vec<Span>,
    groups: Vec<Group>,
    /// Where each row is among the groups' rows; unset where they are in order.
    order: Option<Tensor>,
}

/// Sequences that are computed together: `members.len()` of them, each with `rows` rows.
struct Group {
    /// Which spans, ascending.
    members: Vec<usize>,
    positions: Vec<usize>,
    rows: usize,
    /// Whether it is one sequence whose tensors are left as they are.
    alone: bool,
    first_row: usize,
    /// Rows of the call, where they do not follow each other.
    picked: Option<Tensor>,
    /// Cosines and sines `(2 members, rows, half)`: of all queries, then of all keys.
    turns: Option<[Tensor; 2]>,
    /// Zeros and -infinity `(members, 1, rows, longest)`, where a row must not see every position.
    mask: Option<Tensor>,
    /// Where a row of keys goes, `(members, heads, 1, head_dim)`, where members differ in it.
    places: Option<Tensor>,
}

/// Numbers that a step needs on the device, to be copied there together.
#[derive(Default)]
struct Words(Vec<u32>);

impl Words {
    fn add(&mut self, words: impl IntoIterator<Item = u32>) -> Range<usize> {
        let start = self.0.len();
        self.0.extend(words);
        start..self.0.len()
    }
}

impl Step {
    /// Whether this step was planned for these spans.
    pub fn is_for(&self, spans: &[Span]) -> bool {
        self.spans == spans
    }

    /// These tokens on the device, if they are the step's.
    pub fn ids(&self, ids: &[u32]) -> Option<&Tensor> {
        self.ids.1.as_ref().filter(|_| self.ids.0 == ids)
    }

    /// Plans a step of these tokens; `upload` copies all the numbers it needs to the device.
    pub fn plan(
        config: &Config,
        tables: &Tables,
        (ids, spans): (&[u32], &[Span]),
        members: Vec<(Vec<usize>, bool)>,
        upload: impl FnOnce(Vec<u32>) -> Result<Tensor>,
    ) -> Result<Self> {
        let mut words = Words::default();
        let tokens = words.add(ids.iter().copied());
        let places = |group: &(Vec<usize>, bool)| Places::new(spans, &group.0, &mut words);
        let places: Vec<Places> = members.iter().map(places).collect();
        let rows = |(group, _): &(Vec<usize>, bool)| -> Vec<u32> {
            group.iter().flat_map(|m| rows_of(&spans[*m])).collect()
        };
        let written: Vec<u32> = members.iter().flat_map(rows).collect();
        let mut order = vec![0u32; written.len()];
        for (at, row) in (0u32..).zip(&written) {
            order[*row as usize] = at;
        }
        let order = (!order.is_sorted()).then(|| words.add(order));
        let words = upload(words.0)?;
        let part = |range: Range<usize>| words.narrow(0, range.start, range.len());
        let group = |(group, places)| Group::new(config, tables, spans, group, places, &words);
        let groups = members.into_iter().zip(places).map(group);
        let groups = groups.collect::<Result<Vec<_>>>()?;
        let tokens = (!ids.is_empty()).then(|| part(tokens)).transpose()?;
        let order = order.map(part).transpose()?;
        Ok(Self { ids: (ids.to_vec(), tokens), spans: spans.to_vec(), groups, order })
    }

    /// The mixed values `(rows, hidden)` of one layer for `qkv`, `(rows, 3 hidden)`.
    pub fn attend(
        &self,
        config: &Config,
        layer: usize,
        qkv: &Tensor,
        caches: &mut [&mut CandleCache],
    ) -> Result<Tensor> {
        let mut parts = Vec::with_capacity(self.groups.len());
        for group in &self.groups {
            parts.push(group.attend(config, layer, qkv, caches)?);
        }
        let all = match &*parts {
            [one] => one.clone(),
            parts => Tensor::cat(parts, 0)?,
        };
        Ok(match &self.order {
            None => all,
            Some(order) => all.index_select(order, 0)?,
        })
    }
}

fn rows_of(span: &Span) -> impl Iterator<Item = u32> + use<> {
    let first = span.first_row as u32;
    first..first + span.rows as u32
}

/// Which spans are computed together: those of one row whose caches have one capacity; and whether
/// their tensors must stay as they are, as those of prompts do. Sequences whose tensors are shared with others of this call that cannot join stay alone: laying them out
/// anew at each step would copy their caches each time.
pub(super) fn together(
    spans: &[Span],
    caches: &[&mut CandleCache],
    layer: usize,
) -> Vec<(Vec<usize>, bool)> {
    let key = |member: usize| (spans[member].rows == 1, caches[member].capacity());
    let tensor = |member: usize| caches[member].layers[layer].keys.id();
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (member, span) in spans.iter().enumerate() {
        let joins = |group: &&mut Vec<usize>| span.rows == 1 && key(group[0]) == key(member);
        match groups.iter_mut().find(joins) {
            Some(group) => group.push(member),
            None => groups.push(vec![member]),
        }
    }
    let closed = |group: &Vec<usize>| {
        let apart = |other: usize| !group.contains(&other);
        (0..spans.len())
            .filter(|other| apart(*other))
            .all(|other| group.iter().all(|member| tensor(*member) != tensor(other)))
    };
    let divided = |group: Vec<usize>| -> Vec<(Vec<usize>, bool)> {
        match spans[group[0]].rows == 1 && closed(&group) {
            true => vec![(group, false)],
            false => group.into_iter().map(|member| (vec![member], true)).collect(),
        }
    };
    groups.into_iter().flat_map(divided).collect()
}

/// Where a group's numbers lie among those that are copied to the device.
struct Places {
    /// Rows of the call, where they do not follow each other.
    picked: Option<Range<usize>>,
    /// Positions of all rows, twice: queries and keys are rotated in one go.
    both: Range<usize>,
}

impl Places {
    fn new(spans: &[Span], members: &[usize], words: &mut Words) -> Self {
        let taken: Vec<u32> = members.iter().flat_map(|m| rows_of(&spans[*m])).collect();
        let follow = taken.windows(2).all(|pair| pair[0] + 1 == pair[1]);
        let picked = (!follow).then(|| words.add(taken));
        let flat: Vec<u32> = members.iter().flat_map(|m| positions_of(&spans[*m])).collect();
        Self { picked, both: words.add([&*flat, &*flat].concat()) }
    }
}

impl Group {
    fn new(
        config: &Config,
        tables: &Tables,
        spans: &[Span],
        (members, alone): (Vec<usize>, bool),
        places: Places,
        words: &Tensor,
    ) -> Result<Self> {
        let rows = spans[members[0]].rows;
        let positions: Vec<usize> = members.iter().map(|m| spans[*m].position).collect();
        let longest = positions.iter().max().map_or(rows, |position| position + rows);
        let part = |range: Range<usize>| words.narrow(0, range.start, range.len());
        let picked = places.picked.map(part).transpose()?;
        let count = members.len();
        let both = part(places.both)?;
        let at = both.narrow(0, 0, count * rows)?;
        let select = |table: &Tensor| -> Result<Tensor> {
            Ok(table.index_select(&both, 0)?.reshape((2 * count, rows, ()))?)
        };
        let turns = match &tables.turns {
            Some([cos, sin]) => Some([select(cos)?, select(sin)?]),
            None => None,
        };
        let uneven = positions.iter().any(|position| *position != positions[0]);
        let mask = (uneven || rows > 1).then(|| mask(tables, &at, (count, rows, longest)));
        let places = uneven.then(|| {
            let shape = (count, config.num_attention_heads, 1, config.head_dim());
            at.reshape((count, 1, 1, 1))?.broadcast_as(shape)?.contiguous()
        });
        let (mask, places) = (mask.transpose()?, places.transpose()?);
        let first_row = spans[members[0]].first_row;
        Ok(Self { members, positions, rows, alone, first_row, picked, turns, mask, places })
    }

    fn attend(
        &self,
        config: &Config,
        layer: usize,
        qkv: &Tensor,
        caches: &mut [&mut CandleCache],
    ) -> Result<Tensor> {
        let (heads, dim) = (config.num_attention_heads, config.head_dim());
        let (count, rows) = (self.members.len(), self.rows);
        let [query, key, value] = self.rotated(config, qkv)?;
        let (keys, values) = self.append(layer, &key, &value, caches)?;
        let query = (query * (1.0 / (dim as f64).sqrt()))?;
        let scores = query.matmul(&keys.t()?)?.to_dtype(DType::F32)?; // (n, h, t, s)
        let scores = match &self.mask {
            Some(mask) => scores.broadcast_add(mask)?,
            None => scores,
        };
        let weights = candle_nn::ops::softmax_last_dim(&scores)?.to_dtype(values.dtype())?;
        let mixed = weights.matmul(&values)?; // (n, h, t, d)
        Ok(mixed.transpose(1, 2)?.reshape((count * rows, heads * dim))?)
    }

    /// Queries, keys and values `(members, heads, rows, head_dim)`, the former two rotated.
    fn rotated(&self, config: &Config, qkv: &Tensor) -> Result<[Tensor; 3]> {
        let (heads, dim) = (config.num_attention_heads, config.head_dim());
        let (count, rows) = (self.members.len(), self.rows);
        let own = match &self.picked {
            Some(picked) => qkv.index_select(picked, 0)?,
            None => qkv.narrow(0, self.first_row, count * rows)?,
        };
        let all = own.reshape((count, rows, heads, 3, dim))?.permute((3, 0, 2, 1, 4))?;
        let all = all.force_contiguous()?; // (3, n, h, t, d)
        if let Some([cos, sin]) = &self.turns {
            let half = cos.dim(D::Minus1)?;
            let both = all.narrow(0, 0, 2)?.reshape((2 * count, heads, rows, dim))?;
            let turned = both.narrow(D::Minus1, 0, 2 * half)?.contiguous()?;
            let turned = candle_nn::rotary_emb::rope(&turned, cos, sin)?;
            both.slice_set(&turned, D::Minus1, 0)?;
        }
        Ok([all.get(0)?, all.get(1)?, all.get(2)?])
    }

    /// Writes keys and values into the caches; gives all of them up to the longest member's,
    /// `(members, heads, longest, head_dim)`.
    fn append(
        &self,
        layer: usize,
        key: &Tensor,
        value: &Tensor,
        caches: &mut [&mut CandleCache],
    ) -> Result<(Tensor, Tensor)> {
        let longest = self.positions.iter().max().map_or(0, |position| position + self.rows);
        let upto = |x: Tensor| -> Result<Tensor> { Ok(x.narrow(2, 0, longest)?) };
        if let ([member], true) = (&*self.members, self.alone) {
            let own = &mut caches[*member].layers[layer];
            own.write(self.positions[0], key, value)?;
            return Ok((upto(own.own(&own.keys)?)?, upto(own.own(&own.values)?)?));
        }
        let mut own: Vec<&mut CandleCache> = Vec::with_capacity(self.members.len());
        for (index, cache) in caches.iter_mut().enumerate() {
            if self.members.contains(&index) {
                own.push(cache);
            }
        }
        let (keys, values) = merge(&mut own, layer)?;
        match &self.places {
            Some(places) => {
                keys.scatter_set(places, key, 2)?;
                values.scatter_set(places, value, 2)?;
            }
            None => {
                keys.slice_set(key, 2, self.positions[0])?;
                values.slice_set(value, 2, self.positions[0])?;
            }
        }
        for (cache, position) in own.iter_mut().zip(&self.positions) {
            cache.layers[layer].end_at(position + self.rows)?;
        }
        Ok((upto(keys)?, upto(values)?))
    }
}

fn positions_of(span: &Span) -> impl Iterator<Item = u32> + use<> {
    let first = span.position as u32;
    first..first + span.rows as u32
}

/// Zero where a row at one of the positions `at` may look, -infinity beyond, in f32.
fn mask(
    tables: &Tables,
    at: &Tensor,
    (count, rows, longest): (usize, usize, usize),
) -> Result<Tensor> {
    let shape = (count * rows, longest);
    let seen = tables.counting.narrow(0, 0, longest)?.broadcast_as(shape)?;
    let seen = seen.le(&at.reshape((count * rows, 1))?.broadcast_as(shape)?)?;
    let device = at.device();
    let zero = Tensor::zeros(shape, DType::F32, device)?;
    let hidden = Tensor::full(f32::NEG_INFINITY, shape, device)?;
    Ok(seen.where_cond(&zero, &hidden)?.reshape((count, 1, rows, longest))?)
}
