//! Files as a whole: formats, names, mappings, limits, the published set's identity.

use std::fmt::Write as _;

use super::{Dataset, bad_row, read, skipping};
use crate::dataset::{Columns, DataFormat, ReadOptions, Record};
use crate::error::{Error, ErrorKind};
use crate::options::CancelToken;

const ROW: &str = "{\"instruction\":\"i\",\"response\":\"r\"}\n";

fn reason(result: crate::Result<Dataset>) -> String {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Format, "{error:?}");
    error.to_string()
}

#[test]
fn refuses_files_as_a_whole() {
    assert_eq!(reason(read(b"", "a.jsonl")), "a.jsonl: holds no rows");
    assert_eq!(reason(read(b"\n \n", "a.jsonl")), "a.jsonl: holds no rows");
    assert_eq!(reason(read(b"[]", "a.json")), "a.json: holds no rows");
    assert_eq!(reason(read(b"instruction,response\n", "a.csv")), "a.csv: holds no rows");
    assert!(reason(read(b"x", "a.docx")).contains("does not end in"));
    assert!(reason(read(b"x", "a.txt")).contains("plain text"));
    assert!(reason(read(b"\xff\xfea\0", "a.jsonl")).contains("UTF-16"));
    let skipped = Dataset::from_bytes(b"{}\n[]\n", "a.jsonl", &skipping());
    assert!(reason(skipped).contains("2 were skipped, the first at line 1: is missing"));
    let dir = tempfile::tempdir().unwrap();
    let options = ReadOptions { format: Some(DataFormat::Jsonl), ..Default::default() };
    assert!(reason(Dataset::from_file(dir.path(), &options)).contains("regular file"));
    let error = Dataset::from_file(dir.path().join("no.jsonl"), &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
}

#[test]
fn the_message_of_a_bad_row_names_file_line_and_field() {
    let error = read(b"{\"instruction\":\"i\"}\n", "dir/a.jsonl").unwrap_err();
    assert_eq!(error.to_string(), "dir/a.jsonl:1: field \"response\": is missing");
    assert_eq!(error.kind(), ErrorKind::Format);
    let error = read(b"[]\n", "a.jsonl").unwrap_err();
    assert_eq!(error.to_string(), "a.jsonl:1: is a list; expected an object of keys and values");
}

#[test]
fn maps_columns() {
    let columns = Columns {
        context: Some("input".into()),
        response: "output".into(),
        category: None,
        ..Columns::default()
    };
    let options = ReadOptions { columns, ..Default::default() };
    let rows = b"{\"instruction\":\"a\",\"input\":\"b\",\"output\":\"c\",\"category\":\"d\"}\n";
    let data = Dataset::from_bytes(rows, "alpaca.jsonl", &options).unwrap();
    assert_eq!(data.get(0), Some(&Record::new("a", "c").with_context("b")));
    assert_eq!(data.summaries()[0].extra_fields.get("category"), Some(&1));
    // A name that was given and occurs nowhere is a slip, not an empty context.
    let rows = b"{\"instruction\":\"a\",\"output\":\"c\"}\n";
    let error = Dataset::from_bytes(rows, "a.jsonl", &options).unwrap_err();
    assert!(error.to_string().contains("field \"input\": occurs in no row"), "{error}");
    let error = Dataset::from_bytes(b"instruction,output\na,c\n", "a.csv", &options).unwrap_err();
    assert!(error.to_string().contains("field \"input\": is missing from the header"), "{error}");
    for (instruction, response) in [("a", "a"), ("", "b")] {
        let columns = Columns {
            instruction: instruction.into(),
            response: response.into(),
            ..Default::default()
        };
        let options = ReadOptions { columns, ..Default::default() };
        let error = Dataset::from_bytes(ROW.as_bytes(), "a.jsonl", &options).unwrap_err();
        assert!(matches!(error, Error::InvalidOption { name: "columns", .. }), "{error:?}");
    }
}

#[test]
fn limits_hold() {
    let rows = ROW.repeat(100);
    let options = ReadOptions { memory_limit: 20_000, ..Default::default() };
    let error = Dataset::from_bytes(rows.as_bytes(), "a.jsonl", &options).unwrap_err();
    assert!(matches!(error, Error::MemoryLimit { limit: 20_000, .. }), "{error:?}");
    let options = ReadOptions { max_line_bytes: ROW.len() - 2, ..Default::default() };
    let error = Dataset::from_bytes(rows.as_bytes(), "a.jsonl", &options).unwrap_err();
    assert!(error.to_string().contains("has 34 bytes; at most 33"), "{error}");
    let options = ReadOptions { max_line_bytes: ROW.len() - 1, ..Default::default() };
    assert_eq!(Dataset::from_bytes(rows.as_bytes(), "a.jsonl", &options).unwrap().len(), 100);
    let cancel = CancelToken::new();
    cancel.cancel();
    let options = ReadOptions { cancel: Some(cancel), ..Default::default() };
    let error = Dataset::from_bytes(rows.as_bytes(), "a.jsonl", &options).unwrap_err();
    assert!(matches!(error, Error::Cancelled));
    let mut keys = String::from("{");
    for key in 0..10_001 {
        write!(keys, "\"{key}\":0,").unwrap();
    }
    keys.push_str("\"instruction\":\"a\",\"response\":\"b\"}");
    assert!(bad_row(keys.as_bytes(), "a.jsonl").2.contains("more than 10000 keys"));
}

/// The hash is that of the bytes, by the published test vector of SHA-256 for `abc`.
#[test]
fn a_set_is_named_and_hashed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("my rows.jsonl");
    std::fs::write(&path, ROW).unwrap();
    let options = ReadOptions { source: Some("here".into()), ..Default::default() };
    let data = Dataset::from_file(&path, &options).unwrap();
    let info = &data.sources()[0];
    assert_eq!((&*info.name, info.source.as_deref(), info.rows), ("my rows", Some("here"), 1));
    assert_eq!(info.licence, None);
    assert_eq!(info.steps, [""; 0]);
    let again = Dataset::from_bytes(ROW.as_bytes(), "x.jsonl", &options).unwrap();
    assert_eq!(again.sources()[0].sha256, info.sha256);
    let text = dir.path().join("abc.txt");
    std::fs::write(&text, "abc").unwrap();
    let corpus = crate::dataset::TextCorpus::from_files([text], "text", &options).unwrap();
    assert_eq!(
        corpus.sources()[0].sha256,
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
}

#[test]
fn writes_whole_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.jsonl");
    let rows = [
        Record::new("a\n\u{2028}\"", "b").with_context("c").with_category("d"),
        Record::new("é", "\u{1}"),
    ];
    let data = Dataset::from_records(rows.clone(), "made", &ReadOptions::default()).unwrap();
    data.to_jsonl(&path).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(
        text,
        "{\"instruction\":\"a\\n\u{2028}\\\"\",\"context\":\"c\",\"response\":\"b\",\"category\":\"d\"}\n\
         {\"instruction\":\"é\",\"context\":\"\",\"response\":\"\\u0001\"}\n"
    );
    let again = Dataset::from_file(&path, &ReadOptions::default()).unwrap();
    assert!(again.iter().eq(&rows));
    assert_eq!(again.sources()[0].sha256, data.sources()[0].sha256);
    let missing = data.to_jsonl(dir.path().join("no/such/dir.jsonl")).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::Io);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}
