//! `include/dolly.h`, generated from the sources of `dolly-ffi`, one section a topic.

use std::path::Path;

/// The files of `dolly-ffi/src` that make up the header, in the order of its sections.
pub const TOPICS: [&str; 15] = [
    "status",
    "error",
    "version",
    "pointers",
    "cancel",
    "loader",
    "pipeline",
    "options",
    "result",
    "generate",
    "batch",
    "stream",
    "score",
    "tokenizer",
    "buffer",
];

/// The text of `include/dolly.h` for the sources under `root`.
pub fn generate(root: &Path) -> Result<String, String> {
    let crate_dir = root.join("dolly-ffi");
    let config = cbindgen::Config::from_file(crate_dir.join("cbindgen.toml"))?;
    let mut builder = cbindgen::Builder::new().with_config(config);
    for topic in TOPICS {
        builder = builder.with_src(crate_dir.join("src").join(format!("{topic}.rs")));
    }
    let bindings = builder.generate().map_err(|error| format!("cbindgen: {error}"))?;
    let mut text = Vec::new();
    bindings.write(&mut text);
    let header = String::from_utf8(text).map_err(|error| format!("cbindgen: {error}"))?;
    check_topics(&crate_dir)?;
    with_headings(&crate_dir, &header)
}

/// Every source file that exports something must be a section.
fn check_topics(crate_dir: &Path) -> Result<(), String> {
    let directory = crate_dir.join("src");
    let entries = std::fs::read_dir(&directory).map_err(|e| format!("{directory:?}: {e}"))?;
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(topic) = name.strip_suffix(".rs") else { continue };
        if !TOPICS.contains(&topic) && !exports(crate_dir, topic)?.is_empty() {
            return Err(format!("{name} exports functions but is no section of the header"));
        }
    }
    Ok(())
}

/// Names of the functions a topic exports, in order.
fn exports(crate_dir: &Path, topic: &str) -> Result<Vec<String>, String> {
    let file = crate_dir.join("src").join(format!("{topic}.rs"));
    let source = std::fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
    let after = source.split("extern \"C\" fn dolly_").skip(1);
    let names = after.filter_map(|rest| rest.split('(').next());
    Ok(names.map(|name| format!("dolly_{name}")).collect())
}

/// Puts a heading before the first function of each topic.
fn with_headings(crate_dir: &Path, header: &str) -> Result<String, String> {
    let mut lines: Vec<String> = header.lines().map(str::to_owned).collect();
    for topic in TOPICS {
        let Some(first) = exports(crate_dir, topic)?.into_iter().next() else { continue };
        let wanted = format!("{first}(");
        let declared = |line: &String| !line.starts_with(' ') && line.contains(&wanted);
        let at = lines.iter().position(declared);
        let at = at.ok_or_else(|| format!("{first} is not in the header"))?;
        let comment = lines[..at].iter().rposition(|line| line.starts_with("/*"));
        let at = comment.ok_or_else(|| format!("{first} has no comment in the header"))?;
        lines.insert(at, String::new());
        lines.insert(at, format!("/* ---- {topic} ---- */"));
    }
    Ok(lines.join("\n") + "\n")
}

/// The declarations of all functions in a header's text, in order: `TYPE NAME(PARAMETERS)`, on one
/// line and single-spaced.
pub fn declarations(header: &str) -> Vec<String> {
    let code = without_comments(header);
    let body = code.split_once("extern \"C\" {").map_or("", |(_, body)| body);
    let lines = body.lines().filter(|line| !line.starts_with('#'));
    let code = lines.collect::<Vec<_>>().join(" ");
    let declarations = code.split(';').map(|text| text.split_whitespace().collect::<Vec<_>>());
    let declarations = declarations.map(|words| words.join(" "));
    declarations.filter(|text| text.contains('(')).collect()
}

fn without_comments(text: &str) -> String {
    let mut parts = text.split("/*");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str(part.split_once("*/").map_or("", |(_, code)| code));
    }
    out
}
