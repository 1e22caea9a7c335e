//! Finished models, their manifests and the chain back.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use dolly_core::provenance::{
    FILE, Kind, Lineage, Manifest, Role, WarningKind, lineage, terms, timestamp,
};
use dolly_core::source::{SourceOptions, resolve};
use dolly_core::train::LoraConfig;
use dolly_core::train::result::{
    AdapterToWrite, ModelToWrite, SHARD_BYTES, write_adapter_result, write_model,
};
use dolly_core::weights::{Checkpoint, TensorReader, TensorToWrite, Values};
use dolly_core::{Config, Error, Pipeline, WeightFormat, merge_adapter};
use serde_json::{Value, json};
use support::{golden, goldens, largest_difference, parity_model, tiny_tokenizer};

/// Kept below target/ for `check_results.py`.
fn kept(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("results").join(name);
    let _ = std::fs::remove_dir_all(&directory);
    directory
}

/// Golden configuration `name`, written anew.
struct Again {
    directory: tempfile::TempDir,
    manifest: Manifest,
}

impl Again {
    fn new(name: &str) -> Self {
        let directory = parity_model(name);
        let mut manifest = Manifest::new(format!("again-{name}"), Kind::Model);
        manifest.record.licence = Some("CC-BY-SA-3.0".into());
        manifest.record.metrics.insert("eval_loss".into(), 1.25);
        manifest.record.options = json!({"epochs": 2, "note": "a | b `c`\n```\n---"});
        manifest.set_tokenizer("tiny", tiny_tokenizer().as_bytes());
        manifest.record.data = serde_json::from_value(json!([{
            "name": "rows.jsonl", "source": "https://example.org/rows", "licence": "CC-BY-SA-3.0",
            "sha256": "2df9083338b4abd6bceb5635764dab5d833b393b55759dffb0959b6fcbf794ec",
            "rows": 15011, "steps": ["dropped 3 rows longer than 2048 tokens", "98 % for training"],
        }]))
        .unwrap();
        Self { directory, manifest }
    }

    fn write(&self, out: &Path, format: WeightFormat, shard_bytes: u64) -> dolly_core::Result<()> {
        let files = resolve(self.directory.path().to_str().unwrap(), &SourceOptions::default())?;
        let checkpoint = Checkpoint::open(&files)?;
        let config = Config::from_json(&self.directory.path().join("config.json"))?;
        let names: Vec<String> = config.tensors()?.into_iter().map(|spec| spec.name).collect();
        let readers: Vec<TensorReader<'_>> =
            names.iter().rev().map(|name| checkpoint.reader(name).unwrap()).collect();
        let tensors: Vec<TensorToWrite<'_>> = readers
            .iter()
            .map(|r| TensorToWrite { name: &r.info().name, shape: &r.info().shape, source: r })
            .collect();
        let tokenizer = tiny_tokenizer();
        let model = ModelToWrite {
            config: &config,
            tensors: &tensors,
            format,
            tokenizer: tokenizer.as_bytes(),
            manifest: &self.manifest,
            shard_bytes,
        };
        write_model(out, &model)
    }
}

fn load(directory: &Path) -> Pipeline {
    Pipeline::builder(directory.to_str().unwrap()).build().unwrap()
}

#[test]
fn written_models_load_with_the_same_logits() {
    for (name, bound) in [
        ("standard", 0.0),
        ("tied", 0.0),
        ("rope_linear", 0.0),
        ("act_gelu_new", 0.0),
        ("rotary_half_base_5000", 0.0),
        ("no_attention_bias", 0.0),
        ("sequential", 0.0),
    ] {
        let (again, out) = (Again::new(name), kept(name));
        again.write(&out, WeightFormat::F32, SHARD_BYTES).unwrap();
        let (pipe, before) = (load(&out), load(again.directory.path()));
        assert_eq!(pipe.config(), before.config(), "{name}");
        for golden in goldens(name) {
            let logits = pipe.logits(&golden.ids).unwrap();
            let same = before.logits(&golden.ids).unwrap();
            assert!(largest_difference(&logits, &same) <= bound, "{name}");
            assert!(largest_difference(&logits, &golden.logits) <= 1e-4, "{name}");
        }
        // For the check with transformers.
        let golden = support::golden().join("parity").join(name).join("golden.safetensors");
        std::fs::copy(golden, out.join("golden.safetensors")).unwrap();
    }
}

