//! What is done with sets: orders, splits, cleaning, reports, corpora.

use super::Dataset;
use crate::dataset::{CleanOptions, ReadOptions, Record, Report, SameRow, TextCorpus};
use crate::error::Error;
use crate::tokenizer::tests::dolly;

fn numbered(count: usize) -> Dataset {
    let rows = (0..count).map(|n| Record::new(n.to_string(), "r"));
    let options = ReadOptions { licence: Some("MIT".into()), ..Default::default() };
    Dataset::from_records(rows, "numbers", &options).unwrap()
}

fn numbers(data: &Dataset) -> Vec<usize> {
    data.iter().map(|record| record.instruction.parse().unwrap()).collect()
}

/// Orders by `tests/golden/dataset/order.py`, which has its own ChaCha.
#[test]
fn orders_are_those_of_an_independent_implementation() {
    let golden = include_str!("../../../../tests/golden/dataset/order.json");
    let golden: serde_json::Value = serde_json::from_str(golden).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() >= 6);
    for case in cases {
        let seed = case["seed"].as_str().unwrap().parse().unwrap();
        let count = case["rows"].as_u64().unwrap() as usize;
        let list = |name: &str| -> Vec<usize> {
            let values = case[name].as_array().unwrap();
            values.iter().map(|n| n.as_u64().unwrap() as usize).collect()
        };
        let data = numbered(count);
        assert_eq!(numbers(&data.shuffle(seed).unwrap()), list("shuffle"));
        let (train, test) = data.split(count / 3, seed).unwrap();
        assert_eq!(numbers(&test), list("test"));
        assert_eq!(numbers(&train), list("train"));
    }
}

#[test]
fn split_sizes() {
    let data = numbered(101);
    let sizes = |test: f64| {
        let (train, test) = data.split(test, 1).unwrap();
        (train.len(), test.len())
    };
    assert_eq!(sizes(0.02), (99, 2));
    assert_eq!(sizes(0.0001), (100, 1));
    assert_eq!(sizes(0.9999), (1, 100));
    for bad in [0.0, 1.0, -0.5, f64::NAN, f64::INFINITY] {
        assert!(matches!(data.split(bad, 1), Err(Error::InvalidOption { .. })), "{bad}");
    }
    for bad in [0usize, 101, 102, usize::MAX] {
        assert!(matches!(data.split(bad, 1), Err(Error::InvalidOption { .. })), "{bad}");
    }
    assert!(numbered(1).split(0.5, 1).is_err());
}

#[test]
fn steps_and_rows_are_carried_along() {
    let (train, test) = numbered(10).split(4usize, 7).unwrap();
    let info = &train.sources()[0];
    assert_eq!((info.rows, info.licence.as_deref()), (6, Some("MIT")));
    let split = "split: 4 of 10 rows set apart for testing, seed 7; training part, 6 of 10 rows";
    assert_eq!(info.steps, [split]);
    let other =
        Dataset::from_records([Record::new("x", "y")], "other", &Default::default()).unwrap();
    let both = train.concat(&other).unwrap().concat(&test).unwrap().concat(&other).unwrap();
    let parts: Vec<_> = both.sources().iter().map(|s| (s.name.as_str(), s.rows)).collect();
    assert_eq!(parts, [("numbers", 6), ("other", 2), ("numbers", 4)]);
    assert_eq!(both.origin(6).unwrap().0.name, "other");
    assert_eq!(both.origin(11).unwrap().0.name, "other");
    let kept = both.filter("digits", |r| r.instruction != "x").shuffle(3).unwrap();
    let parts: Vec<_> = kept.sources().iter().map(|s| s.rows).collect();
    assert_eq!(parts, [6, 0, 4]);
    assert_eq!(kept.sources()[1].steps, ["filter: digits; kept 0 of 2 rows", "shuffle: seed 3"]);
    for index in 0..kept.len() {
        let (info, line) = kept.origin(index).unwrap();
        assert_eq!(info.name, "numbers");
        assert_eq!(kept.get(index).unwrap().instruction, (line - 1).to_string());
    }
    assert_eq!(numbers(&numbered(5).select([4, 0, 4], "some").unwrap()), [4, 0, 4]);
    assert!(matches!(numbered(5).select([5], "none"), Err(Error::InvalidInput(_))));
}

