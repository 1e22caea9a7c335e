//! GPT-2's view of text: the pattern that cuts words, and the alphabet that spells bytes.

use regex::Regex;

/// The printable character that stands for each byte in token strings
/// (`bytes_to_unicode` in GPT-2's `encoder.py`): itself where it is printable Latin-1, else the
/// next free one from U+0100.
pub(super) const BYTE_CHARS: [char; 256] = byte_chars();

/// Code points of the alphabet end here (U+0144).
const ALPHABET_END: usize = 0x144;

/// By code point: the byte it stands for.
const CHAR_BYTES: [Option<u8>; ALPHABET_END] = char_bytes();

const fn byte_chars() -> [char; 256] {
    let mut chars = ['\0'; 256];
    let (mut byte, mut next) = (0u8, 0x100u32);
    loop {
        let printable = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        chars[byte as usize] = match printable {
            true => byte as char,
            false => match char::from_u32(next) {
                Some(c) => c,
                None => '\0',
            },
        };
        if !printable {
            next += 1;
        }
        if byte == u8::MAX {
            return chars;
        }
        byte += 1;
    }
}

const fn char_bytes() -> [Option<u8>; ALPHABET_END] {
    let mut bytes = [None; ALPHABET_END];
    let mut byte = 0;
    while byte < 256 {
        bytes[BYTE_CHARS[byte] as usize] = Some(byte as u8);
        byte += 1;
    }
    bytes
}

/// Appends what a token string stands for.
///
/// Added tokens are text; so is a vocabulary entry that is not spelled in the alphabet, as in the
/// crate's byte-level decoder.
pub(super) fn append_token_bytes(token: &str, is_added: bool, out: &mut Vec<u8>) {
    let start = out.len();
    for c in token.chars() {
        match CHAR_BYTES.get(c as usize).copied().flatten() {
            Some(byte) if !is_added => out.push(byte),
            _ => {
                out.truncate(start);
                out.extend_from_slice(token.as_bytes());
                return;
            }
        }
    }
}

/// GPT-2's pattern (`encoder.py`) but for its look-ahead, which [`split`] adds.
pub(super) fn pattern() -> Result<Regex, String> {
    Regex::new(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+")
        .map_err(|error| error.to_string())
}

/// Cuts `text` into words by
/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`.
///
/// The alternatives cover every character, so the words are the whole text. The look-ahead
/// means that a run of blanks before a word leaves its last one to the word; done by hand, the
/// rest is a regular language and takes linear time.
pub(super) fn split<'t>(pattern: &Regex, text: &'t str) -> impl Iterator<Item = &'t str> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let rest = text.get(start..).filter(|rest| !rest.is_empty())?;
        let mut end = pattern.find_at(text, start).map_or(text.len(), |found| found.end());
        let last = text.get(start..end).and_then(|word| word.chars().next_back())?;
        if end < text.len() && last.is_whitespace() && start + last.len_utf8() < end {
            end -= last.len_utf8();
        }
        let word = rest.get(..end - start)?;
        start = end;
        Some(word)
    })
}