#[test]
fn shards_and_types_load_and_leave_nothing_behind() {
    let (again, out) = (Again::new("standard"), kept("sharded_bf16"));
    let names = || {
        let entries = std::fs::read_dir(&out).unwrap().flatten();
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name.starts_with("model")).collect();
        names.sort();
        names
    };
    let ids = &goldens("standard")[2].ids;
    let exact = load(again.directory.path()).logits(ids).unwrap();
    // Bounds of the root of the mean square, as a share of the logits', for each type's rounding.
    for (shard_bytes, count, format, bound) in [
        (40_000, 5, WeightFormat::F32, 0.0),
        (u64::MAX, 1, WeightFormat::F16, 2e-3),
        (30_000, 4, WeightFormat::Bf16, 2e-2),
    ] {
        again.write(&out, format, shard_bytes).unwrap();
        assert_eq!(names().len(), count, "{:?}", names());
        let pipe = load(&out);
        assert_eq!(pipe.weight_format(), format);
        let pipe = Pipeline::builder(out.to_str().unwrap()).weights(WeightFormat::F32);
        let logits = pipe.build().unwrap().logits(ids).unwrap();
        let error: f32 = logits.iter().zip(&exact).map(|(a, b)| (a - b).powi(2)).sum();
        let spread: f32 = exact.iter().map(|x| x * x).sum();
        let difference = (error / spread).sqrt();
        assert!(difference <= bound, "{format}: {difference}");
        assert!(lineage(&out).unwrap().warnings.iter().all(|w| w.kind != WarningKind::MissingFile));
    }
    let golden = golden().join("parity/standard/golden.safetensors");
    std::fs::copy(golden, out.join("golden.safetensors")).unwrap();
}

#[test]
fn tensors_must_be_those_of_the_configuration() {
    let again = Again::new("standard");
    let config = Config::from_json(&again.directory.path().join("config.json")).unwrap();
    let specs = config.tensors().unwrap();
    let values: Vec<Vec<f32>> =
        specs.iter().map(|spec| vec![0.0; spec.shape.iter().product()]).collect();
    let sources: Vec<Values<'_>> = specs
        .iter()
        .zip(&values)
        .map(|(spec, values)| Values::of_tensor(&spec.name, &spec.shape, values).unwrap())
        .collect();
    let all: Vec<TensorToWrite<'_>> = specs
        .iter()
        .zip(&sources)
        .map(|(spec, source)| TensorToWrite { name: &spec.name, shape: &spec.shape, source })
        .collect();
    let out = tempfile::tempdir().unwrap();
    let try_with = |tensors: &[TensorToWrite<'_>], format, tokenizer: &[u8]| {
        let manifest = &again.manifest;
        let shard_bytes = SHARD_BYTES;
        let config = &config;
        let model = ModelToWrite { config, tensors, format, tokenizer, manifest, shard_bytes };
        write_model(&out.path().join("out"), &model).map_err(|error| error.to_string())
    };
    let tokenizer = tiny_tokenizer();
    let error = try_with(&all[1..], WeightFormat::F32, tokenizer.as_bytes()).unwrap_err();
    assert!(error.contains("embed_in.weight\" is missing"), "{error}");
    let mut more = all.clone();
    more.push(TensorToWrite { name: "extra", ..all[0] });
    let error = try_with(&more, WeightFormat::F32, tokenizer.as_bytes()).unwrap_err();
    assert!(error.contains("\"extra\""), "{error}");
    let mut other = all.clone();
    other[0].shape = &[95, 32];
    let error = try_with(&other, WeightFormat::F32, tokenizer.as_bytes()).unwrap_err();
    assert!(error.contains("[95, 32]") && error.contains("[96, 32]"), "{error}");
    assert!(try_with(&all, WeightFormat::Q8_0, tokenizer.as_bytes()).is_err());
    assert!(try_with(&all, WeightFormat::F32, b"{}").is_err());
    assert!(!out.path().join("out").exists(), "nothing is written before everything is checked");
    try_with(&all, WeightFormat::F32, tokenizer.as_bytes()).unwrap();
}

