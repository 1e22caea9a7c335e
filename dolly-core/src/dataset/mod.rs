//! Instruction data: reading, checking, describing, splitting and extending it.

use serde::{Deserialize, Serialize};

/// Where a set of rows came from and what was done to it: carried along to what is trained on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SetInfo {
    /// Name of the set, by default its file's name.
    pub name: String,
    /// Where it was had from: an address, a citation.
    pub source: Option<String>,
    /// Its licence, as an SPDX expression where one exists.
    pub licence: Option<String>,
    /// SHA-256 of the file's bytes, in hexadecimal.
    pub sha256: String,
    /// Rows that are left of it.
    pub rows: u64,
    /// Filters, cleaning and splits in the order they were applied, in words.
    pub steps: Vec<String>,
}
