//! A chain as a CycloneDX 1.6 bill of materials for machine learning (ML-BOM).
//!
//! The form is that of the specification's JSON schema `bom-1.6`: models are components of type
//! `machine-learning-model` with a model card, data sets of type `data`, files nested below them.

use serde_json::{Value, json};

use super::licence::spdx;
use super::{FileHash, Kind, Lineage, Node, Parent, Part};
use crate::dataset::SetInfo;

impl Lineage {
    /// The chain as a CycloneDX 1.6 document, the result as its subject.
    ///
    /// The same chain gives the same document: its serial number comes from the manifest's hash,
    /// its time is that of the manifest.
    pub fn cyclonedx(&self) -> Value {
        let Contents { subject, components, dependencies } = self.contents();
        let mut metadata = json!({
            "tools": {"components": [{
                "type": "library",
                "name": env!("CARGO_PKG_NAME"),
                "version": env!("CARGO_PKG_VERSION"),
            }]},
            "component": subject,
        });
        if let Some(created) = self.nodes.first().and_then(|n| n.record.created.as_deref()) {
            metadata["timestamp"] = created.into();
        }
        let mut bom = json!({
            "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "version": 1,
            "metadata": metadata,
            "components": components,
            "dependencies": dependencies,
        });
        if let Some(serial) = serial_number(&self.manifest) {
            bom["serialNumber"] = serial.into();
        }
        bom
    }

    /// The result, what lies beside it, and what it depends on.
    fn contents(&self) -> Contents {
        let mut refs = Refs::default();
        let Some((node, older)) = self.nodes.split_first() else { return Contents::default() };
        let name = model_ref(node, &mut refs);
        let (own, needed) = parts(node, &mut refs);
        let mut subject = model(node, &name, &own);
        let (mut ancestors, mut components) = (Vec::new(), Vec::new());
        for node in older {
            let name = model_ref(node, &mut refs);
            let (parts, _) = parts(node, &mut refs);
            ancestors.push(model(node, &name, &parts));
            components.extend(parts.into_iter().map(|part| part.component));
        }
        let unrecorded = node.record.parents.iter().filter(|one| one.manifest.is_none());
        ancestors.extend(unrecorded.map(|one| base(one, &refs.fresh(&one.part.name))));
        if !ancestors.is_empty() {
            subject["pedigree"] = json!({"ancestors": ancestors});
        }
        components.extend(own.into_iter().map(|part| part.component));
        let dependencies = vec![json!({"ref": name, "dependsOn": needed})];
        Contents { subject, components, dependencies }
    }
}

/// What a document lists.
#[derive(Default)]
struct Contents {
    subject: Value,
    components: Vec<Value>,
    dependencies: Vec<Value>,
}

/// References within the document, each given once.
#[derive(Default)]
struct Refs(std::collections::HashSet<String>);

impl Refs {
    fn fresh(&mut self, name: &str) -> String {
        let mut reference = name.to_owned();
        let mut number = 1;
        while !self.0.insert(reference.clone()) {
            number += 1;
            reference = format!("{name}#{number}");
        }
        reference
    }
}

/// A component beside a model, and whether it is data.
struct Beside {
    reference: String,
    is_data: bool,
    component: Value,
}

fn model_ref(node: &Node, refs: &mut Refs) -> String {
    refs.fresh(&format!("model:{}", node.record.name))
}

/// The data sets and the tokenizer of a model, and the references to them.
fn parts(node: &Node, refs: &mut Refs) -> (Vec<Beside>, Vec<String>) {
    let mut parts = Vec::new();
    for set in &node.record.data {
        let reference = refs.fresh(&format!("data:{}", set.name));
        let component = data(set, &reference);
        parts.push(Beside { reference, is_data: true, component });
    }
    if let Some(tokenizer) = &node.record.tokenizer {
        let reference = refs.fresh(&format!("tokenizer:{}", tokenizer.name));
        let component = part(tokenizer, "data", &reference);
        parts.push(Beside { reference, is_data: false, component });
    }
    let needed = parts.iter().map(|part| part.reference.clone()).collect();
    (parts, needed)
}

