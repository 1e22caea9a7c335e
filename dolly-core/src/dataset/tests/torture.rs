//! One file per format in which every line is of another kind, with what becomes of each.

use super::{Dataset, OnBadRow, ReadOptions, bad_row, skipping};
use crate::error::Error;

/// What becomes of a line.
enum Fate {
    /// A row with this instruction and response.
    Row(&'static str, &'static str),
    Blank,
    /// Left out, for this field and a reason that holds these words.
    Bad(Option<&'static str>, &'static str),
}
use Fate::{Bad, Blank, Row};

/// Limit of the tests: the line that is too long has 600 bytes.
const LONGEST: usize = 500;

fn jsonl() -> Vec<(Vec<u8>, Fate)> {
    let mut lines: Vec<(Vec<u8>, Fate)> = Vec::new();
    let mut line = |text: &str, fate| lines.push((text.as_bytes().to_vec(), fate));
    line("\u{feff}{\"instruction\":\"after a mark\",\"response\":\"r\"}", Row("after a mark", "r"));
    line(r#"{"instruction":"all","context":"c","response":"r","category":"k"}"#, Row("all", "r"));
    line("{\"instruction\":\"crlf\",\"response\":\"r\"}\r", Row("crlf", "r"));
    line("", Blank);
    line("  \t \r", Blank);
    line(r#"  {"response" : "r" , "instruction" : "blanks"}  "#, Row("blanks", "r"));
    line(
        r#"{"instruction":"a","response":"r","instruction":"b"}"#,
        Bad(Some("instruction"), "twice"),
    );
    line(r#"{"instruction":"a","response":"r","x":1,"x":2}"#, Bad(Some("x"), "twice"));
    line(
        "{\"instruction\":\"one\u{2028}two\u{2029}three\u{85}\",\"response\":\"r\"}",
        Row("one\u{2028}two\u{2029}three\u{85}", "r"),
    );
    line(r#"{"instruction":"\u00e9\ud83d\ude00\n","response":"r"}"#, Row("é😀\n", "r"));
    line(r#"{"instruction":"\ud83d","response":"r"}"#, Bad(None, "not valid JSON at column"));
    line(r#"{"instruction":"","response":"r"}"#, Bad(Some("instruction"), "is empty"));
    line(r#"{"instruction":"i","response":""}"#, Bad(Some("response"), "is empty"));
    line(r#"{"response":"r"}"#, Bad(Some("instruction"), "is missing"));
    line(r#"{"instruction":"i","output":"o"}"#, Bad(Some("response"), "there are \"output\": map"));
    line(r#"{"instruction":null,"response":"r"}"#, Bad(Some("instruction"), "is null"));
    line(r#"{"instruction":3,"response":"r"}"#, Bad(Some("instruction"), "is a number"));
    line(r#"{"instruction":"i","response":["r"]}"#, Bad(Some("response"), "is a list"));
    line(r#"{"instruction":"i","response":{"a":1}}"#, Bad(Some("response"), "is an object"));
    line(r#"{"instruction":"i","context":true,"response":"r"}"#, Bad(Some("context"), "true or"));
    line(
        r#"{"instruction":"i","response":"r","category":-1.5}"#,
        Bad(Some("category"), "a number"),
    );
    line(
        r#"{"instruction":"nulls","context":null,"response":"r","category":null}"#,
        Row("nulls", "r"),
    );
    line(r#"{"instruction":"extra","response":"r","id":7,"tags":[{}]}"#, Row("extra", "r"));
    line(r#"{"instruction":"a\u0000b","response":"r"}"#, Bad(Some("instruction"), "NUL"));
    line("{\"instruction\":\"a\0b\",\"response\":\"r\"}", Bad(None, "control character"));
    line("{\"instruction\":\"a\tb\",\"response\":\"r\"}", Bad(None, "control character"));
    line("\0\0\0", Bad(None, "not valid JSON at column 1"));
    line(r#"["i","r"]"#, Bad(None, "is a list"));
    line(r#""text""#, Bad(None, "is a text"));
    line("null", Bad(None, "is null"));
    line("17", Bad(None, "is a number"));
    line("NaN", Bad(None, "not valid JSON"));
    line(r#"{"instruction":"i","response":"r"} {}"#, Bad(None, "trailing characters"));
    line(r#"{"instruction":"i","response":"r","#, Bad(None, "not valid JSON"));
    line(r#"{'instruction':'i'}"#, Bad(None, "key must be a string"));
    line("\u{feff}{}", Bad(None, "not valid JSON at column 1"));
    line(&"[".repeat(400), Bad(None, "not valid JSON"));
    let deep = format!(
        r#"{{"instruction":"deep","response":"r","x":{}1{}}}"#,
        "[".repeat(200),
        "]".repeat(200)
    );
    line(&deep, Row("deep", "r"));
    let long = format!(r#"{{"instruction":"{}","response":"r"}}"#, "x".repeat(600));
    line(&long, Bad(None, "at most 500 are allowed"));
    lines.push((
        b"{\"instruction\":\"\xff\",\"response\":\"r\"}".to_vec(),
        Bad(None, "UTF-8 from byte 17"),
    ));
    lines.push((b"{\"instruction\":\"\xe2\x82".to_vec(), Bad(None, "not UTF-8")));
    lines.push((b"{\"instruction\":\"last\",\"response\":\"r\"}".to_vec(), Row("last", "r")));
    lines
}

/// Reads `file` skipping bad rows and compares each line's fate; `first` is the first line's number.
fn check(name: &str, file: &[u8], fates: &[(u64, Fate)]) {
    let options = ReadOptions { max_line_bytes: LONGEST, ..skipping() };
    let data = Dataset::from_bytes(file, name, &options).unwrap();
    let summary = &data.summaries()[0];
    let mut rows = data.iter().enumerate();
    let mut bad = summary.first_skipped.iter();
    let mut blank = 0;
    for (line, fate) in fates {
        match fate {
            Row(instruction, response) => {
                let (index, row) = rows.next().unwrap();
                assert_eq!((&*row.instruction, &*row.response), (*instruction, *response));
                assert_eq!(data.origin(index).unwrap().1, *line);
            }
            Blank => blank += 1,
            Bad(field, words) => {
                let found = bad.next().unwrap();
                assert_eq!((found.line, found.field.as_deref()), (*line, *field), "{found:?}");
                assert!(found.reason.contains(words), "line {line}: {:?}", found.reason);
            }
        }
    }
    assert_eq!((rows.next(), bad.next()), (None, None));
    assert_eq!(summary.blank_lines, blank);
    assert_eq!(summary.rows, data.len() as u64);
    assert_eq!(summary.skipped as usize, summary.first_skipped.len());
    assert_eq!(summary.rows + summary.skipped + blank, fates.len() as u64);
    let steps = &data.sources()[0].steps;
    assert_eq!(steps, &[format!("left out {} rows that could not be used", summary.skipped)]);
}

#[test]
fn jsonl_lines() {
    let lines = jsonl();
    let file = lines.iter().map(|(line, _)| line.as_slice()).collect::<Vec<_>>().join(&b'\n');
    let fates: Vec<_> = (1..).zip(lines).map(|(number, (_, fate))| (number, fate)).collect();
    check("torture.jsonl", &file, &fates);
    let data = Dataset::from_bytes(
        &file,
        "x.jsonl",
        &ReadOptions { max_line_bytes: LONGEST, ..skipping() },
    );
    let data = data.unwrap();
    let extra = &data.summaries()[0].extra_fields;
    assert_eq!(
        extra.iter().map(|(k, n)| (k.as_str(), *n)).collect::<Vec<_>>(),
        [("id", 1), ("tags", 1), ("x", 1)]
    );
}

/// Each bad line alone is the error of the call, with the same line, field and reason.
#[test]
fn jsonl_errors() {
    let mut bad = 0;
    for (line, fate) in jsonl() {
        let Bad(field, words) = fate else { continue };
        let mut file = b"{\"instruction\":\"i\",\"response\":\"r\"}\n\n".to_vec();
        file.extend(line);
        let options = ReadOptions { max_line_bytes: LONGEST, ..Default::default() };
        match Dataset::from_bytes(&file, "a/b.jsonl", &options) {
            Err(Error::Row { line: 3, field: found, reason, .. }) => {
                assert_eq!(found.as_deref(), field);
                assert!(reason.contains(words), "{reason:?}");
            }
            other => panic!("{words}: {other:?}"),
        }
        bad += 1;
    }
    assert_eq!(bad, 30);
}

#[test]
fn json_list() {
    let file = b"\xef\xbb\xbf \n[\n{\"instruction\":\"one\",\n \"response\":\"]},[\\\"{\"},\n\
        {\"instruction\":\"two\",\"response\":\"\"}, 17,\n\
        {\"instruction\":\"a\",\n\"response\":\"b\",\n\"response\":\"c\"},\n\
        {\"instruction\":\n?},,\n{\"instruction\":\"\xff\"},\n\
        {\"instruction\":\"three\",\"response\":\"r\"},\n]\n";
    let fates = [
        (3, Row("one", "]},[\"{")),
        (5, Bad(Some("response"), "is empty")),
        (5, Bad(None, "is a number")),
        (6, Bad(Some("response"), "twice")),
        (10, Bad(None, "not valid JSON at column 1")),
        (10, Bad(None, "an element is missing")),
        (11, Bad(None, "not UTF-8 from byte 17")),
        (12, Row("three", "r")),
        (13, Bad(None, "an element is missing")),
    ];
    check("torture.json", file, &fates);
    let cut = b"[{\"instruction\":\"a\",\"response\":\"b\"},\n{\"instr";
    check("cut.json", cut, &[(1, Row("a", "b")), (2, Bad(None, "ends within this element"))]);
    let open = b"[{\"instruction\":\"a\",\"response\":\"b\"}\n";
    assert_eq!(bad_row(open, "a.json").0, 1);
    let after = b"[{\"instruction\":\"a\",\"response\":\"b\"}]\n{}";
    assert_eq!(bad_row(after, "a.json"), (2, None, "text follows the end of the list".into()));
    let long = format!("[\"{}\",\n{{\"instruction\":\"a\",\"response\":\"b\"}}]", "x".repeat(600));
    let fates = [(1, Bad(None, "has 602 bytes")), (2, Row("a", "b"))];
    check("long.json", long.as_bytes(), &fates);
    // A file of that name may also hold one object a line.
    check(
        "lines.json",
        b"\n{\"instruction\":\"a\",\"response\":\"b\"}\n[]",
        &[(1, Blank), (2, Row("a", "b")), (3, Bad(None, "is a list"))],
    );
}

#[test]
fn csv_rows() {
    let mut file = b"\xef\xbb\xbfinstruction, response ,category,id\r\n".to_vec();
    let rows: &[(&[u8], u64, Fate)] = &[
        (b"plain,r,k,1\r\n", 1, Row("plain", "r")),
        (b"lf,r,k,1\n", 1, Row("lf", "r")),
        (b"cr,r,k,1\r", 1, Row("cr", "r")),
        (b"\"quoted, \"\"twice\"\"\",r,k,1\n", 1, Row("quoted, \"twice\"", "r")),
        (b"\"two\nlines\r\nand three\",r,,1\n", 3, Row("two\nlines\r\nand three", "r")),
        (b"5\" screen,r,k,1\n", 1, Row("5\" screen", "r")),
        (b"\n", 1, Blank),
        (b"   \n", 1, Blank),
        (b"unescaped\n", 1, Bad(None, "has 1 fields; the header has 4")),
        (b"break,r,k,1\n", 1, Row("break", "r")),
        (b"a,b,c,d,e\n", 1, Bad(None, "has 5 fields")),
        (b",,,\n", 1, Bad(Some("instruction"), "is empty")),
        (b"i,,k,1\n", 1, Bad(Some("response"), "is empty")),
        (b"\"\",\"\",\"\",\"\"\n", 1, Bad(Some("instruction"), "is empty")),
        (b"\"a\"b,r,k,1\n", 1, Bad(None, "text follows the closing quote of field 1")),
        (b"\xc3\x28,r,k,1\n", 1, Bad(None, "field 1 is not UTF-8 from its byte 1")),
        (b"r,a\0b,k,1\n", 1, Bad(Some("response"), "NUL")),
        ("é\u{2028}x,r,k,1\n".as_bytes(), 1, Row("é\u{2028}x", "r")),
        (&[b'x'; 600], 0, Bad(None, "has 606 bytes")),
        (b",r,k,1\n", 1, Blank),
        (b"last,r,k,1\n", 1, Row("last", "r")),
        (b"open,\"r,k,1\nnever\nclosed\n", 4, Bad(None, "opens field 2 is never closed")),
    ];
    let (mut fates, mut line) = (Vec::new(), 2);
    for (bytes, lines, fate) in rows {
        file.extend_from_slice(bytes);
        let same = match fate {
            Row(a, b) => Row(a, b),
            Blank => Blank,
            Bad(a, b) => Bad(*a, b),
        };
        // The long row is written in two parts: its second part is no row of its own.
        if *bytes != b",r,k,1\n" {
            fates.push((line, same));
        }
        line += lines;
    }
    check("torture.csv", &file, &fates);
}

#[test]
fn csv_headers() {
    let row = |file: &str| bad_row(file.as_bytes(), "a.csv");
    let (line, field, reason) = row("question,answer\na,b\n");
    assert_eq!((line, field.as_deref()), (1, Some("instruction")));
    assert!(reason.contains(r#"there are "question", "answer": map them"#), "{reason}");
    let (line, field, reason) = row("instruction,response,response\na,b,c\n");
    assert_eq!(
        (line, field.as_deref(), &*reason),
        (1, Some("response"), "occurs twice in the header")
    );
    assert!(row("\"instruction,response\na,b\n").2.contains("never closed"));
    assert!(row("instruction,\"response\"x\na,b\n").2.contains("closing quote"));
    let tabs = super::read(b"instruction\tresponse\na\tb, c\n", "a.tsv").unwrap();
    assert_eq!(tabs.get(0).unwrap().response, "b, c");
}

#[test]
fn more_bad_rows_than_are_listed() {
    let mut file = "{}\n".repeat(1000);
    file.push_str("{\"instruction\":\"a\",\"response\":\"b\"}");
    let options = ReadOptions { on_bad_row: OnBadRow::Skip, ..Default::default() };
    let data = Dataset::from_bytes(file.as_bytes(), "a.jsonl", &options).unwrap();
    let summary = &data.summaries()[0];
    assert_eq!((summary.rows, summary.skipped, summary.first_skipped.len()), (1, 1000, 100));
}
