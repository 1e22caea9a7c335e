//! Parquet files as pyarrow writes them (`tests/golden/dataset/make_parquet.py`), and broken ones.

use proptest::prelude::*;

use super::{Dataset, read, skipping};
use crate::dataset::parquet_guard::{check_metadata, check_pages};
use crate::dataset::{Columns, ReadOptions, Record};
use crate::error::{Error, ErrorKind};

const SNAPPY: &[u8] = include_bytes!("../../../../tests/golden/dataset/snappy.parquet");
const GZIP: &[u8] = include_bytes!("../../../../tests/golden/dataset/gzip.parquet");
const PLAIN: &[u8] = include_bytes!("../../../../tests/golden/dataset/plain.parquet");
const ZSTD: &[u8] = include_bytes!("../../../../tests/golden/dataset/zstd.parquet");
const BAD: &[u8] = include_bytes!("../../../../tests/golden/dataset/bad.parquet");
const NUMBER: &[u8] = include_bytes!("../../../../tests/golden/dataset/number.parquet");
const BINARY: &[u8] = include_bytes!("../../../../tests/golden/dataset/binary.parquet");

/// Row `n` as the script makes it.
fn expected(n: usize) -> Record {
    let instruction = format!("Instruction {n}: é\u{2028}\n\"");
    let mut record = Record::new(instruction, format!("Response {n}"));
    if n.is_multiple_of(3) {
        record.context = "the same passage ".repeat(20);
    }
    record.category = [Some("open_qa"), Some("brainstorming"), None][n % 3].map(str::to_owned);
    record
}

#[test]
fn rows_are_those_that_were_written() {
    for (file, rows) in [(SNAPPY, 3000), (GZIP, 300), (PLAIN, 7)] {
        let data = read(file, "a.parquet").unwrap();
        assert_eq!(data.len(), rows);
        for (n, record) in data.iter().enumerate() {
            assert_eq!(*record, expected(n));
            assert_eq!(data.origin(n).unwrap().1, n as u64 + 1);
        }
        let extra = &data.summaries()[0].extra_fields;
        assert_eq!(extra.keys().map(String::as_str).collect::<Vec<_>>(), ["id", "tags"]);
    }
}

#[test]
fn bad_rows_are_named() {
    let error = read(BAD, "b.parquet").unwrap_err();
    assert_eq!(error.to_string(), "b.parquet:2: field \"response\": is empty");
    let data = Dataset::from_bytes(BAD, "b.parquet", &skipping()).unwrap();
    let bad: Vec<_> =
        data.summaries()[0].first_skipped.iter().map(|b| (b.line, b.reason.as_str())).collect();
    let expected =
        [(2, "is empty"), (3, "is null; expected text"), (5, "holds a NUL character at byte 2")];
    assert_eq!(bad, expected);
    assert_eq!(data.len(), 3);
    let error = read(NUMBER, "n.parquet").unwrap_err().to_string();
    assert!(
        error.contains("\"instruction\": is a number or other value; expected text"),
        "{error}"
    );
    let error = read(BINARY, "u.parquet").unwrap_err().to_string();
    assert!(error.contains(":1: field \"instruction\": is not UTF-8 from byte 1"), "{error}");
    assert_eq!(Dataset::from_bytes(BINARY, "u.parquet", &skipping()).unwrap().len(), 1);
    let error = read(ZSTD, "z.parquet").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    let tags = Columns { context: Some("tags".into()), ..Default::default() };
    let options = ReadOptions { columns: tags, ..Default::default() };
    let error = Dataset::from_bytes(PLAIN, "t.parquet", &options).unwrap_err().to_string();
    assert!(error.contains("\"tags\": is a nested value; expected text"), "{error}");
    let options = ReadOptions { max_line_bytes: 100, ..skipping() };
    let data = Dataset::from_bytes(PLAIN, "l.parquet", &options).unwrap();
    assert_eq!((data.len(), data.summaries()[0].skipped), (4, 3));
    let options = ReadOptions { memory_limit: 100_000, ..Default::default() };
    let error = Dataset::from_bytes(SNAPPY, "m.parquet", &options).unwrap_err();
    assert!(matches!(error, Error::MemoryLimit { .. }), "{error:?}");
}

#[test]
fn every_truncation_is_refused() {
    for length in 0..PLAIN.len() {
        let error = read(&PLAIN[..length], "cut.parquet").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Format, "{length}: {error:?}");
    }
}

/// A file of this metadata.
fn file(metadata: &[u8]) -> Vec<u8> {
    let length = (metadata.len() as u32).to_le_bytes();
    [b"PAR1", metadata, &length, b"PAR1"].concat()
}

#[test]
fn hostile_metadata_is_refused_before_it_is_acted_on() {
    // Field 2, a list of structures, each a group with one child: deeper than any stack.
    let element = [0x55, 0x02, 0x00];
    let mut deep = vec![0x29, 0xfc, 0xa0, 0x8d, 0x06];
    deep.extend(element.repeat(100_000));
    deep.push(0);
    let refused = |metadata: &[u8]| check_metadata(&file(metadata)).unwrap_err();
    assert!(refused(&deep).contains("schema deeper than 32"));
    assert!(refused(&[0x29, 0xfc, 0xff, 0xff, 0xff, 0x7f]).contains("a list of"));
    assert!(refused(&[0x18, 0xff, 0xff, 0xff, 0xff, 0x7f]).contains("bytes at byte"));
    assert!(refused(&[0x1c].repeat(100_000)).contains("nested deeper"));
    assert!(refused(&[0x15, 0xff]).contains("at byte"));
    assert!(refused(&[0xff; 40]).contains("type 15"));
    assert_eq!(check_metadata(&file(&[0])), Ok(()));
    let mut lying = file(&[0]);
    lying[5..9].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(check_metadata(&lying).unwrap_err().contains("4294967295 bytes of metadata"));
    // A page of one byte that claims 2^30: fields 2 and 3.
    let page = [0x25, 0x80, 0x80, 0x80, 0x80, 0x08, 0x15, 0x02, 0x00, 0x00];
    assert!(check_pages(&page).unwrap_err().contains("claims 1073741824 decompressed"));
    assert_eq!(check_pages(&[0x25, 0x02, 0x15, 0x02, 0x00, 0x07]), Ok(()));
    assert!(check_pages(&[0x25, 0x02, 0x15, 0x04, 0x00, 0x07]).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn changed_bytes_never_end_the_process(
        which in 0usize..3,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = [PLAIN, GZIP, BAD][which].to_vec();
        for (place, value) in changes {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        // An error or rows: both are fine.
        let _ = Dataset::from_bytes(&bytes, "a.parquet", &skipping());
    }
}
