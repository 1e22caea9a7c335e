//! Arbitrary bytes never panic, what is written is read again, splits lose and invent nothing.

use std::collections::HashSet;

use proptest::collection::vec;
use proptest::prelude::*;

use super::{Dataset, skipping};
use crate::dataset::{DataFormat, ReadOptions, Record, SameRow};

const FORMATS: [DataFormat; 4] =
    [DataFormat::Jsonl, DataFormat::Json, DataFormat::Csv, DataFormat::Tsv];

/// Pieces that lead deep into the readers.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let pieces: &[&[u8]] = &[
        b"{\"instruction\":\"a\",\"response\":\"b\"}",
        b"{\"instruction\":",
        b"\"response\"",
        b"instruction,response\n",
        b"instruction\tresponse\r\n",
        b"[",
        b"]",
        b"{",
        b"}",
        b",",
        b"\"",
        b"\\",
        b"\"\"",
        b"\n",
        b"\r",
        b"\t",
        b"\xef\xbb\xbf",
        b"\xff",
        b"\0",
        b"\\ud800",
        b"1e999",
        b"a",
    ];
    prop_oneof![
        4 => prop::sample::select(pieces.to_vec()).prop_map(<[u8]>::to_vec),
        1 => vec(any::<u8>(), 0..8),
    ]
}

/// Texts of every kind of character, without NUL and never empty.
fn text() -> impl Strategy<Value = String> {
    let chars = prop_oneof![
        6 => prop::char::range(' ', '~'),
        2 => prop::sample::select(vec!['\n', '\r', '\t', '"', ',', '\\', '\u{2028}', '\u{1}', '\u{feff}']),
        1 => any::<char>().prop_filter("no NUL", |c| *c != '\0'),
    ];
    vec(chars, 1..20).prop_map(|chars| chars.into_iter().collect())
}

fn record() -> impl Strategy<Value = Record> {
    (text(), prop::option::of(text()), text(), prop::option::of(text())).prop_map(|parts| {
        let (instruction, context, response, category) = parts;
        let mut record = Record::new(instruction, response);
        record.context = context.unwrap_or_default();
        record.category = category;
        record
    })
}

fn set(records: &[Record]) -> Dataset {
    Dataset::from_records(records.to_vec(), "made", &ReadOptions::default()).unwrap()
}

