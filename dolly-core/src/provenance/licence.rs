//! Licences: what is known of their terms.
//!
//! The table holds those that weights and data of this family come under. Terms are those of the
//! licences' texts as far as a table can have them: this is help, no legal advice.

/// What a licence asks of those who pass on what was made with the licensed work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Terms {
    /// Commercial use is excluded or restricted.
    pub restricts_commercial_use: bool,
    /// Adaptations must come under the same (or a compatible) licence.
    pub share_alike: bool,
    /// Adaptations may not be passed on.
    pub no_derivatives: bool,
    /// Nothing is known of it.
    pub unknown: bool,
}

const FREE: Terms = Terms {
    restricts_commercial_use: false,
    share_alike: false,
    no_derivatives: false,
    unknown: false,
};
const SHARE: Terms = Terms { share_alike: true, ..FREE };
const RESTRICTED: Terms = Terms { restricts_commercial_use: true, ..FREE };
const UNKNOWN: Terms = Terms { unknown: true, ..FREE };

/// Licences by their SPDX identifiers; those of Creative Commons are read from their parts.
const SPDX: [(&str, Terms); 33] = [
    ("0BSD", FREE),
    ("AGPL-3.0-only", SHARE),
    ("AGPL-3.0-or-later", SHARE),
    ("Apache-2.0", FREE),
    ("BSD-2-Clause", FREE),
    ("BSD-3-Clause", FREE),
    ("BSL-1.0", FREE),
    ("C-UDA-1.0", RESTRICTED),
    ("CC-PDDC", FREE),
    ("CC0-1.0", FREE),
    ("CDLA-Permissive-1.0", FREE),
    ("CDLA-Permissive-2.0", FREE),
    ("CDLA-Sharing-1.0", SHARE),
    ("EPL-2.0", SHARE),
    ("GFDL-1.2-or-later", SHARE),
    ("GFDL-1.3-or-later", SHARE),
    ("GPL-2.0-only", SHARE),
    ("GPL-2.0-or-later", SHARE),
    ("GPL-3.0-only", SHARE),
    ("GPL-3.0-or-later", SHARE),
    ("ISC", FREE),
    ("LGPL-2.1-only", SHARE),
    ("LGPL-3.0-only", SHARE),
    ("LGPL-3.0-or-later", SHARE),
    ("MIT", FREE),
    ("MIT-0", FREE),
    ("MPL-2.0", SHARE),
    ("ODC-By-1.0", FREE),
    ("ODbL-1.0", SHARE),
    ("PDDL-1.0", FREE),
    ("Unlicense", FREE),
    ("WTFPL", FREE),
    ("Zlib", FREE),
];

/// Names that are in use and no SPDX identifiers; a name that starts with one has its terms.
const OTHERS: [(&str, Terms); 15] = [
    ("AGPL-3.0", SHARE),
    ("BIGCODE-OPENRAIL", RESTRICTED),
    ("BIGSCIENCE-", RESTRICTED),
    ("CREATIVEML-OPENRAIL", RESTRICTED),
    ("GEMMA", RESTRICTED),
    ("GPL-2.0", SHARE),
    ("GPL-3.0", SHARE),
    ("LGPL-3.0", SHARE),
    ("LLAMA", RESTRICTED),
    ("NON-COMMERCIAL", RESTRICTED),
    ("NONCOMMERCIAL", RESTRICTED),
    ("OPENRAIL", RESTRICTED),
    ("PUBLIC-DOMAIN", FREE),
    ("RESEARCH", RESTRICTED),
    ("WORDNET", FREE),
];