fn model(node: &Node, reference: &str, parts: &[Beside]) -> Value {
    let record = &node.record;
    let data: Vec<Value> = parts
        .iter()
        .filter(|part| part.is_data)
        .map(|part| json!({"ref": part.reference}))
        .collect();
    let metrics: Vec<Value> = record
        .metrics
        .iter()
        .map(|(name, value)| json!({"type": name, "value": value.to_string()}))
        .collect();
    let adapter = record.kind == Kind::Adapter;
    let mut properties = vec![
        property("dolly:kind", if adapter { "adapter" } else { "model" }),
        property("dolly:tool", &format!("{} {}", record.tool.name, record.tool.version)),
    ];
    if !record.options.is_null() {
        properties.push(property("dolly:options", &record.options.to_string()));
    }
    let mut component = json!({
        "type": "machine-learning-model",
        "bom-ref": reference,
        "name": record.name,
        "modelCard": {
            "modelParameters": {
                "approach": {"type": "supervised"},
                "task": "text-generation",
                "architectureFamily": "transformer",
                "modelArchitecture": "GPTNeoXForCausalLM",
                "datasets": data,
            },
            "quantitativeAnalysis": {"performanceMetrics": metrics},
        },
        "properties": properties,
    });
    with_licence(&mut component, record.licence.as_deref());
    with_files(&mut component, &record.files, reference);
    component
}

/// A parent that has no manifest of its own.
fn base(parent: &Parent, reference: &str) -> Value {
    part(&parent.part, "machine-learning-model", reference)
}

fn part(part: &Part, kind: &str, reference: &str) -> Value {
    let mut component = json!({"type": kind, "bom-ref": reference, "name": part.name});
    with_licence(&mut component, part.licence.as_deref());
    with_files(&mut component, &part.files, reference);
    if let Some(source) = &part.source {
        component["properties"] = json!([property("dolly:source", source)]);
    }
    component
}

fn data(set: &SetInfo, reference: &str) -> Value {
    let mut properties = vec![property("dolly:rows", &set.rows.to_string())];
    if let Some(source) = &set.source {
        properties.push(property("dolly:source", source));
    }
    properties.extend(set.steps.iter().map(|step| property("dolly:step", step)));
    let mut component = json!({
        "type": "data",
        "bom-ref": reference,
        "name": set.name,
        "data": [{"type": "dataset", "name": set.name}],
        "properties": properties,
    });
    if let Some(hash) = sha256(&set.sha256) {
        component["hashes"] = json!([hash]);
    }
    with_licence(&mut component, set.licence.as_deref());
    component
}

fn property(name: &str, value: &str) -> Value {
    json!({"name": name, "value": value})
}

fn with_licence(component: &mut Value, licence: Option<&str>) {
    let Some(licence) = licence.filter(|licence| !licence.is_empty()) else { return };
    component["licenses"] = match spdx(licence) {
        Some(expression) if expression.contains(' ') => json!([{"expression": expression}]),
        Some(id) => json!([{"license": {"id": id}}]),
        None => json!([{"license": {"name": licence}}]),
    };
}

fn with_files(component: &mut Value, files: &[FileHash], reference: &str) {
    let one = |(number, file): (usize, &FileHash)| {
        let mut entry = json!({
            "type": "file",
            "bom-ref": format!("{reference}/file/{number}"),
            "name": file.path,
            "properties": [property("dolly:bytes", &file.bytes.to_string())],
        });
        if let Some(hash) = sha256(&file.sha256) {
            entry["hashes"] = json!([hash]);
        }
        entry
    };
    if !files.is_empty() {
        component["components"] = files.iter().enumerate().map(one).collect();
    }
}

/// A hash as the schema has it; `None` for a text that is none.
fn sha256(text: &str) -> Option<Value> {
    let valid = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    valid.then(|| json!({"alg": "SHA-256", "content": text}))
}

/// A UUID of version 8 (RFC 9562: made as one likes) from the start of a hash.
fn serial_number(sha256: &str) -> Option<String> {
    let part = |from: usize, to: usize| sha256.get(from..to);
    let (a, b, c, d, e) = (part(0, 8)?, part(8, 12)?, part(13, 16)?, part(17, 20)?, part(20, 32)?);
    Some(format!("urn:uuid:{a}-{b}-8{c}-8{d}-{e}"))
}
