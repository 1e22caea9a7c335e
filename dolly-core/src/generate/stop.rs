//! Texts that end an answer, and the blank space around it, decided while the answer streams.
//!
//! Both filters give out text as early as it is certain, and the same text however it was cut into
//! pieces.

use crate::error::{Error, Result, try_vec};
use crate::prompt::is_python_space;

/// What [`StopStrings::push`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StopOutcome {
    /// Text that is certain to be part of the answer.
    pub emit: String,
    /// A stop text is complete: the answer ends with `emit`.
    pub stopped: bool,
    /// Index of the stop text that ended the answer.
    pub matched: Option<usize>,
}

/// Holds back what may become a stop text, and ends the answer before the one that is complete
/// first.
///
/// Of stop texts that end at the same byte the longest counts. (So of `"abcd"` and `"bc"` the
/// latter ends the text `"abcd"`: no token has to be generated after `"abc"`.)
///
/// ```
/// use dolly_core::generate::stop::StopStrings;
/// let mut stop = StopStrings::new(&["\n\n".to_owned()])?;
/// assert_eq!(stop.push("one\n").emit, "one");
/// assert_eq!(stop.push("two\n").emit, "\ntwo");
/// let end = stop.push("\nthree");
/// assert!(end.stopped && end.emit.is_empty());
/// # Ok::<(), dolly_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct StopStrings {
    stops: Vec<Matcher>,
    /// Text that was pushed and not given out; a prefix of some stop text.
    held: String,
    stopped: Option<usize>,
}

/// A Knuth-Morris-Pratt automaton: `matched` bytes of `text` are the end of what was pushed.
#[derive(Debug, Clone)]
struct Matcher {
    text: Vec<u8>,
    /// `borders[i]`: length of the longest proper prefix of `text[..=i]` that is also its suffix.
    borders: Vec<usize>,
    matched: usize,
}

impl StopStrings {
    /// Stops at any of `stops`; with none, all text passes at once.
    ///
    /// Fails with [`Error::InvalidOption`] on an empty text, which would end every answer.
    pub fn new(stops: &[String]) -> Result<Self> {
        if stops.iter().any(String::is_empty) {
            return Err(Error::option("stop", "\"\"", "texts that are not empty"));
        }
        let mut matchers = try_vec(stops.len(), "stop texts")?;
        for stop in stops {
            matchers.push(Matcher::new(stop)?);
        }
        Ok(Self { stops: matchers, held: String::new(), stopped: None })
    }

    /// Takes the next piece of the answer. After a stop, every piece is dropped.
    pub fn push(&mut self, piece: &str) -> StopOutcome {
        if let Some(index) = self.stopped {
            return StopOutcome { emit: String::new(), stopped: true, matched: Some(index) };
        }
        if self.stops.is_empty() {
            return StopOutcome { emit: piece.to_owned(), ..StopOutcome::default() };
        }
        for (at, byte) in piece.bytes().enumerate() {
            if let Some((index, len)) = self.advance(byte) {
                self.stopped = Some(index);
                let mut emit = std::mem::take(&mut self.held);
                emit.push_str(piece);
                // What follows the pushed byte, and the stop text that ends with it.
                let after = piece.len() - (at + 1);
                emit.truncate(emit.len().saturating_sub(after + len));
                return StopOutcome { emit, stopped: true, matched: Some(index) };
            }
        }
        self.held.push_str(piece);
        // A partial match starts with a stop text's first byte, which starts a character.
        let pending = self.stops.iter().map(|stop| stop.matched).max().unwrap_or(0);
        let held = self.held.split_off(self.held.len().saturating_sub(pending));
        let emit = std::mem::replace(&mut self.held, held);
        StopOutcome { emit, ..StopOutcome::default() }
    }

    /// Ends the answer: gives out what was held back, nothing after a stop.
    pub fn finish(&mut self) -> String {
        self.stops.iter_mut().for_each(|stop| stop.matched = 0);
        std::mem::take(&mut self.held)
    }

    /// Index and length of the longest stop text that `byte` completes.
    fn advance(&mut self, byte: u8) -> Option<(usize, usize)> {
        let mut complete: Option<(usize, usize)> = None;
        for (index, stop) in self.stops.iter_mut().enumerate() {
            let len = stop.text.len();
            if stop.advance(byte) && complete.is_none_or(|(_, longest)| longest < len) {
                complete = Some((index, len));
            }
        }
        complete
    }
}

impl Matcher {
    fn new(text: &str) -> Result<Self> {
        let mut bytes = try_vec(text.len(), "stop text")?;
        bytes.extend_from_slice(text.as_bytes());
        let borders = try_vec(text.len(), "stop text")?;
        let mut matcher = Self { text: bytes, borders, matched: 0 };
        // The border of each prefix is what the automaton of the shorter ones has matched.
        matcher.borders.push(0);
        for at in 1..text.len() {
            let byte = matcher.text.get(at).copied().unwrap_or_default();
            matcher.advance(byte);
            matcher.borders.push(matcher.matched);
        }
        matcher.matched = 0;
        Ok(matcher)
    }

    /// Whether the whole text is matched after `byte`; not to be advanced further then.
    fn advance(&mut self, byte: u8) -> bool {
        while self.matched > 0 && self.text.get(self.matched) != Some(&byte) {
            self.matched = self.borders.get(self.matched - 1).copied().unwrap_or(0);
        }
        if self.text.get(self.matched) == Some(&byte) {
            self.matched += 1;
        }
        self.matched == self.text.len()
    }
}

/// Strips a stream: the pieces given out make up [`strip`](crate::prompt::strip) of the pieces taken in.
///
/// ```
/// use dolly_core::generate::stop::Trim;
/// let mut trim = Trim::new();
/// assert_eq!(trim.push("\n A "), "A");
/// assert_eq!(trim.push("b "), " b");
/// ```
#[derive(Debug, Clone, Default)]
pub struct Trim {
    started: bool,
    /// Blank space that is given out if anything follows it.
    held: String,
}

impl Trim {
    /// A filter that has seen no text.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a piece and gives out what is certain; what is held back when the text ends was
    /// trailing blank space.
    pub fn push(&mut self, piece: &str) -> String {
        let piece = match self.started {
            true => piece,
            false => piece.trim_start_matches(is_python_space),
        };
        let body = piece.trim_end_matches(is_python_space);
        let blank = piece.get(body.len()..).unwrap_or_default();
        if body.is_empty() {
            self.held.push_str(blank);
            return String::new();
        }
        self.started = true;
        let mut emit = std::mem::replace(&mut self.held, blank.to_owned());
        emit.push_str(body);
        emit
    }
}

#[cfg(test)]
mod tests;