#[test]
fn cleaning_counts_each_change() {
    let rows = [
        Record::new(" a ", "x[0] = 1"),
        Record::new("b", "c")
            .with_context("One[1][23], two[456] [1993] [a] [].\n")
            .with_category(" k"),
        Record::new("\u{a0}", "r"),
        Record::new("same", "same"),
    ];
    let data = Dataset::from_records(rows, "made", &Default::default()).unwrap();
    let (clean, done) = data.clean(&CleanOptions::default()).unwrap();
    assert_eq!(clean.get(0), Some(&Record::new("a", "x[0] = 1")));
    assert_eq!(clean.get(1).unwrap().context, "One, two [1993] [a] [].");
    assert_eq!(clean.get(1).unwrap().category.as_deref(), Some("k"));
    assert_eq!((clean.len(), done.changed_rows, done.trimmed_fields), (3, 3, 4));
    assert_eq!((done.removed_footnotes, done.emptied_rows), (3, 1));
    assert_eq!(
        clean.sources()[0].steps,
        [
            "clean: 3 rows changed; 4 fields trimmed, 3 footnote marks removed, 1 rows left out as empty"
        ]
    );
    let (again, done) = clean.clean(&CleanOptions::default()).unwrap();
    assert_eq!(done.changed_rows, 0);
    assert!(again.iter().eq(clean.iter()));
    let options = CleanOptions { footnotes_in_responses: true, ..Default::default() };
    assert_eq!(data.clean(&options).unwrap().0.get(0).unwrap().response, "x = 1");
    let nothing = CleanOptions { footnotes: false, trim: false, ..Default::default() };
    assert!(data.clean(&nothing).unwrap().0.iter().eq(data.iter()));
}

#[test]
fn report_counts() {
    let rows = [
        Record::new("abc", "de").with_context("fg[1]").with_category("k"),
        Record::new("abc", "xy").with_context("fg[1]").with_category("k"),
        Record::new("abc", "xy").with_context("fg[1]").with_category("k"),
        Record::new("é", " ").with_category("j"),
        Record::new("z", "[22] [3]"),
    ];
    let data = Dataset::from_records(rows, "made", &Default::default()).unwrap();
    let report = data.report(None, Some(10)).unwrap();
    let named = |r: &Report| -> Vec<(Option<String>, u64)> {
        r.categories.iter().map(|c| (c.category.clone(), c.rows)).collect()
    };
    assert_eq!(named(&report), [(Some("k".into()), 3), (None, 1), (Some("j".into()), 1)]);
    assert_eq!((report.duplicates.questions, report.duplicates.rows), (2, 1));
    assert_eq!(
        (report.empty.context, report.empty.category, report.empty.blank_response),
        (2, 1, 1)
    );
    let f = report.footnotes;
    assert_eq!((f.rows, f.instruction, f.context, f.response), (4, 0, 3, 2));
    // Prompts of 8, 8, 8, 1, 1 characters, responses of 2, 2, 2, 1, 8.
    let l = &report.lengths;
    assert_eq!((l.prompt.min, l.prompt.p50, l.prompt.max, l.prompt.sum), (1, 8, 8, 26));
    assert_eq!((l.response.min, l.response.p50, l.response.p90, l.response.mean), (1, 2, 8, 3.0));
    assert_eq!((l.total.min, l.total.p25, l.total.p50, l.total.max), (2, 9, 10, 10));
    let bins: Vec<_> = l.histogram.iter().map(|b| (b.from, b.to, b.rows)).collect();
    assert_eq!(bins, [(2, 3, 1), (4, 7, 0), (8, 15, 4)]);
    let long = report.too_long.as_ref().unwrap();
    assert_eq!((long.rows, &*long.first), (3, &[0u64, 1, 2][..]));
    let json = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
    let text = report.to_string();
    for words in
        ["5 rows", "made: 5 rows, licence not given", "(none)", "3 rows of 10 characters or more"]
    {
        assert!(text.contains(words), "{words}: {text}");
    }
}

