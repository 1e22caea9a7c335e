//! The GPT-NeoX network, written once for every backend (Black et al., 2022).

use crate::backend::{Backend, Few, RotaryTable, Span};
use crate::error::{Error, Result};
use crate::model::Config;

/// Rows of logits computed at a time; bounds the memory of calls that want logits for every token.
const LOGIT_ROWS: usize = 64;

/// The weights of one network on one backend.
pub struct NeoX<B: Backend> {
    pub(super) backend: B,
    pub(super) config: Config,
    pub(super) embedding: B::Embedding,
    pub(super) layers: Vec<Layer<B>>,
    pub(super) final_norm: B::Norm,
    pub(super) head: B::Linear,
    pub(super) rotary: RotaryTable,
    pub(super) weight_bytes: u64,
}

/// One transformer block.
pub(super) struct Layer<B: Backend> {
    pub(super) input_norm: B::Norm,
    pub(super) post_attention_norm: B::Norm,
    pub(super) query_key_value: B::Linear,
    pub(super) dense: B::Linear,
    pub(super) dense_h_to_4h: B::Linear,
    pub(super) dense_4h_to_h: B::Linear,
}

/// Activations between the operations of a step; their memory is reused by every later step.
pub struct Workspace<B: Backend> {
    /// The residual stream, `(rows, hidden)`: the result of [`NeoX::forward`].
    residual: B::Activations,
    /// The input of attention, or of the output layer.
    normed: B::Activations,
    /// The input of the feed-forward part.
    post_normed: B::Activations,
    qkv: B::Activations,
    attended: B::Activations,
    inner: B::Activations,
    selected: B::Activations,
    logits: B::Activations,
}