/// A chain of three: base, fine-tuned, merged with an adapter.
fn three() -> (PathBuf, Lineage) {
    let (base, mut tuned) = (Again::new("standard"), Again::new("standard"));
    let root = kept("chain");
    base.write(&root.join("base"), WeightFormat::F32, SHARD_BYTES).unwrap();
    let files =
        |name: &str| resolve(root.join(name).to_str().unwrap(), &SourceOptions::default()).unwrap();
    tuned.manifest.record.name = "tuned".into();
    tuned.manifest.record.licence = None;
    tuned.manifest.record.created = Some(timestamp(UNIX_EPOCH));
    tuned.manifest.add_base("the-base", &files("base")).unwrap();
    tuned.write(&root.join("tuned"), WeightFormat::F32, SHARD_BYTES).unwrap();
    let adapter = golden().join("adapters/defaults");
    let merged = root.join("merged");
    merge_adapter("tuned", &files("tuned"), &adapter, &merged, WeightFormat::F32).unwrap();
    let chain = lineage(&merged).unwrap();
    let bom = serde_json::to_string_pretty(&chain.cyclonedx()).unwrap();
    std::fs::write(merged.join("bom.json"), bom).unwrap();
    (root, chain)
}

#[test]
fn the_chain_is_read_back_with_what_its_licences_ask() {
    let (root, chain) = three();
    let names: Vec<(usize, &str, Option<Role>)> =
        chain.nodes.iter().map(|n| (n.depth, n.record.name.as_str(), n.role)).collect();
    let base = Some(Role::Base);
    assert_eq!(names, [(0, "merged", None), (1, "tuned", base), (2, "again-standard", base)]);
    let has =
        |kind, subject: &str| chain.warnings.iter().any(|w| w.kind == kind && w.subject == subject);
    assert!(has(WarningKind::ShareAlike, "rows.jsonl"));
    assert!(has(WarningKind::ShareAlike, "the-base"));
    assert!(has(WarningKind::NoLicence, "tuned"));
    assert!(has(WarningKind::NoLicence, "defaults"));
    assert!(chain.warnings.iter().all(|w| w.kind != WarningKind::ChangedFile));
    let tree = chain.to_string();
    for line in [
        "merged (no licence stated; dolly-core",
        "  base tuned (no licence",
        "    base again-standard (CC-BY-SA-3.0",
        "      data rows.jsonl (CC-BY-SA-3.0; 15011 rows)",
        "dropped 3 rows longer than 2048 tokens",
        "warning: rows.jsonl: licence CC-BY-SA-3.0 demands",
    ] {
        assert!(tree.contains(line), "{line:?} in\n{tree}");
    }
    assert_eq!(chain.to_json().unwrap()["nodes"][2]["record"]["data"][0]["rows"], 15011);

    // The chain needs no other directory; changed and missing files are told.
    std::fs::remove_dir_all(root.join("base")).unwrap();
    std::fs::remove_dir_all(root.join("tuned")).unwrap();
    let weights = root.join("merged/model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&weights, &bytes).unwrap();
    std::fs::write(root.join("merged/config.json"), "{}").unwrap();
    std::fs::remove_file(root.join("merged/generation_config.json")).unwrap();
    let after = lineage(&root.join("merged")).unwrap();
    assert_eq!(after.nodes, chain.nodes);
    let of = |kind| {
        let found = after.warnings.iter().filter(|w| w.kind == kind);
        found.map(|w| w.subject.as_str()).collect::<Vec<_>>()
    };
    assert_eq!(of(WarningKind::ChangedFile), ["model.safetensors", "config.json"]);
    assert_eq!(of(WarningKind::MissingFile), ["generation_config.json"]);
}

#[test]
fn the_same_run_gives_the_same_bytes() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for out in [&one, &two] {
        Again::new("standard").write(out.path(), WeightFormat::F16, SHARD_BYTES).unwrap();
    }
    let mut count = 0;
    for entry in std::fs::read_dir(one.path()).unwrap().flatten() {
        let other = two.path().join(entry.file_name());
        assert!(std::fs::read(entry.path()).unwrap() == std::fs::read(other).unwrap());
        count += 1;
    }
    assert_eq!(count, 8);
}

