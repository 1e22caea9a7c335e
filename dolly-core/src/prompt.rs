//! Dolly's prompt as segments: framing tokens and user text never mix.
//!
//! Wording, keys and layout are those of the original's `generate.py` (databrickslabs/dolly at
//! e2d664d). The original encodes the rendered string as a whole, so an instruction that contains
//! `### Response:` ends its own prompt; here the string is cut at the framing keys, and text
//! between them is encoded with special tokens off. For text that contains no key both give the
//! same ids, because the tokenizer cuts at special tokens before anything else.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::options::{PromptMode, PromptOverflow};
use crate::tokenizer::Tokenizer;

#[cfg(test)]
mod tests;

/// First paragraph of every prompt.
pub const INTRO: &str = "Below is an instruction that describes a task. \
                         Write a response that appropriately completes the request.";
/// Stands before the instruction.
pub const INSTRUCTION_KEY: &str = "### Instruction:";
/// Stands before the context; plain text in every checkpoint.
pub const INPUT_KEY: &str = "Input:";
/// Stands before the answer.
pub const RESPONSE_KEY: &str = "### Response:";
/// Ends the answer.
pub const END_KEY: &str = "### End";
/// The special tokens Dolly's training adds to a tokenizer, in the order of their ids; the newline
/// is inside the last one.
pub const DOLLY_TOKENS: [&str; 3] = [END_KEY, INSTRUCTION_KEY, "### Response:\n"];

/// What a user asks: an instruction, and the passage it speaks of if there is one.
///
/// ```
/// use dolly_core::prompt::Instruction;
/// let plain = Instruction::from("Name three colours.");
/// let with_passage = Instruction::new("Summarise.").context("Sheep graze on the moor.");
/// assert_eq!(with_passage.get_context(), Some("Sheep graze on the moor."));
/// assert_eq!(plain.get_context(), None);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Instruction {
    instruction: String,
    context: Option<String>,
}

impl Instruction {
    /// An instruction without context.
    pub fn new(instruction: impl Into<String>) -> Self {
        Self { instruction: instruction.into(), context: None }
    }

    /// Adds the passage the instruction speaks of; an empty one is none.
    #[must_use]
    pub fn context(mut self, context: impl Into<String>) -> Self {
        self.context = Some(context.into()).filter(|context| !context.is_empty());
        self
    }

    /// The instruction's text.
    pub fn text(&self) -> &str {
        &self.instruction
    }

    /// The passage, if there is one; never empty.
    pub fn get_context(&self) -> Option<&str> {
        self.context.as_deref()
    }
}

impl From<&str> for Instruction {
    fn from(instruction: &str) -> Self {
        Self::new(instruction)
    }
}

impl From<String> for Instruction {
    fn from(instruction: String) -> Self {
        Self::new(instruction)
    }
}

impl From<&String> for Instruction {
    fn from(instruction: &String) -> Self {
        Self::new(instruction.as_str())
    }
}

/// Part of a rendered prompt; boundaries lie at framing tokens only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// A framing token of the checkpoint.
    Framing {
        /// Its id.
        id: u32,
        /// Its text, as it stands in the rendered string.
        text: String,
    },
    /// Plain text: encoded with special tokens off.
    Text {
        /// The text.
        text: String,
        /// Where in it, in bytes, the user's context lies.
        context: Option<Range<usize>>,
    },
}

/// A framing key and the special token that holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    id: u32,
    /// The key, and in Dolly's own response token the newline after it.
    content: String,
}

/// The prompt of one checkpoint: which of the keys its tokenizer has as special tokens.
///
/// Both published forms are read: `### Response:\n` as one token (Dolly's training code) and
/// `### Response:` followed by a plain newline (the published dolly-v2-3b). Keys without a special
/// token are plain text; then user text that spells them cannot be told from framing, and the
/// answer ends at [`stop_texts`](Self::stop_texts).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DollyPrompt {
    instruction: Option<Key>,
    response: Option<Key>,
    end: Option<Key>,
}

/// Text written so far and the segments before it.
#[derive(Default)]
struct Renderer {
    segments: Vec<Segment>,
    text: String,
    context: Option<Range<usize>>,
}

impl Renderer {
    fn flush(&mut self) {
        let (text, context) = (std::mem::take(&mut self.text), self.context.take());
        if !text.is_empty() {
            self.segments.push(Segment::Text { text, context });
        }
    }