/// The prompt's length is that of the original's reference encoding of this instruction.
#[test]
fn report_counts_tokens_as_training_does() {
    let tokenizer = dolly(true);
    let rows = (0..300).map(|n| Record::new("State the meaning of life.", "a".repeat(n + 1)));
    let data = Dataset::from_records(rows, "made", &Default::default()).unwrap();
    let report = data.report(Some(&tokenizer), Some(40)).unwrap();
    let lengths = &report.lengths;
    assert_eq!((lengths.prompt.min, lengths.prompt.max, lengths.prompt.sum), (29, 29, 29 * 300));
    let response = |text: &str| tokenizer.encode(&format!("{text}\n\n"), false).unwrap().len() + 1;
    let sum: usize = (0..300).map(|n| response(&"a".repeat(n + 1))).sum();
    assert_eq!(lengths.response.sum, sum as u64);
    assert_eq!(lengths.total.sum, sum as u64 + 29 * 300);
    assert!(report.to_string().contains("length in tokens"));
}

#[test]
fn duplicates_can_be_left_out() {
    let rows = [("a", "1"), ("a", "1"), ("b", "1"), ("a", "2"), ("b", "1")];
    let rows = rows.map(|(question, answer)| Record::new(question, answer));
    let data = Dataset::from_records(rows, "made", &Default::default()).unwrap();
    let texts = |same| {
        let data = data.without_duplicates(same);
        data.iter().map(|r| r.instruction.clone() + &r.response).collect::<Vec<_>>()
    };
    assert_eq!(texts(SameRow::Question), ["a1", "b1"]);
    assert_eq!(texts(SameRow::Whole), ["a1", "b1", "a2"]);
}

#[test]
fn corpora_are_read_and_packed() {
    let dir = tempfile::tempdir().unwrap();
    let (novel, notes) = (dir.path().join("novel.txt"), dir.path().join("notes.jsonl"));
    std::fs::write(&novel, "\u{feff}It was.\r\n").unwrap();
    std::fs::write(&notes, "{\"text\":\"ab\",\"id\":1}\n{\"text\":\"cd\"}\n").unwrap();
    let options = ReadOptions { licence: Some("CC0-1.0".into()), ..Default::default() };
    let corpus = TextCorpus::from_files([&novel, &notes], "text", &options).unwrap();
    assert_eq!(corpus.iter().collect::<Vec<_>>(), ["It was.\r\n", "ab", "cd"]);
    let rows: Vec<_> = corpus.sources().iter().map(|s| (s.name.as_str(), s.rows)).collect();
    assert_eq!(rows, [("novel", 1), ("notes", 2)]);

    let tokenizer = dolly(true);
    let end = 0;
    let packed = corpus.pack(&tokenizer, 4, Some(end)).unwrap();
    let mut ids = Vec::new();
    for text in corpus.iter() {
        ids.extend(tokenizer.encode(text, false).unwrap());
        ids.push(end);
    }
    let (blocks, rest) = (ids.len() / 4, ids.len() % 4);
    assert_eq!((packed.len(), packed.length(), packed.dropped()), (blocks, 4, rest));
    assert_eq!(packed.blocks().flatten().copied().collect::<Vec<_>>(), ids[..blocks * 4]);
    assert_eq!(packed.block(1), Some(&ids[4..8]));
    assert_eq!(packed.block(blocks), None);
    assert_eq!(packed.block(usize::MAX), None);
    // The end-of-text id of the family is 0, and is found by its name.
    assert_eq!(corpus.pack(&tokenizer, 4, None).unwrap(), packed);
    assert!(corpus.pack(&tokenizer, 1000, None).unwrap().is_empty());
    assert!(matches!(corpus.pack(&tokenizer, 0, Some(end)), Err(Error::InvalidOption { .. })));

    let (train, test) = corpus.split(1usize, 3).unwrap();
    assert_eq!(train.len() + test.len(), 3);
    let rows: u64 = train.sources().iter().map(|s| s.rows).sum();
    assert_eq!(rows, 2);
    let mut all: Vec<_> = corpus.shuffle(9).unwrap().iter().map(str::to_owned).collect();
    all.sort();
    assert_eq!(all, ["It was.\r\n", "ab", "cd"]);
    assert_eq!(train.concat(&test).sources().len(), 4);

    std::fs::write(&novel, b"ok\nbad \xff").unwrap();
    match TextCorpus::from_files([&novel], "text", &options) {
        Err(Error::Row { line: 2, reason, .. }) => assert!(reason.contains("byte 8"), "{reason}"),
        other => panic!("{other:?}"),
    }
    let missing = TextCorpus::from_files([&notes], "body", &options).unwrap_err();
    assert!(missing.to_string().contains("field \"body\": is missing"), "{missing}");
}