#[test]
fn the_bill_of_materials_names_every_part() {
    let root = kept("bom");
    let again = Again::new("standard");
    again.write(&root, WeightFormat::F32, SHARD_BYTES).unwrap();
    let chain = lineage(&root).unwrap();
    let bom = chain.cyclonedx();
    assert_eq!(bom, lineage(&root).unwrap().cyclonedx(), "the same chain, the same document");
    assert_eq!((&bom["bomFormat"], &bom["specVersion"]), (&json!("CycloneDX"), &json!("1.6")));
    let main = &bom["metadata"]["component"];
    assert_eq!(main["type"], "machine-learning-model");
    assert_eq!(main["licenses"], json!([{"license": {"id": "CC-BY-SA-3.0"}}]));
    let card = &main["modelCard"];
    assert_eq!(card["quantitativeAnalysis"]["performanceMetrics"][0]["value"], "1.25");
    let reference = &card["modelParameters"]["datasets"][0]["ref"];
    let components = bom["components"].as_array().unwrap();
    let data = components.iter().find(|c| &c["bom-ref"] == reference).unwrap();
    assert_eq!(data["type"], "data");
    assert_eq!(data["hashes"][0]["content"], again.manifest.record.data[0].sha256.as_str());
    let files = main["components"].as_array().unwrap();
    let weights = files.iter().find(|f| f["name"] == "model.safetensors").unwrap();
    assert_eq!(weights["hashes"][0]["alg"], "SHA-256");
    let serial = bom["serialNumber"].as_str().unwrap();
    assert!(serial.starts_with("urn:uuid:") && serial.len() == 45, "{serial}");
    // Every reference stands once, and what is depended on is there.
    let text = bom.to_string();
    let mut references: Vec<&str> =
        text.split("\"bom-ref\":\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    let count = references.len();
    references.sort_unstable();
    references.dedup();
    assert_eq!(references.len(), count);
    for needed in bom["dependencies"][0]["dependsOn"].as_array().unwrap() {
        assert!(references.contains(&needed.as_str().unwrap()));
    }
}

#[test]
fn parents_without_a_manifest_take_their_licence_from_card_or_name() {
    let base = parity_model("standard");
    let files = resolve(base.path().to_str().unwrap(), &SourceOptions::default()).unwrap();
    let licence = |name: &str| {
        let mut manifest = Manifest::new("x", Kind::Model);
        manifest.add_base(name, &files).unwrap();
        let parent = manifest.record.parents.remove(0);
        assert_eq!((parent.role, parent.manifest), (Role::Base, None));
        assert_eq!(parent.part.files.len(), 2);
        parent.part.licence
    };
    assert_eq!(licence("somewhere/model"), None);
    assert_eq!(licence("EleutherAI/pythia-70m").as_deref(), Some("Apache-2.0"));
    std::fs::write(base.path().join("README.md"), "---\nlicense: 'mit'\n---\nlicense: gpl")
        .unwrap();
    assert_eq!(licence("EleutherAI/pythia-70m").as_deref(), Some("mit"));
    std::fs::write(base.path().join("README.md"), "license: mit").unwrap();
    assert_eq!(licence("somewhere/model"), None);
}

/// SHA-256 of "abc" and of a million times "a", from FIPS 180-2, appendix B.
#[test]
fn hashes_are_those_of_the_standard() {
    let mut manifest = Manifest::new("x", Kind::Model);
    let mut of = |bytes: &[u8]| {
        manifest.set_tokenizer("t", bytes);
        manifest.record.tokenizer.clone().unwrap().files.remove(0).sha256
    };
    assert_eq!(of(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    let million = vec![b'a'; 1_000_000];
    let expected = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0";
    assert_eq!(of(&million), expected);
}

#[test]
fn licences_are_known_by_expression() {
    for (text, commercial, share, derivatives, unknown) in [
        ("MIT", false, false, false, false),
        ("apache-2.0", false, false, false, false),
        ("CC BY-SA 3.0", false, true, false, false),
        ("cc-by-sa-3.0", false, true, false, false),
        ("CC-BY-NC-4.0", true, false, false, false),
        ("CC-BY-NC-SA-4.0", true, true, false, false),
        ("CC-BY-ND-4.0", false, false, true, false),
        ("CC-BY-3.0-US", false, false, false, false),
        ("CC-BY-XX-3.0", false, false, false, true),
        ("GPL-3.0-only OR MIT", false, false, false, false),
        ("(GPL-3.0-only OR MIT) AND MIT", false, true, false, false),
        ("MIT AND CC-BY-SA-4.0", false, true, false, false),
        ("GPL-2.0-or-later WITH Classpath-exception-2.0", false, true, false, false),
        ("llama3.1", true, false, false, false),
        ("bigscience-bloom-rail-1.0", true, false, false, false),
        ("research only", true, false, false, false),
        ("public domain", false, false, false, false),
        ("other", false, false, false, true),
        ("", false, false, false, true),
    ] {
        let found = terms(text);
        let found = (
            found.restricts_commercial_use,
            found.share_alike,
            found.no_derivatives,
            found.unknown,
        );
        assert_eq!(found, (commercial, share, derivatives, unknown), "{text:?}");
    }
}

#[test]
fn times_are_those_of_the_calendar() {
    // Seconds from `date -u -d ... +%s`.
    for (seconds, text) in [
        (0, "1970-01-01T00:00:00Z"),
        (1_709_210_096, "2024-02-29T12:34:56Z"),
        (4_107_542_399, "2100-02-28T23:59:59Z"),
        (4_107_542_400, "2100-03-01T00:00:00Z"),
        (978_307_199, "2000-12-31T23:59:59Z"),
    ] {
        assert_eq!(timestamp(UNIX_EPOCH + Duration::from_secs(seconds)), text);
    }
    assert_eq!(timestamp(UNIX_EPOCH - Duration::from_secs(9)), "1970-01-01T00:00:00Z");
}

/// A manifest as JSON, to be spoilt.
fn manifest_json() -> Value {
    serde_json::to_value(&Again::new("standard").manifest).unwrap()
}

fn read_back(manifest: &Value) -> dolly_core::Result<Lineage> {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join(FILE), manifest.to_string()).unwrap();
    lineage(directory.path())
}

#[test]
fn malformed_manifests_are_typed_errors() {
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(lineage(empty.path()), Err(Error::ModelNotFound { .. })));
    let good = manifest_json();
    read_back(&good).unwrap();
    let mut cases = vec![json!([]), json!({}), json!({"format": 1}), json!("x")];
    for (field, value) in [
        ("format", json!(2)),
        ("record", json!(null)),
        ("ancestors", json!([1])),
        ("ancestors", json!([{"sha256": "x"}])),
    ] {
        let mut spoilt = good.clone();
        spoilt[field] = value;
        cases.push(spoilt);
    }
    for (field, value) in [
        ("name", json!(1)),
        ("kind", json!("dataset")),
        ("files", json!([{"path": "a", "bytes": -1, "sha256": ""}])),
        ("metrics", json!({"loss": "low"})),
        ("parents", json!([{"role": "uncle"}])),
    ] {
        let mut spoilt = good.clone();
        spoilt["record"][field] = value;
        cases.push(spoilt);
    }
    let mut crowd = good.clone();
    let ancestor = json!({"sha256": "x", "record": good["record"]});
    crowd["ancestors"] = Value::Array(vec![ancestor; 65]);
    cases.push(crowd);
    for case in cases {
        let error = read_back(&case).unwrap_err();
        assert!(matches!(error, Error::Format { .. }), "{error}");
    }
    let directory = tempfile::tempdir().unwrap();
    for text in ["[".repeat(100_000), "{\"a\":1,\"a\":1}".into(), String::new()] {
        std::fs::write(directory.path().join(FILE), text).unwrap();
        assert!(matches!(lineage(directory.path()), Err(Error::Format { .. })));
    }
    let text = good.to_string();
    for at in (0..text.len()).step_by(5) {
        std::fs::write(directory.path().join(FILE), &text[..at]).unwrap();
        assert!(matches!(lineage(directory.path()), Err(Error::Format { .. })), "{at}");
    }
}

#[test]
fn cycles_and_gaps_end_the_walk() {
    let mut manifest = manifest_json();
    let parent = |hash: &str| {
        let part =
            json!({"name": format!("n-{hash}"), "source": null, "licence": "MIT", "files": []});
        json!({"role": "base", "part": part, "manifest": hash})
    };
    let with = |parents: Vec<Value>| {
        let mut record = manifest_json()["record"].clone();
        record["parents"] = parents.into();
        record
    };
    manifest["record"]["parents"] = json!([parent("a"), parent("b"), parent("gone")]);
    manifest["ancestors"] = json!([
        {"sha256": "a", "record": with(vec![parent("b")])},
        {"sha256": "b", "record": with(vec![parent("a"), parent("b")])},
    ]);
    let chain = read_back(&manifest).unwrap();
    assert_eq!(chain.nodes.len(), 3);
    let broken = chain.warnings.iter().filter(|w| w.kind == WarningKind::BrokenChain);
    assert_eq!(broken.map(|w| w.subject.as_str()).collect::<Vec<_>>(), ["n-gone"]);
}

#[test]
fn files_outside_the_directory_are_not_opened() {
    let mut manifest = manifest_json();
    let file = |path: &str| json!({"path": path, "bytes": 1, "sha256": "x"});
    let outside = ["../secret", "/etc/hostname", "a/../../b", "C:\\x", "sub"];
    manifest["record"]["files"] = outside.iter().map(|path| file(path)).collect();
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("sub")).unwrap();
    std::fs::write(directory.path().join(FILE), manifest.to_string()).unwrap();
    let chain = lineage(directory.path()).unwrap();
    let changed = chain.warnings.iter().filter(|w| w.kind == WarningKind::ChangedFile);
    assert_eq!(changed.count(), outside.len());
}