    /// Writes `key` and a newline, as one token where there is one.
    fn key(&mut self, key: &str, token: Option<&Key>) {
        let newline = match token {
            Some(Key { id, content }) => {
                self.flush();
                self.segments.push(Segment::Framing { id: *id, text: content.clone() });
                !content.ends_with('\n')
            }
            None => {
                self.text.push_str(key);
                true
            }
        };
        if newline {
            self.text.push('\n');
        }
    }
}

impl DollyPrompt {
    /// Reads the framing tokens of a checkpoint's tokenizer: for each key the first special token
    /// that is the key, or the key and a newline.
    pub fn new(tokenizer: &Tokenizer) -> Self {
        let find = |key: &str, forms: &[&str]| {
            let fits =
                |content: &str| content.strip_prefix(key).is_some_and(|rest| forms.contains(&rest));
            let mut tokens = tokenizer.special_tokens();
            let (id, content) = tokens.find(|(_, content)| fits(content))?;
            Some(Key { id, content: content.to_owned() })
        };
        Self {
            instruction: find(INSTRUCTION_KEY, &["", "\n"]),
            response: find(RESPONSE_KEY, &["", "\n"]),
            end: find(END_KEY, &[""]),
        }
    }

    /// The id of `### Instruction:`, where it is a special token.
    pub fn instruction_id(&self) -> Option<u32> {
        self.instruction.as_ref().map(|key| key.id)
    }

    /// The id of `### Response:` (with or without its newline), where it is a special token.
    pub fn response_id(&self) -> Option<u32> {
        self.response.as_ref().map(|key| key.id)
    }

    /// The id of `### End`, where it is a special token: generating it ends the answer.
    pub fn end_id(&self) -> Option<u32> {
        self.end.as_ref().map(|key| key.id)
    }

    /// Texts that end the answer where no token does: `### End`, or none.
    pub fn stop_texts(&self) -> &'static [&'static str] {
        match self.end {
            Some(_) => &[],
            None => &[END_KEY],
        }
    }

    /// The prompt of `instruction` as segments; their texts joined are the original's prompt.
    pub fn render(&self, instruction: &Instruction) -> Vec<Segment> {
        let mut out = Renderer::default();
        out.text.push_str(INTRO);
        out.text.push_str("\n\n");
        out.key(INSTRUCTION_KEY, self.instruction.as_ref());
        out.text.push_str(&instruction.instruction);
        out.text.push_str("\n\n");
        if let Some(context) = instruction.get_context() {
            out.text.push_str(INPUT_KEY);
            out.text.push('\n');
            let start = out.text.len();
            out.text.push_str(context);
            out.context = Some(start..out.text.len());
            out.text.push_str("\n\n");
        }
        out.key(RESPONSE_KEY, self.response.as_ref());
        out.flush();
        out.segments
    }

    /// The prompt of `instruction` as one string, byte for byte the original's.
    pub fn render_text(&self, instruction: &Instruction) -> String {
        let segments = self.render(instruction);
        segments.iter().map(Segment::text).collect()
    }

    /// The ids of the prompt, however many.
    ///
    /// In [`PromptMode::Safe`] the framing ids are exactly the prompt's own, whatever the user's
    /// text; in [`PromptMode::Hf`] special tokens inside it take effect.
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        instruction: &Instruction,
        mode: PromptMode,
    ) -> Result<Vec<u32>> {
        if mode == PromptMode::Hf {
            return tokenizer.encode(&self.render_text(instruction), true);
        }
        let mut ids = Vec::new();
        for segment in self.render(instruction) {
            match segment {
                Segment::Framing { id, .. } => ids.push(id),
                Segment::Text { text, .. } => ids.extend(tokenizer.encode(&text, false)?),
            }
        }
        Ok(ids)
    }

    /// The ids of a response as it stands in the training text: followed by a blank line and
    /// `### End` where the checkpoint has that token.
    pub fn encode_response(&self, tokenizer: &Tokenizer, response: &str) -> Result<Vec<u32>> {
        let Some(end) = &self.end else { return tokenizer.encode(response, false) };
        let mut ids = tokenizer.encode(&format!("{response}\n\n"), false)?;
        ids.push(end.id);
        Ok(ids)
    }

    /// The ids of the prompt, at most `max_prompt_tokens` (the context's length less one).
    ///
    /// With [`PromptOverflow::TruncateContext`] the context passage is cut at its end, at a whole
    /// character, until the prompt fits; instruction and framing stay whole. Errors with
    /// [`Error::ContextOverflow`], naming the tokens of the uncut prompt, when that is not allowed
    /// or not enough.
    pub fn encode_to_fit(
        &self,
        tokenizer: &Tokenizer,
        instruction: &Instruction,
        mode: PromptMode,
        overflow: PromptOverflow,
        max_prompt_tokens: usize,
    ) -> Result<Vec<u32>> {
        let ids = self.encode(tokenizer, instruction, mode)?;
        if ids.len() <= max_prompt_tokens {
            return Ok(ids);
        }
        let too_long = Error::ContextOverflow {
            prompt_tokens: ids.len(),
            context_length: max_prompt_tokens.saturating_add(1),
        };
        let Some(context) = instruction.get_context() else { return Err(too_long) };
        if overflow == PromptOverflow::Error {
            return Err(too_long);
        }
        let context_ids = tokenizer.encode(context, mode == PromptMode::Hf)?;
        let mut keep = context_ids.len();
        let mut excess = ids.len() - max_prompt_tokens;
        // Each turn keeps at least one token less; a cut may join tokens differently at its end,
        // so the count is taken anew.
        while keep > 0 {
            keep = keep.saturating_sub(excess.max(1));
            let kept = context_ids.get(..keep).unwrap_or_default();
            let mut cut = Instruction::new(&instruction.instruction);
            cut.context = Some(whole_text(tokenizer, kept)).filter(|text| !text.is_empty());
            let ids = self.encode(tokenizer, &cut, mode)?;
            if ids.len() <= max_prompt_tokens {
                return Ok(ids);
            }
            excess = ids.len() - max_prompt_tokens;
        }
        Err(too_long)
    }

    /// Where the answer lies in prompt and generated ids, as the original finds it: after the
    /// first response key, up to the first end key of the whole sequence.
    ///
    /// For [`PromptMode::Hf`]; empty where the first end key stands before the response key.
    /// `None` where the checkpoint lacks one of the two tokens or the sequence has no response
    /// key: see [`answer_in_text`].
    pub fn answer_in_ids(&self, sequence: &[u32]) -> Option<Range<usize>> {
        let (response, end) = (self.response_id()?, self.end_id()?);
        let start = sequence.iter().position(|id| *id == response)? + 1;
        let end = sequence.iter().position(|id| *id == end).unwrap_or(sequence.len());
        Some(start..end.max(start))
    }
}