/// The records as the crate `csv` writes them.
fn as_csv(records: &[Record], delimiter: u8, crlf: bool) -> Vec<u8> {
    let terminator = if crlf { csv::Terminator::CRLF } else { csv::Terminator::Any(b'\n') };
    let mut writer = csv::WriterBuilder::new()
        .delimiter(delimiter)
        .terminator(terminator)
        .from_writer(Vec::new());
    writer.write_record(["category", "instruction", "response", "context"]).unwrap();
    for r in records {
        let category = r.category.as_deref().unwrap_or_default();
        writer.write_record([category, &r.instruction, &r.response, &r.context]).unwrap();
    }
    writer.into_inner().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn arbitrary_bytes_never_panic(pieces in vec(piece(), 0..40), limit in 1usize..200) {
        let bytes = pieces.concat();
        for format in FORMATS {
            let strict = ReadOptions { format: Some(format), max_line_bytes: limit, ..Default::default() };
            let options = ReadOptions { format: Some(format), max_line_bytes: limit, ..skipping() };
            let read = Dataset::from_bytes(&bytes, "x", &options);
            let first = Dataset::from_bytes(&bytes, "x", &strict);
            if let Ok(data) = &read {
                let summary = &data.summaries()[0];
                prop_assert_eq!(summary.rows, data.len() as u64);
                prop_assert_eq!(first.is_ok(), summary.skipped == 0);
                // Texts are never longer than what they were read from.
                let size: usize = data.iter().map(|r| r.instruction.len() + r.response.len()).sum();
                prop_assert!(size <= bytes.len());
            } else {
                prop_assert!(first.is_err());
            }
        }
    }

    #[test]
    fn jsonl_comes_back(records in vec(record(), 1..20), crlf: bool, mark: bool) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        set(&records).to_jsonl(&path).unwrap();
        let mut text = std::fs::read_to_string(&path).unwrap();
        if crlf {
            text = text.replace('\n', "\r\n");
        }
        if mark {
            text.insert(0, '\u{feff}');
        }
        let again = Dataset::from_bytes(text.as_bytes(), "a.jsonl", &ReadOptions::default()).unwrap();
        prop_assert!(again.iter().eq(&records));
        // The same rows as one list, in one line and in many.
        let values: Vec<serde_json::Value> =
            records.iter().map(|r| serde_json::to_value(r).unwrap()).collect();
        for list in [serde_json::to_vec(&values), serde_json::to_vec_pretty(&values)] {
            let again = Dataset::from_bytes(&list.unwrap(), "a.json", &ReadOptions::default()).unwrap();
            prop_assert!(again.iter().eq(&records));
        }
    }

    #[test]
    fn csv_is_read_as_the_crate_writes_it(records in vec(record(), 1..20), crlf: bool, tabs: bool) {
        let (delimiter, name) = if tabs { (b'\t', "a.tsv") } else { (b',', "a.csv") };
        let file = as_csv(&records, delimiter, crlf);
        let again = Dataset::from_bytes(&file, name, &ReadOptions::default()).unwrap();
        prop_assert!(again.iter().eq(&records));
    }

    #[test]
    fn orders_lose_and_invent_nothing(count in 2usize..300, seed: u64, share in 0.001..0.999f64) {
        let records: Vec<_> = (0..count).map(|n| Record::new(n.to_string(), "r")).collect();
        let data = set(&records);
        let (train, test) = data.split(share, seed).unwrap();
        prop_assert_eq!(train.len() + test.len(), count);
        prop_assert!(!train.is_empty() && !test.is_empty());
        let all: HashSet<_> = train.iter().chain(test.iter()).collect();
        prop_assert_eq!(all.len(), count);
        for part in [&train, &test] {
            let numbers: Vec<u64> = part.iter().map(|r| r.instruction.parse().unwrap()).collect();
            prop_assert!(numbers.is_sorted());
        }
        let shuffled = data.shuffle(seed).unwrap();
        prop_assert_eq!(shuffled.iter().collect::<HashSet<_>>().len(), count);
        prop_assert_eq!(shuffled.len(), count);
        let again = data.shuffle(seed).unwrap();
        prop_assert!(again.iter().eq(shuffled.iter()));
    }

    #[test]
    fn duplicates_are_all_found(picks in vec(0u8..6, 1..40)) {
        let records: Vec<_> = picks.iter().map(|n| Record::new(n.to_string(), "r")).collect();
        let data = set(&records);
        let distinct = picks.iter().collect::<HashSet<_>>().len();
        prop_assert_eq!(data.without_duplicates(SameRow::Whole).len(), distinct);
        let report = data.report(None, None).unwrap();
        prop_assert_eq!(report.duplicates.rows as usize, picks.len() - distinct);
    }

    /// Quantiles by their definition, from counts of all values.
    #[test]
    fn quantiles_are_nearest_ranks(lengths in vec(1usize..40, 1..200)) {
        let records: Vec<_> = lengths.iter().map(|n| Record::new("x".repeat(*n), "r")).collect();
        let q = set(&records).report(None, None).unwrap().lengths.prompt;
        for (percent, value) in [(25, q.p25), (50, q.p50), (75, q.p75), (90, q.p90), (99, q.p99)] {
            let reach = |v: usize| 100 * lengths.iter().filter(|n| **n <= v).count() >= percent * lengths.len();
            prop_assert!(reach(value as usize) && !reach(value as usize - 1));
        }
        prop_assert_eq!(q.sum as usize, lengths.iter().sum::<usize>());
    }
}
