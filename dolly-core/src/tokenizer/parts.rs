//! The parts of a tokenizer, from whatever file, and the checks they must pass.

use std::collections::{HashMap, HashSet};

use super::words;

/// Most ids; the largest vocabulary of the family has 50,688 rows.
pub(super) const MAX_IDS: usize = 1 << 22;
/// Longest token in bytes.
pub(super) const MAX_TOKEN_BYTES: usize = 4096;
/// Most added tokens, and most bytes of all of them: they are compiled into an automaton.
pub(super) const MAX_ADDED: usize = 1 << 16;
const MAX_ADDED_BYTES: usize = 1 << 20;

/// A token matched as a whole before words are split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Added {
    pub id: u32,
    pub content: String,
    pub special: bool,
    /// Matched in the normalised text (`true`) or in the text as given.
    pub normalized: bool,
}

/// Everything that makes a tokenizer of the family.
#[derive(Debug)]
pub(super) struct Parts {
    /// By id, added tokens included.
    pub tokens: Vec<String>,
    /// The first so many tokens are the BPE's own: merges are among these.
    pub base: usize,
    /// Pairs, best first.
    pub merges: Vec<(String, String)>,
    pub added: Vec<Added>,
    pub nfc: bool,
    pub prefix_space: bool,
}

/// What the checks found out.
pub(super) struct Checked {
    pub is_special: Vec<bool>,
    pub is_added: Vec<bool>,
    pub byte_ids: [Option<u32>; 256],
    /// Left, right and joined id, best first.
    pub merges: Vec<(u32, u32, u32)>,
}

impl Parts {
    /// The parts in `tokenizer.ggml.*`: added tokens are marked by their type.
    pub fn from_gguf(
        tokens: Vec<String>,
        types: &[i32],
        merges: &[String],
    ) -> Result<Self, String> {
        if !types.is_empty() && types.len() != tokens.len() {
            return Err(format!("{} token types for {} tokens", types.len(), tokens.len()));
        }
        let added = types.iter().zip(&tokens).enumerate();
        let added = added.filter(|(_, (kind, _))| matches!(kind, 3 | 4)).map(|(id, token)| Added {
            id: id as u32,
            content: token.1.clone(),
            special: *token.0 == 3,
            normalized: *token.0 != 3,
        });
        let added = added.collect();
        let merges = merges.iter().map(|merge| split_merge(merge)).collect::<Result<_, _>>()?;
        let base = tokens.len();
        Ok(Self { tokens, base, merges, added, nfc: true, prefix_space: false })
    }

    /// Checks everything the `tokenizers` crate relies on or answers with a panic.
    pub fn check(&self) -> Result<Checked, String> {
        if self.tokens.is_empty() || self.tokens.len() > MAX_IDS {
            return Err(format!("{} ids; expected 1 to {MAX_IDS}", self.tokens.len()));
        }
        let mut ids = HashMap::with_capacity(self.tokens.len());
        for (id, token) in self.tokens.iter().enumerate() {
            check_token(token).map_err(|reason| format!("token {id}: {reason}"))?;
            if let Some(first) = ids.insert(token.as_str(), id) {
                return Err(format!("ids {first} and {id} are the same token {}", quote(token)));
            }
        }
        let base = |token: &str| ids.get(token).copied().filter(|id| *id < self.base);
        let merges = self.check_merges(base)?;
        let (is_special, is_added) = self.check_added()?;
        let byte_ids = words::BYTE_CHARS.map(|c| {
            let mut buffer = [0; 4];
            base(c.encode_utf8(&mut buffer)).map(|id| id as u32)
        });
        check_bytes(&byte_ids, &is_special)?;
        Ok(Checked { is_special, is_added, byte_ids, merges })
    }

    fn check_merges(
        &self,
        base: impl Fn(&str) -> Option<usize>,
    ) -> Result<Vec<(u32, u32, u32)>, String> {
        if self.merges.len() > MAX_IDS {
            return Err(format!("{} merges; at most {MAX_IDS}", self.merges.len()));
        }
        let mut merges = Vec::with_capacity(self.merges.len());
        let mut joined = String::new();
        for (rank, (left, right)) in self.merges.iter().enumerate() {
            joined.clear();
            joined.push_str(left);
            joined.push_str(right);
            let id = |token: &str| {
                let missing = || format!("merge {rank}: {} is not in the vocabulary", quote(token));
                base(token).map(|id| id as u32).ok_or_else(missing)
            };
            merges.push((id(left)?, id(right)?, id(&joined)?));
        }
        Ok(merges)
    }

    fn check_added(&self) -> Result<(Vec<bool>, Vec<bool>), String> {
        let bytes: usize = self.added.iter().map(|added| added.content.len()).sum();
        if self.added.len() > MAX_ADDED || bytes > MAX_ADDED_BYTES {
            let count = self.added.len();
            return Err(format!(
                "{count} added tokens of {bytes} bytes; at most {MAX_ADDED} of {MAX_ADDED_BYTES}"
            ));
        }
        let mut is_special = vec![false; self.tokens.len()];
        let mut is_added = vec![false; self.tokens.len()];
        let mut contents = HashSet::new();
        for added in &self.added {
            let (id, content) = (added.id, quote(&added.content));
            let slot = usize::try_from(id).ok().filter(|slot| *slot < self.tokens.len());
            let slot = slot.ok_or_else(|| format!("added token {content} has no id {id}"))?;
            if self.tokens.get(slot) != Some(&added.content) || !contents.insert(slot) {
                return Err(format!("added token {content}: id {id} is taken"));
            }
            is_special[slot] = added.special;
            is_added[slot] = true;
        }
        Ok((is_special, is_added))
    }
}

/// No byte's token is framing: plain text could spell it.
fn check_bytes(byte_ids: &[Option<u32>; 256], is_special: &[bool]) -> Result<(), String> {
    let special = |id: Option<u32>| id.and_then(|id| is_special.get(id as usize)) == Some(&true);
    match byte_ids.iter().position(|id| special(*id)) {
        Some(byte) => Err(format!("the token of byte {byte} is special")),
        None => Ok(()),
    }
}

fn check_token(token: &str) -> Result<(), String> {
    match token.len() {
        0 => Err("is empty".into()),
        len if len > MAX_TOKEN_BYTES => {
            Err(format!("has {len} bytes; at most {MAX_TOKEN_BYTES} are allowed"))
        }
        _ => Ok(()),
    }
}

/// `left right` as a pair; exactly one blank.
pub(super) fn split_merge(merge: &str) -> Result<(String, String), String> {
    match merge.split_once(' ') {
        Some((left, right)) if !right.contains(' ') => Ok((left.to_owned(), right.to_owned())),
        _ => Err(format!("merge {}: expected two tokens and a blank between", quote(merge))),
    }
}

/// A text fit for a message: quoted, escaped, cut.
pub(super) fn quote(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}