/// The logits of one row.
#[derive(Debug, Clone, Copy)]
pub enum Logits<'a> {
    /// All of them, `(vocab,)`.
    Whole(&'a [f32]),
    /// The largest, of which the reader said that they decide.
    Largest(Few<'a>),
}

/// Who logits are for. Rows are counted in the order in which they were asked for.
pub trait LogitReader {
    /// How many of the largest logits of a row might do; `None`: it is wanted whole.
    fn needed(&self, row: usize) -> Option<usize>;
    /// Whether these are all that is needed of a row.
    fn decides(&self, row: usize, few: Few<'_>) -> bool;
    /// Takes a row's logits; called once for each row, in order.
    fn take(&mut self, row: usize, logits: Logits<'_>);
}

impl<B: Backend> NeoX<B> {
    /// The hyper-parameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The device it runs on.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Longest sequence that [`forward`](Self::forward) accepts, in tokens.
    pub fn context_length(&self) -> usize {
        self.rotary.positions
    }

    /// Bytes held by the weights and the rotary table.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// Empty buffers for [`forward`](Self::forward) and [`logits`](Self::logits).
    pub fn workspace(&self) -> Workspace<B> {
        let empty = || self.backend.empty();
        Workspace {
            residual: empty(),
            normed: empty(),
            post_normed: empty(),
            qkv: empty(),
            attended: empty(),
            inner: empty(),
            selected: empty(),
            logits: empty(),
        }
    }

    /// Bytes that the buffers of `work` hold on to.
    pub fn workspace_bytes(&self, work: &Workspace<B>) -> u64 {
        let buffers = [
            &work.residual,
            &work.normed,
            &work.post_normed,
            &work.qkv,
            &work.attended,
            &work.inner,
            &work.selected,
            &work.logits,
        ];
        buffers.into_iter().map(|x| self.backend.bytes(x)).sum()
    }

    /// Runs the new tokens of all spans through the network and appends them to their caches.
    ///
    /// `ids` holds the spans' tokens one after the other; `caches[i]` belongs to `spans[i]`. The
    /// residual stream stays in `work` for [`logits`](Self::logits). An id beyond the vocabulary
    /// or a span beyond the context is [`Error::InvalidInput`]; nothing is computed then.
    pub fn forward(
        &self,
        ids: &[u32],
        spans: &[Span],
        caches: &mut [&mut B::Cache],
        work: &mut Workspace<B>,
    ) -> Result<()> {
        self.check(ids, spans, caches.len())?;
        self.backend.begin(&self.config, &self.rotary, ids, spans, caches)?;
        self.backend.embed(&self.embedding, ids, &mut work.residual)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let (backend, norms) = (&self.backend, (&layer.input_norm, &layer.post_attention_norm));
            if self.config.use_parallel_residual {
                // Both branches read the block's input, so both are normalised before either adds.
                let out = (&mut work.normed, &mut work.post_normed);
                backend.layer_norm_pair(&work.residual, norms, out)?;
                self.attention(index, layer, spans, caches, work)?;
            } else {
                backend.layer_norm(&work.residual, norms.0, &mut work.normed)?;
                self.attention(index, layer, spans, caches, work)?;
                backend.layer_norm(&work.residual, norms.1, &mut work.post_normed)?;
            }
            self.feed_forward(layer, work)?;
        }
        Ok(())
    }

    /// Logits of some rows of the last [`forward`](Self::forward), handed to `reader` in order.
    ///
    /// Rows that a few of their largest logits decide are not copied whole where the backend finds
    /// these itself; `host` is scratch.
    pub fn logits(
        &self,
        rows: &[usize],
        work: &mut Workspace<B>,
        host: &mut Vec<f32>,
        reader: &mut impl LogitReader,
    ) -> Result<()> {
        for (part, group) in rows.chunks(LOGIT_ROWS).enumerate() {
            self.backend.select_rows(&work.residual, group, &mut work.selected)?;
            self.backend.layer_norm(&work.selected, &self.final_norm, &mut work.normed)?;
            self.backend.linear(&work.normed, &self.head, None, &mut work.logits)?;
            self.hand_out(part * LOGIT_ROWS, group.len(), work, host, reader)?;
        }
        Ok(())
    }

    /// Hands out the logits in `work`: of `count` rows, the first of which is the reader's `first`.
    fn hand_out(
        &self,
        first: usize,
        count: usize,
        work: &mut Workspace<B>,
        host: &mut Vec<f32>,
        reader: &mut impl LogitReader,
    ) -> Result<()> {
        let needed = (first..first + count).filter_map(|row| reader.needed(row)).max();
        let largest =
            needed.map(|needed| self.backend.largest(&work.logits, needed)).transpose()?;
        let vocab = self.config.vocab_size;
        let Some(largest) = largest.flatten() else {
            self.backend.read(&work.logits, host)?;
            for (row, logits) in (first..).zip(host.chunks_exact(vocab).take(count)) {
                reader.take(row, Logits::Whole(logits));
            }
            return Ok(());
        };
        let few = |row: usize| largest.row(row).filter(|few| reader.decides(first + row, *few));
        let few: Vec<Option<Few<'_>>> = (0..count).map(few).collect();
        let whole: Vec<usize> = (0..count).filter(|row| few[*row].is_none()).collect();
        if !whole.is_empty() {
            self.backend.select_rows(&work.logits, &whole, &mut work.selected)?;
            self.backend.read(&work.selected, host)?;
        }
        let mut read = host.chunks_exact(vocab);
        for (row, few) in (first..).zip(few) {
            match (few, &mut read) {
                (Some(few), _) => reader.take(row, Logits::Largest(few)),
                (None, read) => reader.take(row, Logits::Whole(read.next().unwrap_or_default())),
            }
        }
        Ok(())
    }

    /// Adds the attention branch to the residual stream.
    fn attention(
        &self,
        index: usize,
        layer: &Layer<B>,
        spans: &[Span],
        caches: &mut [&mut B::Cache],
        work: &mut Workspace<B>,
    ) -> Result<()> {
        let backend = &self.backend;
        backend.linear(&work.normed, &layer.query_key_value, None, &mut work.qkv)?;
        let (config, rotary) = (&self.config, &self.rotary);
        backend.attention(config, rotary, index, &work.qkv, spans, caches, &mut work.attended)?;
        backend.linear_add(&work.attended, &layer.dense, &mut work.residual)
    }

    /// Adds the feed-forward branch to the residual stream.
    fn feed_forward(&self, layer: &Layer<B>, work: &mut Workspace<B>) -> Result<()> {
        let backend = &self.backend;
        let activation = Some(self.config.hidden_act);
        backend.linear(&work.post_normed, &layer.dense_h_to_4h, activation, &mut work.inner)?;
        backend.linear_add(&work.inner, &layer.dense_4h_to_h, &mut work.residual)
    }

    fn check(&self, ids: &[u32], spans: &[Span], caches: usize) -> Result<()> {
        let vocab = self.config.vocab_size;
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
            return Err(Error::InvalidInput(format!("id {id}; the vocabulary has {vocab} ids")));
        }
        if spans.len() != caches || ids.is_empty() {
            let text = format!("{} spans, {caches} caches, {} ids", spans.len(), ids.len());
            return Err(Error::Internal(text));
        }
        let mut next = 0;
        for span in spans {
            let end = span.position.checked_add(span.rows);
            if span.first_row != next || span.rows == 0 {
                return Err(Error::Internal(format!("spans must follow each other: {span:?}")));
            }
            if end.is_none_or(|end| end > self.context_length()) {
                let (tokens, context) = (end.unwrap_or(usize::MAX), self.context_length());
                return Err(Error::InvalidInput(format!(
                    "a sequence of {tokens} tokens; the context holds {context}"
                )));
            }
            next += span.rows;
        }
        match next == ids.len() {
            true => Ok(()),
            false => Err(Error::Internal(format!("spans cover {next} of {} ids", ids.len()))),
        }
    }
}