impl Segment {
    /// The segment's part of the rendered string.
    pub fn text(&self) -> &str {
        match self {
            Self::Framing { text, .. } | Self::Text { text, .. } => text,
        }
    }
}

/// The text of `ids` without a character that was cut at its end.
fn whole_text(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut bytes = Vec::new();
    for id in ids {
        bytes.extend_from_slice(tokenizer.token_bytes(*id).unwrap_or_default());
    }
    match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let valid = error.utf8_error().valid_up_to();
            let whole = error.as_bytes().get(..valid).unwrap_or_default();
            String::from_utf8_lossy(whole).into_owned()
        }
    }
}

/// The answer in a decoded prompt and generation, for checkpoints without special tokens.
///
/// The original's patterns `#+\s*Response:\s*(.+?)#+\s*End`, else `#+\s*Response:\s*(.+)`, with
/// `.` matching newlines; stripped. `None` where there is no response key or nothing after it.
///
/// ```
/// use dolly_core::prompt::answer_in_text;
/// assert_eq!(answer_in_text("### Response:\nBlue.\n\n### End"), Some("Blue."));
/// assert_eq!(answer_in_text("### Response:\nBlue"), Some("Blue"));
/// assert_eq!(answer_in_text("no key"), None);
/// ```
pub fn answer_in_text(text: &str) -> Option<&str> {
    let found = |pattern: &str| {
        let pattern = regex::Regex::new(pattern).ok()?;
        pattern.captures(text)?.get(1).map(|answer| strip(answer.as_str()))
    };
    found(r"(?s)#+\s*Response:\s*(.+?)#+\s*End").or_else(|| found(r"(?s)#+\s*Response:\s*(.+)"))
}

/// Whether Python's `str.strip()` removes `c`: Unicode white space and the four separators U+001C to
/// U+001F.
pub fn is_python_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

/// `text` without blank space at its ends, as Python's `str.strip()`.
///
/// ```
/// assert_eq!(dolly_core::prompt::strip("\u{1c} a b\n"), "a b");
/// ```
pub fn strip(text: &str) -> &str {
    text.trim_matches(is_python_space)
}
