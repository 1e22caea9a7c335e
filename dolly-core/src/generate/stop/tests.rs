use proptest::prelude::*;

use super::*;
use crate::prompt::strip;

fn strings(stops: &[&str]) -> Vec<String> {
    stops.iter().map(|stop| (*stop).to_owned()).collect()
}

/// The answer by search in the whole text: the match that ends first, of these the longest.
fn whole(text: &str, stops: &[String]) -> (String, bool) {
    let found = stops
        .iter()
        .filter_map(|stop| text.find(stop.as_str()).map(|start| (start + stop.len(), start)));
    match found.min() {
        Some((_, start)) => (text[..start].to_owned(), true),
        None => (text.to_owned(), false),
    }
}

/// Pieces of `text`, cut at characters `cuts` (taken modulo its length).
fn pieces<'a>(text: &'a str, cuts: &[usize]) -> Vec<&'a str> {
    let borders: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
    let mut at: Vec<usize> =
        cuts.iter().filter_map(|cut| borders.get(cut % borders.len().max(1)).copied()).collect();
    at.extend([0, text.len()]);
    at.sort_unstable();
    at.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect()
}

/// The longest end of `text` that a stop text starts with.
fn must_wait(text: &str, stops: &[String]) -> usize {
    let waits = |stop: &String| {
        let lens = (1..stop.len()).rev().filter(|len| stop.is_char_boundary(*len));
        lens.into_iter().find(|len| text.ends_with(&stop[..*len])).unwrap_or(0)
    };
    stops.iter().map(waits).max().unwrap_or(0)
}

proptest! {
    #[test]
    fn any_split_stops_as_the_whole_text_does(
        text in "[abé€😀]{0,40}",
        stops in prop::collection::vec("[abé€😀]{1,5}", 0..5),
        cuts in prop::collection::vec(any::<usize>(), 0..20),
    ) {
        let mut stop = StopStrings::new(&stops).unwrap();
        let (mut emitted, mut seen, mut stopped) = (String::new(), String::new(), false);
        for piece in pieces(&text, &cuts) {
            let outcome = stop.push(piece);
            seen.push_str(piece);
            emitted.push_str(&outcome.emit);
            stopped = outcome.stopped;
            prop_assert_eq!(outcome.matched.is_some(), stopped);
            if let Some(index) = outcome.matched {
                let (before, _) = whole(&text, &stops);
                prop_assert!(text[before.len()..].starts_with(&stops[index]));
            } else {
                // Nothing is held back longer than a stop text could need it.
                prop_assert_eq!(emitted.len(), seen.len() - must_wait(&seen, &stops));
            }
        }
        emitted.push_str(&stop.finish());
        prop_assert_eq!((emitted, stopped), whole(&text, &stops));
    }

    #[test]
    fn any_split_is_trimmed_as_the_whole_text(
        text in "[a \n\u{1c}\u{1f}\u{3000}\u{85}é]{0,30}",
        cuts in prop::collection::vec(any::<usize>(), 0..20),
    ) {
        let mut trim = Trim::new();
        let (mut emitted, mut seen) = (String::new(), String::new());
        for piece in pieces(&text, &cuts) {
            seen.push_str(piece);
            emitted.push_str(&trim.push(piece));
            prop_assert_eq!(&emitted, strip(&seen));
        }
    }
}

#[test]
fn near_misses_are_given_out() {
    let mut stop = StopStrings::new(&strings(&["aab", "###"])).unwrap();
    assert_eq!(stop.push("aa").emit, "");
    assert_eq!(stop.push("a").emit, "a");
    assert_eq!(stop.push("#").emit, "aa");
    assert_eq!(stop.finish(), "#");
    // What was given out at the end is no longer part of a match.
    assert_eq!(stop.push("##").emit, "");
    assert_eq!(stop.finish(), "##");
}

#[test]
fn nothing_follows_a_stop() {
    let mut stop = StopStrings::new(&strings(&["abcd", "bc"])).unwrap();
    let outcome = stop.push("xabcd");
    assert_eq!((outcome.emit.as_str(), outcome.matched), ("xa", Some(1)));
    let after = stop.push("more");
    assert!(after.stopped && after.emit.is_empty() && after.matched == Some(1));
    assert_eq!(stop.finish(), "");
}

#[test]
fn the_longest_of_those_that_end_together() {
    let mut stop = StopStrings::new(&strings(&["b", "ab", "ab"])).unwrap();
    assert_eq!(stop.push("xab").matched, Some(1));
}

#[test]
fn empty_texts_are_refused() {
    let error = StopStrings::new(&strings(&["a", ""])).unwrap_err();
    assert!(matches!(error, Error::InvalidOption { name: "stop", .. }));
    let mut none = StopStrings::new(&[]).unwrap();
    assert_eq!(none.push(" a ").emit, " a ");
}

/// The characters for which Python's `str.isspace()` holds, which is what `str.strip()` removes.
#[test]
fn blank_space_is_pythons() {
    let golden = include_str!("../../../../tests/golden/sampler.json");
    let golden: serde_json::Value = serde_json::from_str(golden).unwrap();
    let spaces: Vec<u64> =
        golden["python_spaces"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap()).collect();
    let ours = ('\0'..=char::MAX).filter(|c| is_python_space(*c)).map(|c| u64::from(u32::from(c)));
    assert_eq!(ours.collect::<Vec<_>>(), spaces);
}
