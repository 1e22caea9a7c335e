use std::ffi::OsString;
use std::fs;

use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn write(dir: &Path, name: &str, bytes: &str) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// A directory with these files, each holding its name.
fn model(names: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    names.iter().for_each(|name| write(dir.path(), name, name));
    dir
}

fn open(dir: &Path) -> Result<ModelFiles> {
    resolve(dir.to_str().unwrap(), &SourceOptions::default())
}

/// File names of the weights and of the index.
fn weights(files: &ModelFiles) -> (Vec<String>, Option<String>) {
    let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    match files {
        ModelFiles::Directory { weights, index, .. } => {
            (weights.iter().map(name).collect(), index.as_ref().map(name))
        }
        ModelFiles::Gguf { file, .. } => (vec![name(file)], None),
    }
}

fn index(shards: &[&str]) -> String {
    let map: serde_json::Map<String, serde_json::Value> =
        shards.iter().enumerate().map(|(i, name)| (format!("t{i}"), (*name).into())).collect();
    serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string()
}

#[test]
fn a_directory_gives_its_weights_in_order_of_preference() {
    let all = [
        "config.json",
        "tokenizer.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "a.safetensors",
        "b.safetensors",
        "a.bin",
        "b.bin",
    ];
    let dir = model(&all);
    write(dir.path(), all[3], &index(&["b.safetensors", "a.safetensors", "b.safetensors"]));
    write(dir.path(), all[5], &index(&["b.bin", "a.bin"]));
    let shards = |extension: &str| vec![format!("a.{extension}"), format!("b.{extension}")];
    for (gone, expected) in [
        (None, (vec![all[2].to_owned()], None)),
        (Some(all[2]), (shards("safetensors"), Some(all[3].to_owned()))),
        (Some(all[3]), (vec![all[4].to_owned()], None)),
        (Some(all[4]), (shards("bin"), Some(all[5].to_owned()))),
    ] {
        gone.iter().for_each(|name| fs::remove_file(dir.path().join(name)).unwrap());
        let files = open(dir.path()).unwrap();
        assert_eq!(weights(&files), expected);
        let ModelFiles::Directory { config, tokenizer, .. } = files else { panic!() };
        assert_eq!(config, dir.path().join("config.json"));
        assert_eq!(tokenizer, Some(dir.path().join("tokenizer.json")));
    }
    fs::remove_file(dir.path().join("b.bin")).unwrap();
    let error = open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("b.bin"), "{error}");
    fs::remove_file(dir.path().join(all[5])).unwrap();
    let error = open(dir.path()).unwrap_err();
    assert!(matches!(&error, Error::ModelNotFound { reason, .. } if reason.contains("no weights")));
    fs::remove_file(dir.path().join("config.json")).unwrap();
    assert!(open(dir.path()).unwrap_err().to_string().contains("config.json"));
}

#[test]
fn a_gguf_file_and_its_neighbour() {
    let dir = model(&["m.gguf", "M2.GGUF", "notes.txt"]);
    let file = |name: &str| open(&dir.path().join(name));
    assert_eq!(
        file("m.gguf").unwrap(),
        ModelFiles::Gguf { file: dir.path().join("m.gguf"), tokenizer: None }
    );
    write(dir.path(), "tokenizer.json", "{}");
    assert_eq!(
        file("M2.GGUF").unwrap(),
        ModelFiles::Gguf {
            file: dir.path().join("M2.GGUF"),
            tokenizer: Some(dir.path().join("tokenizer.json"))
        }
    );
    assert!(matches!(file("notes.txt"), Err(Error::ModelNotFound { .. })));
}

#[test]
fn a_directory_that_holds_one_gguf_file() {
    let dir = model(&["m.GGUF", "notes.txt"]);
    let found = |tokenizer| ModelFiles::Gguf { file: dir.path().join("m.GGUF"), tokenizer };
    assert_eq!(open(dir.path()).unwrap(), found(None));
    write(dir.path(), "tokenizer.json", "{}");
    write(dir.path(), "config.json", "{}");
    assert_eq!(open(dir.path()).unwrap(), found(Some(dir.path().join("tokenizer.json"))));
    write(dir.path(), "b.gguf", "");
    let error = open(dir.path()).unwrap_err();
    assert!(matches!(&error, Error::ModelNotFound { .. }), "{error}");
    assert!(error.to_string().ends_with("one of b.gguf, m.GGUF"), "{error}");
    (0..100).for_each(|n| write(dir.path(), &format!("{n}.gguf"), ""));
    let error = open(dir.path()).unwrap_err().to_string();
    assert_eq!(error.matches(".gguf").count() + error.matches(".GGUF").count(), 16, "{error}");
    assert!(error.ends_with('…'), "{error}");
    write(dir.path(), "model.safetensors", "");
    assert!(matches!(open(dir.path()), Ok(ModelFiles::Directory { .. })));
}

