//! Drafts of the next tokens, looked up in what was read and written so far.
//!
//! Answers often quote their prompt. The tokens that followed the last few tokens where these
//! stood before are a guess at what comes next (Saxena, "Prompt Lookup Decoding", 2023), and one
//! step runs the guess in full: it reads the weights once for several tokens. Each row's logits are
//! given to the sampler only if the tokens before it are those it drew, so the answer is what it
//! would be without drafts, bit for bit.

use crate::error::{Result, try_vec};

/// Longest run of tokens that is looked up.
const LONGEST: usize = 3;
/// Shortest run: single tokens stand everywhere, and what follows them foretells little.
const SHORTEST: usize = 2;
/// Length of a request's first draft, where so many are allowed.
const FIRST: usize = 4;
/// After drafts without a hit, 1, 3, 7 and from then on 15 steps go by without one.
const LONGEST_PAUSE: u32 = 4;

/// Drafts for one answer.
pub(super) struct Drafter {
    /// Most tokens of a draft.
    most: usize,
    /// Tokens of the next draft: more while drafts hold, fewer when they do not.
    length: usize,
    /// Drafts in a row of which no token held.
    misses: u32,
    /// Steps to go by without a draft.
    pause: u32,
    /// Prompt and answer; a draft stands behind them while it is made.
    history: Vec<u32>,
    draft: Vec<u32>,
    /// Tokens of the answer that the step with the draft gave: one, and one per draft that held.
    given: usize,
    /// Tokens drafted so far.
    pub drafted: usize,
    /// Of them, those that were right and whose row was used.
    pub accepted: usize,
}

impl Drafter {
    /// Drafts of at most `most` tokens for a sequence of at most `tokens`.
    pub fn new(most: usize, tokens: usize) -> Result<Self> {
        Ok(Self {
            most,
            length: most.min(FIRST),
            misses: 0,
            pause: 0,
            history: try_vec(tokens.saturating_add(most), "the ids of a sequence")?,
            draft: try_vec(most, "a draft")?,
            given: 0,
            drafted: 0,
            accepted: 0,
        })
    }

    /// Notes that the step gave a token.
    pub fn note_token(&mut self) {
        self.given += 1;
        self.accepted += usize::from(self.given > 1);
    }

    /// A guess of at most `room` tokens at what follows prompt and answer, perhaps of none.
    pub fn draft(&mut self, prompt: &[u32], answer: &[u32], room: usize) -> &[u32] {
        self.learn();
        self.draft.clear();
        if self.pause > 0 {
            self.pause -= 1;
            return &self.draft;
        }
        let known = self.history.len();
        self.history.extend(prompt.iter().chain(answer).skip(known));
        let end = self.history.len();
        if let Some(from) = follower(&self.history) {
            for at in from..from + self.length.min(room) {
                // A repetition closer than the draft is long goes on in the draft itself.
                let Some(id) = self.history.get(at).copied() else { break };
                self.history.push(id);
                self.draft.push(id);
            }
        }
        self.history.truncate(end);
        self.drafted += self.draft.len();
        &self.draft
    }

    /// Fits the length of drafts to how much of the last one held.
    fn learn(&mut self) {
        let (drafted, held) = (self.draft.len(), self.given.saturating_sub(1));
        self.given = 0;
        if drafted == 0 {
            return;
        }
        if held == 0 {
            self.misses = LONGEST_PAUSE.min(self.misses + 1);
            self.pause = (1 << self.misses) - 1;
            self.length = (self.length / 2).max(1);
            return;
        }
        self.misses = 0;
        let length = if held == drafted { 2 * drafted } else { held + 1 };
        self.length = length.min(self.most);
    }
}

/// The index after the most recent earlier occurrence of the longest run that ends `history`.
fn follower(history: &[u32]) -> Option<usize> {
    let end = history.len();
    let (mut longest, mut found) = (SHORTEST - 1, None);
    for after in (SHORTEST..end).rev() {
        let pairs = history[..after].iter().rev().zip(history.iter().rev());
        let run = pairs.take(LONGEST).take_while(|(a, b)| a == b).count();
        if run > longest {
            (longest, found) = (run, Some(after));
        }
        if run == LONGEST {
            break;
        }
    }
    found
}

#[cfg(test)]
mod tests;
