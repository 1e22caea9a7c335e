//! Model cards, written from what a manifest holds.

use std::fmt::Write;

use crate::provenance::{Record, Role, terms};

/// A card in Markdown with the front matter of the hub.
///
/// `adapter_of` is the base of an adapter, `None` for a whole model.
pub(super) fn card(record: &Record, adapter_of: Option<&str>) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = front_matter(&mut text, record, adapter_of)
        .and_then(|()| origin(&mut text, record, adapter_of))
        .and_then(|()| licences(&mut text, record))
        .and_then(|()| run(&mut text, record))
        .and_then(|()| usage(&mut text, record, adapter_of));
    text
}

/// A text as a string of JSON, YAML and Python alike, without what HTML would read.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('<', "\\u003c")
}

/// A text as the content of a table's cell or a line of a list.
fn cell(text: &str) -> String {
    let visible = |c: char| if c.is_control() { ' ' } else { c };
    let text: String = text.chars().map(visible).collect();
    text.replace('\\', "\\\\").replace('|', "\\|").replace('<', "&lt;").replace('`', "\\`")
}

fn licence_or_none(licence: &Option<String>) -> String {
    licence.as_deref().map_or_else(|| "not stated".to_owned(), cell)
}

fn front_matter(text: &mut String, record: &Record, adapter_of: Option<&str>) -> std::fmt::Result {
    let library = if adapter_of.is_some() { "peft" } else { "transformers" };
    writeln!(text, "---\nlibrary_name: {library}\npipeline_tag: text-generation")?;
    if let Some(licence) = &record.licence {
        writeln!(text, "license: {}", quoted(&licence.to_lowercase()))?;
    }
    for parent in record.parents.iter().filter(|parent| parent.role == Role::Base) {
        writeln!(text, "base_model: {}", quoted(&parent.part.name))?;
    }
    writeln!(text, "tags:\n- gpt_neox\n- dolly-rs\n---\n\n# {}\n", cell(&record.name))
}

fn origin(text: &mut String, record: &Record, adapter_of: Option<&str>) -> std::fmt::Result {
    let what = if adapter_of.is_some() { "A low-rank adapter" } else { "A GPT-NeoX model" };
    write!(text, "{what}")?;
    let names: Vec<String> =
        record.parents.iter().map(|parent| format!("**{}**", cell(&parent.part.name))).collect();
    match names.is_empty() {
        true => write!(text, ", trained from random weights")?,
        false => write!(text, " made from {}", names.join(" and "))?,
    }
    let tool = &record.tool;
    write!(text, " with {} {}", cell(&tool.name), cell(&tool.version))?;
    match &record.created {
        Some(created) => writeln!(text, " on {}.\n", cell(created)),
        None => writeln!(text, ".\n"),
    }
}

fn licences(text: &mut String, record: &Record) -> std::fmt::Result {
    writeln!(
        text,
        "## Sources and licences\n\n| what | name | licence | SHA-256 |\n|---|---|---|---|"
    )?;
    for parent in &record.parents {
        let role = if parent.role == Role::Base { "base weights" } else { "adapter" };
        let part = &parent.part;
        let licence = licence_or_none(&part.licence);
        let hash = part.files.iter().find(|file| !file.path.ends_with(".json"));
        let hash = hash.map_or("", |file| file.sha256.as_str());
        writeln!(text, "| {role} | {} | {licence} | {} |", cell(&part.name), cell(hash))?;
    }
    for set in &record.data {
        let licence = licence_or_none(&set.licence);
        let what = format!("data, {} rows", set.rows);
        let (name, hash) = (cell(&set.name), cell(&set.sha256));
        writeln!(text, "| {what} | {name} | {licence} | {hash} |")?;
    }
    writeln!(text)?;
    for set in record.data.iter().filter(|set| !set.steps.is_empty()) {
        writeln!(text, "What was done to {}:\n", cell(&set.name))?;
        set.steps.iter().try_for_each(|step| writeln!(text, "- {}", cell(step)))?;
        writeln!(text)?;
    }
    let parts = record.parents.iter().map(|one| (&one.part.name, &one.part.licence));
    for (name, licence) in parts.chain(record.data.iter().map(|set| (&set.name, &set.licence))) {
        let Some(licence) = licence else { continue };
        let (terms, name, shown) = (terms(licence), cell(name), cell(licence));
        if terms.restricts_commercial_use {
            writeln!(text, "**{name}** ({shown}) excludes or restricts commercial use.\n")?;
        }
        if terms.share_alike {
            writeln!(text, "**{name}** ({shown}) asks that adaptations come under its licence.\n")?;
        }
    }
    Ok(())
}

fn run(text: &mut String, record: &Record) -> std::fmt::Result {
    if !record.metrics.is_empty() {
        writeln!(text, "## Measured\n\n| metric | value |\n|---|---|")?;
        for (name, value) in &record.metrics {
            writeln!(text, "| {} | {value} |", cell(name))?;
        }
        writeln!(text)?;
    }
    if !record.options.is_null() {
        // Indented code: no text in it can end it, as a fence could.
        let options = serde_json::to_string_pretty(&record.options).unwrap_or_default();
        writeln!(text, "## Options of the run\n")?;
        options.lines().try_for_each(|line| writeln!(text, "    {line}"))?;
        writeln!(text)?;
    }
    Ok(())
}

fn usage(text: &mut String, record: &Record, adapter_of: Option<&str>) -> std::fmt::Result {
    let folder = quoted(&record.name);
    writeln!(text, "## Use\n\n```python\nimport dolly_rs")?;
    match adapter_of {
        None => {
            writeln!(text, "pipe = dolly_rs.pipeline({folder})")?;
            writeln!(text, "print(pipe.generate(\"Name three colours.\").text)\n```\n")?;
            writeln!(
                text,
                "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer"
            )?;
            writeln!(text, "model = AutoModelForCausalLM.from_pretrained({folder})")?;
            writeln!(text, "tokenizer = AutoTokenizer.from_pretrained({folder})\n```\n")?;
        }
        Some(base) => {
            let base = quoted(base);
            writeln!(text, "pipe = dolly_rs.pipeline({base}, adapter={folder})")?;
            writeln!(text, "print(pipe.generate(\"Name three colours.\").text)\n```\n")?;
            writeln!(text, "```python\nfrom peft import PeftModel")?;
            writeln!(text, "from transformers import AutoModelForCausalLM")?;
            writeln!(text, "base = AutoModelForCausalLM.from_pretrained({base})")?;
            writeln!(text, "model = PeftModel.from_pretrained(base, {folder})\n```\n")?;
        }
    }
    writeln!(
        text,
        "Where it came from, with hashes: `dolly_provenance.json` \
         (`dolly_rs.lineage({})`).",
        folder.replace('`', "")
    )
}
