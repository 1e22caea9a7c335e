//! Text handed out to C: pointer, length, and a NUL behind it for the convenience of `printf`.

use std::ffi::c_char;

/// UTF-8 followed by a NUL byte that is not part of its length.
#[derive(Debug)]
pub(crate) struct Text(String);

impl Text {
    pub fn new(mut text: String) -> Self {
        text.push('\0');
        Self(text)
    }

    pub fn as_ptr(&self) -> *const c_char {
        self.0.as_ptr().cast()
    }

    /// Bytes, the NUL not counted.
    pub fn len(&self) -> usize {
        self.0.len() - 1
    }
}

impl Default for Text {
    fn default() -> Self {
        Self::new(String::new())
    }
}