#[test]
fn cards_cannot_be_broken_out_of() {
    let mut again = Again::new("standard");
    again.manifest.record.name = "na\"me\n---\n<script>".into();
    let out = tempfile::tempdir().unwrap();
    again.write(out.path(), WeightFormat::F16, SHARD_BYTES).unwrap();
    let card = std::fs::read_to_string(out.path().join("README.md")).unwrap();
    assert_eq!(card.lines().filter(|line| *line == "---").count(), 2, "{card}");
    assert!(!card.contains("<script>"));
    let fences = card.lines().filter(|line| line.starts_with("```")).count();
    assert_eq!(fences, 4, "{card}");
    for part in
        ["license: \"cc-by-sa-3.0\"", "| eval_loss | 1.25 |", "15011 rows", "under its licence"]
    {
        assert!(card.contains(part), "{part} in\n{card}");
    }
}

#[test]
fn an_adapter_is_written_with_its_manifest() {
    let config = LoraConfig { rank: 1, targets: vec!["embed_out".into()], ..LoraConfig::default() };
    let a: Vec<f32> = (0..32).map(|i| i as f32 / 32.0).collect();
    let b = vec![0.25; 96];
    let names = ["A", "B"].map(|half| format!("base_model.model.embed_out.lora_{half}.weight"));
    let sources = [
        Values::new(&names[0], (1, 32), &a).unwrap(),
        Values::new(&names[1], (96, 1), &b).unwrap(),
    ];
    let tensors = [
        TensorToWrite { name: &names[0], shape: &[1, 32], source: &sources[0] },
        TensorToWrite { name: &names[1], shape: &[96, 1], source: &sources[1] },
    ];
    let base = parity_model("standard");
    let files = resolve(base.path().to_str().unwrap(), &SourceOptions::default()).unwrap();
    let mut manifest = Manifest::new("little", Kind::Adapter);
    manifest.add_base("parity/standard", &files).unwrap();
    let out = kept("adapter");
    let adapter = AdapterToWrite {
        config: &config,
        base: "parity/standard",
        tensors: &tensors,
        tokenizer: None,
        manifest: &manifest,
    };
    write_adapter_result(&out, &adapter).unwrap();
    let chain = lineage(&out).unwrap();
    assert_eq!(chain.nodes[0].record.kind, Kind::Adapter);
    assert_eq!(chain.nodes[0].record.files.len(), 2);
    let pipe = Pipeline::builder(base.path().to_str().unwrap()).adapter(&out).build().unwrap();
    let golden = &goldens("standard")[0];
    assert!(largest_difference(&pipe.logits(&golden.ids).unwrap(), &golden.logits) > 0.01);
    let card = std::fs::read_to_string(out.join("README.md")).unwrap();
    assert!(card.contains("PeftModel.from_pretrained") && card.contains("library_name: peft"));
}
