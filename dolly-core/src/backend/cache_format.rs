//! How keys and values of running sequences are held.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// Element type of the cache of keys and values.
///
/// Queries, scores and sums are f32 with each of them, and only what is kept of a token is rounded; with
/// `bf16` and a CPU that multiplies bf16, queries and the softmax are rounded to it too.
///
/// ```
/// use dolly_core::CacheFormat;
/// assert_eq!("q8_0".parse::<CacheFormat>()?, CacheFormat::Q8_0);
/// # Ok::<(), dolly_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum CacheFormat {
    /// 32-bit floats: exact, 4 bytes an element.
    F32,
    /// IEEE half precision, 2 bytes an element: within 2^-11 of the value; finite values beyond
    /// 65,504 are held as that.
    #[default]
    F16,
    /// bfloat16, 2 bytes an element: within 2^-8 of the value, over the range of f32.
    Bf16,
    /// 8-bit integers with an f32 scale for each token, head, and keys or values: within 1/254 of
    /// the largest magnitude among them.
    Q8_0,
}

impl CacheFormat {
    /// Every format.
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Bf16, Self::Q8_0];

    /// The format's name: `f32`, `f16`, `bf16` or `q8_0`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
        }
    }
}

impl fmt::Display for CacheFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for CacheFormat {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let known = Self::ALL.into_iter().find(|format| format.name().eq_ignore_ascii_case(name));
        known.ok_or_else(|| Error::option("kv_cache", name, "f32, f16, bf16 or q8_0"))
    }
}