/// The terms of a licence: an SPDX expression, or a name that is in common use.
///
/// Of licences joined by `OR` the freest counts, of those joined by `AND` all do; brackets are
/// read as if every licence in the expression applied.
///
/// ```
/// use dolly_core::provenance::terms;
/// assert!(terms("CC-BY-SA-3.0").share_alike);
/// assert!(terms("cc by-nc 4.0").restricts_commercial_use);
/// assert!(!terms("GPL-3.0-only OR MIT").share_alike);
/// assert!(terms("whatever").unknown);
/// ```
pub fn terms(licence: &str) -> Terms {
    let bracketed = licence.contains(['(', ')']);
    let plain = licence.replace(['(', ')'], " ");
    let all = |part: &str| part.split(" AND ").map(one).reduce(join).unwrap_or(UNKNOWN);
    let mut choices = plain.split(" OR ").map(all);
    let first = choices.next().unwrap_or(UNKNOWN);
    match bracketed {
        true => choices.fold(first, join),
        false => choices.fold(first, |a, b| if weight(b) < weight(a) { b } else { a }),
    }
}

/// The expression as SPDX spells it, `None` where a part of it is not in the table.
pub(super) fn spdx(licence: &str) -> Option<String> {
    if licence.contains(['(', ')']) {
        return None;
    }
    let all = |part: &str| {
        let parts: Option<Vec<String>> = part.split(" AND ").map(identifier).collect();
        Some(parts?.join(" AND "))
    };
    let choices: Option<Vec<String>> = licence.split(" OR ").map(all).collect();
    Some(choices?.join(" OR "))
}

/// Terms of both together.
fn join(a: Terms, b: Terms) -> Terms {
    Terms {
        restricts_commercial_use: a.restricts_commercial_use || b.restricts_commercial_use,
        share_alike: a.share_alike || b.share_alike,
        no_derivatives: a.no_derivatives || b.no_derivatives,
        unknown: a.unknown || b.unknown,
    }
}

/// How much the terms ask, for choosing among licences.
fn weight(terms: Terms) -> u32 {
    8 * u32::from(terms.unknown)
        + 4 * u32::from(terms.no_derivatives)
        + 2 * u32::from(terms.restricts_commercial_use)
        + u32::from(terms.share_alike)
}

/// Upper case, one hyphen between words, no `WITH` exception.
fn normal(name: &str) -> String {
    let name = name.split(" WITH ").next().unwrap_or(name);
    let words: Vec<&str> = name.split([' ', '-', '_', '\t']).filter(|w| !w.is_empty()).collect();
    words.join("-").to_uppercase()
}

fn one(name: &str) -> Terms {
    let name = normal(name);
    if let Some(terms) = creative_commons(&name) {
        return terms;
    }
    if let Some((_, terms)) = SPDX.iter().find(|(id, _)| id.to_uppercase() == name) {
        return *terms;
    }
    OTHERS.iter().find(|(start, _)| name.starts_with(start)).map_or(UNKNOWN, |(_, terms)| *terms)
}

/// The terms of `CC-BY`, `-NC`, `-SA`, `-ND` in any combination and version.
fn creative_commons(normal: &str) -> Option<Terms> {
    let parts = normal.strip_prefix("CC-BY")?;
    let mut terms = FREE;
    for part in parts.split('-').filter(|part| !part.is_empty()) {
        match part {
            "NC" => terms.restricts_commercial_use = true,
            "SA" => terms.share_alike = true,
            "ND" => terms.no_derivatives = true,
            // A version, then perhaps a jurisdiction: neither changes the terms.
            _ if part.starts_with(|c: char| c.is_ascii_digit()) => break,
            _ => return None,
        }
    }
    Some(terms)
}

fn identifier(name: &str) -> Option<String> {
    if name.contains(" WITH ") {
        return None;
    }
    let normal = normal(name);
    if let Some((id, _)) = SPDX.iter().find(|(id, _)| id.to_uppercase() == normal) {
        return Some((*id).to_owned());
    }
    const KINDS: [&str; 6] = ["", "-NC", "-SA", "-ND", "-NC-SA", "-NC-ND"];
    const VERSIONS: [&str; 5] = ["1.0", "2.0", "2.5", "3.0", "4.0"];
    let (kind, version) = normal.strip_prefix("CC-BY")?.rsplit_once('-')?;
    (KINDS.contains(&kind) && VERSIONS.contains(&version)).then_some(normal)
}