#[cfg(unix)]
#[test]
fn a_gguf_file_that_leads_out_of_its_directory_is_refused() {
    let (dir, outside) = (model(&["notes.txt"]), model(&["m.gguf"]));
    let link = dir.path().join("link.gguf");
    std::os::unix::fs::symlink(outside.path().join("m.gguf"), &link).unwrap();
    assert!(matches!(open(dir.path()), Err(Error::Format { .. })));
    fs::remove_file(outside.path().join("m.gguf")).unwrap();
    assert!(matches!(open(dir.path()), Err(Error::ModelNotFound { .. })));
}

#[test]
fn hostile_indexes_are_refused() {
    let dir = model(&["config.json", "a.safetensors", "model.safetensors.index.json"]);
    let many: Vec<String> = (0..5000).map(|i| format!("{i}.safetensors")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let mut table: Vec<String> = [
        "../a.safetensors",
        "x/../../a.safetensors",
        "/etc/a.safetensors",
        "./a.safetensors",
        "a//b.safetensors",
        "..\\a.safetensors",
        "C:\\a.safetensors",
        "C:a.safetensors",
        "a\0.safetensors",
        "a\n.safetensors",
        "",
        "..",
        "a.bin",
        "config.json",
        &format!("{}.safetensors", "x".repeat(300)),
    ]
    .iter()
    .map(|name| index(&["a.safetensors", name]))
    .collect();
    table.push(index(&many));
    table.push(index(&[]));
    table.push("{}".into());
    table.push("[".repeat(100_000));
    table.push(r#"{"weight_map": []}"#.into());
    table.push(r#"{"weight_map": {"t": 1}}"#.into());
    table.push(r#"{"weight_map": {"t": "a.safetensors", "t": "a.safetensors"}}"#.into());
    table.push(format!("{{\"weight_map\": [{}0]}}", "0,".repeat(500_000)));
    for text in table {
        write(dir.path(), "model.safetensors.index.json", &text);
        let error = open(dir.path()).unwrap_err();
        assert!(matches!(error, Error::Format { .. }), "{:.80}: {error}", text);
        assert!(error.to_string().len() < 600);
    }
    let large = fs::File::create(dir.path().join("model.safetensors.index.json")).unwrap();
    large.set_len(files::MAX_INDEX_BYTES + 1).unwrap();
    assert!(matches!(open(dir.path()), Err(Error::Format { .. })));
}

#[cfg(unix)]
#[test]
fn links_stay_inside_the_repository() {
    use std::os::unix::fs::symlink;
    let secret = model(&["secret", "config.json"]);
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        let dir = model(&["config.json", "tokenizer.json", "model.safetensors"]);
        fs::remove_file(dir.path().join(name)).unwrap();
        symlink(secret.path().join("secret"), dir.path().join(name)).unwrap();
        let error = open(dir.path()).unwrap_err();
        assert!(matches!(&error, Error::Format { file, .. } if file.ends_with(name)), "{error}");
        // A link to a neighbour stays inside; one to a directory is no file; a dangling one is none.
        fs::remove_file(dir.path().join(name)).unwrap();
        write(dir.path(), "other", "x");
        symlink("other", dir.path().join(name)).unwrap();
        open(dir.path()).unwrap();
        fs::remove_file(dir.path().join(name)).unwrap();
        symlink(".", dir.path().join(name)).unwrap();
        assert!(matches!(open(dir.path()), Err(Error::Format { .. })));
    }
    // The directory itself may be a link.
    let dir = model(&["config.json", "model.safetensors"]);
    let link = secret.path().join("link");
    symlink(dir.path(), &link).unwrap();
    open(&link).unwrap();
    // A link loop ends.
    symlink("tokenizer.json", dir.path().join("tokenizer.json")).unwrap();
    assert!(matches!(open(dir.path()), Err(Error::Io { .. })));
}

/// A hub cache with one model, its snapshot made of links into `blobs/` as the hub's own tools do.
#[cfg(unix)]
fn cached() -> (tempfile::TempDir, SourceOptions) {
    let dir = tempfile::tempdir().unwrap();
    let repo = dir.path().join("models--org--name");
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        write(&repo, &format!("blobs/etag-{name}"), name);
        let snapshot = repo.join("snapshots").join(COMMIT);
        fs::create_dir_all(&snapshot).unwrap();
        let target = format!("../../blobs/etag-{name}");
        std::os::unix::fs::symlink(target, snapshot.join(name)).unwrap();
    }
    write(&repo, "refs/main", COMMIT);
    write(&repo, "refs/refs/pr/1", &format!("{COMMIT}\n"));
    let options = SourceOptions {
        cache_dir: Some(dir.path().to_owned()),
        offline: true,
        ..Default::default()
    };
    (dir, options)
}

#[cfg(unix)]
#[test]
fn the_hub_cache_is_read_by_revision() {
    let (dir, options) = cached();
    let repo = dir.path().join("models--org--name");
    let at = |revision: &str| {
        let revision = Some(revision.to_owned());
        resolve("org/name", &SourceOptions { revision, ..options.clone() })
    };
    let expected = repo.join("snapshots").join(COMMIT);
    for files in [resolve("org/name", &options), at("main"), at(COMMIT), at("refs/pr/1")] {
        let ModelFiles::Directory { config, weights, .. } = files.unwrap() else { panic!() };
        assert_eq!(config, expected.join("config.json"));
        assert_eq!(weights, [expected.join("model.safetensors")]);
    }
    // A snapshot given as a directory may use its links as well.
    open(&expected).unwrap();
    for revision in ["dev", &"f".repeat(40)] {
        match at(revision) {
            Err(Error::ModelNotFound { id, reason }) => {
                assert_eq!(id, "org/name");
                assert!(reason.contains(repo.to_str().unwrap()), "{reason}");
                assert!(reason.contains("directory"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
    }
    for revision in ["../main", "", "/main", "a//b", "a\\b", "a\0"] {
        assert!(matches!(at(revision), Err(Error::InvalidOption { name: "revision", .. })));
    }
    for text in ["../../../etc", "", "ABCDEF", &"x".repeat(40)] {
        write(&repo, "refs/main", text);
        assert!(matches!(at("main"), Err(Error::Format { .. })), "{text:?}");
    }
    // A link from the snapshot past the blobs is refused, a missing file is an incomplete copy.
    let weights = expected.join("model.safetensors");
    fs::remove_file(&weights).unwrap();
    assert!(matches!(at(COMMIT), Err(Error::ModelNotFound { .. })));
    write(dir.path(), "models--org--other/blobs/x", "x");
    std::os::unix::fs::symlink("../../../models--org--other/blobs/x", &weights).unwrap();
    assert!(matches!(at(COMMIT), Err(Error::Format { .. })));
}

#[test]
fn names_that_lead_nowhere_say_what_helps() {
    let dir = tempfile::tempdir().unwrap();
    let options = SourceOptions {
        cache_dir: Some(dir.path().to_owned()),
        offline: true,
        ..Default::default()
    };
    for (id, word) in [
        ("org/name", "no copy"),
        ("name", "no copy"),
        ("./missing", "not a hub id"),
        ("/missing/dir", "not a hub id"),
        ("missing.gguf/", "not a hub id"),
        ("a/b/c", "not a hub id"),
        ("../..x", "not a hub id"),
        ("org--x/name", "not a hub id"),
        ("org/na..me", "not a hub id"),
        ("-org/name", "not a hub id"),
        ("org/name.git", "not a hub id"),
        ("org/na me", "not a hub id"),
        ("", "not a hub id"),
        ("or\0g/name", "not a hub id"),
        (&"x".repeat(100_000), "not a hub id"),
    ] {
        match resolve(id, &options) {
            Err(Error::ModelNotFound { reason, .. }) => {
                assert!(reason.contains(word), "{id:.40}: {reason}");
                assert!(reason.len() < 1000);
            }
            other => panic!("{id:.40}: {other:?}"),
        }
    }
    let nowhere = SourceOptions { cache_dir: None, ..options };
    assert!(resolve("org/name", &nowhere).unwrap_err().to_string().contains("HF_HUB_CACHE"));
}

#[test]
fn the_bundled_model_is_found_where_it_is_named() {
    let dir = model(&["dolly-nano/config.json", "dolly-nano/model.safetensors"]);
    let options = SourceOptions {
        bundled_dirs: vec!["/nowhere".into(), dir.path().to_owned()],
        ..Default::default()
    };
    let ModelFiles::Directory { config, .. } = resolve(BUNDLED, &options).unwrap() else {
        panic!()
    };
    assert_eq!(config, dir.path().join("dolly-nano/config.json"));
}

#[test]
fn the_environment_is_read_as_the_hub_client_reads_it() {
    let read = |vars: &[(&str, &str)]| {
        let vars = vars.to_vec();
        SourceOptions::from_vars(move |name| {
            vars.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        })
    };
    let cache = |vars: &[(&str, &str)]| read(vars).cache_dir;
    let all = [("HF_HUB_CACHE", "/a"), ("HF_HOME", "/b"), ("XDG_CACHE_HOME", "/c"), ("HOME", "/d")];
    assert_eq!(cache(&all), Some("/a".into()));
    assert_eq!(cache(&all[1..]), Some("/b/hub".into()));
    assert_eq!(cache(&all[2..]), Some("/c/huggingface/hub".into()));
    assert_eq!(cache(&all[3..]), Some("/d/.cache/huggingface/hub".into()));
    assert_eq!(cache(&[]), None);
    for (value, offline) in [("1", true), ("true", true), ("Yes", true), ("0", false), ("", false)]
    {
        assert_eq!(read(&[("HF_HUB_OFFLINE", value)]).offline, offline);
    }
    let options = read(&[("HF_TOKEN", "hf_secret\n"), ("HF_ENDPOINT", "http://localhost")]);
    assert_eq!(options.token.as_deref(), Some("hf_secret"));
    assert_eq!(options.endpoint.as_deref(), Some("http://localhost"));
    assert!(!format!("{options:?}").contains("secret"));
}
