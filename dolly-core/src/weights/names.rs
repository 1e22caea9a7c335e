//! Names of tensors: the canonical ones of Hugging Face checkpoints, and those of GGUF files.

/// Buffers that old checkpoints stored beside the weights; they hold no weight and are not listed.
const IGNORED: [&str; 3] =
    [".attention.bias", ".attention.masked_bias", ".attention.rotary_emb.inv_freq"];

/// Pairs of (canonical, GGUF) names outside the blocks.
const GLOBAL: [(&str, &str); 3] = [
    ("gpt_neox.embed_in", "token_embd"),
    ("gpt_neox.final_layer_norm", "output_norm"),
    ("embed_out", "output"),
];

/// Pairs of (canonical, GGUF) names within a block, as in `gguf.constants` (`MODEL_ARCH.GPTNEOX`)
/// of llama.cpp.
const BLOCK: [(&str, &str); 6] = [
    ("input_layernorm", "attn_norm"),
    ("attention.query_key_value", "attn_qkv"),
    ("attention.dense", "attn_output"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.dense_h_to_4h", "ffn_up"),
    ("mlp.dense_4h_to_h", "ffn_down"),
];

/// The canonical name of a tensor of a Hugging Face checkpoint, `None` for buffers to ignore.
///
/// Checkpoints of the bare `GPTNeoXModel` lack the `gpt_neox.` prefix: it is added. A state dict
/// of transformers 5 that did not pass `save_pretrained` calls the output `lm_head`.
pub(crate) fn canonical(name: &str) -> Option<String> {
    if IGNORED.iter().any(|suffix| name.ends_with(suffix)) {
        return None;
    }
    if let Some(suffix) = name.strip_prefix("lm_head.") {
        return Some(format!("embed_out.{suffix}"));
    }
    let bare = ["embed_in.", "layers.", "final_layer_norm."];
    if bare.iter().any(|prefix| name.starts_with(prefix)) {
        return Some(format!("gpt_neox.{name}"));
    }
    Some(name.to_owned())
}

/// The canonical name of a GGUF tensor; names this family does not have stay as they are.
pub(crate) fn from_gguf(name: &str) -> String {
    let Some((stem, suffix)) = name.rsplit_once('.') else { return name.to_owned() };
    if let Some((canonical, _)) = GLOBAL.iter().find(|(_, gguf)| *gguf == stem) {
        return format!("{canonical}.{suffix}");
    }
    if let Some((layer, part)) = stem.strip_prefix("blk.").and_then(|rest| rest.split_once('.'))
        && is_index(layer)
        && let Some((canonical, _)) = BLOCK.iter().find(|(_, gguf)| *gguf == part)
    {
        return format!("gpt_neox.layers.{layer}.{canonical}.{suffix}");
    }
    name.to_owned()
}

/// The GGUF name of a canonical tensor, `None` for one that GGUF has no place for.
pub(crate) fn to_gguf(name: &str) -> Option<String> {
    let (stem, suffix) = name.rsplit_once('.')?;
    if let Some((_, gguf)) = GLOBAL.iter().find(|(canonical, _)| *canonical == stem) {
        return Some(format!("{gguf}.{suffix}"));
    }
    let (layer, part) = stem.strip_prefix("gpt_neox.layers.")?.split_once('.')?;
    let (_, gguf) = BLOCK.iter().find(|(canonical, _)| *canonical == part)?;
    is_index(layer).then(|| format!("blk.{layer}.{gguf}.{suffix}"))
}

/// Whether a canonical name is that of a fused query-key-value weight or bias.
pub(crate) fn is_qkv(name: &str) -> bool {
    name.ends_with(".attention.query_key_value.weight")
        || name.ends_with(".attention.query_key_value.bias")
}

/// A decimal number as this library writes it: no sign, no leading zero.
fn is_index(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 6
        && text.bytes().all(|b| b.is_ascii_digit())
        && (text == "0" || !text.starts_with('0'))
}

/// Names among `names` that `wanted` may have meant: those with the longest shared ending.
pub(crate) fn near<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let shared = |name: &str| {
        wanted.bytes().rev().zip(name.bytes().rev()).take_while(|(a, b)| a == b).count()
    };
    let mut best: Vec<(usize, &str)> = Vec::new();
    for name in names {
        best.push((shared(name), name));
        best.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
        best.truncate(3);
    }
    best.into_iter().map(|(_, name)| name).collect()
}

/// Where the rows of a tensor lie in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RowOrder {
    /// Row `r` of the matrix is row `r` of the file.
    Stored,
    /// Rows of a fused query-key-value matrix stored as all queries, all keys, all values, each
    /// head after head, and wanted as `[head][q, k, v][head_dim]`.
    ///
    /// llama.cpp's converter (`GPTNeoXModel.modify_tensors`) stores them so.
    SplitQkv {
        /// Attention heads.
        heads: usize,
        /// Rows of one head's query, key or value.
        head_dim: usize,
    },
}

impl RowOrder {
    /// The file's row that holds canonical `row`, and how many rows from there follow each other
    /// in both orders.
    pub(crate) fn locate(self, row: usize) -> (usize, usize) {
        match self {
            Self::Stored => (row, usize::MAX),
            Self::SplitQkv { heads, head_dim } => {
                let within = row % head_dim;
                let (head, part) = (row / head_dim / 3, row / head_dim % 3);
                ((part * heads + head) * head_dim + within, head_dim - within)
            }
        }
    }
}
