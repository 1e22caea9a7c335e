use super::*;
use crate::tokenizer::tests::gunzip;

/// Made by `tests/golden/make_trainer.py` with transformers' `add_special_tokens`.
const GOLDEN: &str = include_str!("../../../../tests/golden/trainer/examples.json");

fn origin() -> &'static Path {
    Path::new("tokenizer.json")
}

fn base() -> TokenizerFile {
    TokenizerFile::new(gunzip("gpt-neox-20b-tokenizer.json.gz"), origin()).unwrap()
}

#[test]
fn ids_are_those_of_transformers() {
    let golden: Value = serde_json::from_str(GOLDEN).unwrap();
    let before = base();
    let after = before.clone().with_dolly_tokens(origin()).unwrap();
    assert_eq!(after.tokenizer.vocab_size() as u64, golden["length"].as_u64().unwrap());
    for (key, id) in golden["keys"].as_object().unwrap() {
        let found = after.tokenizer.id_of(key).unwrap();
        assert_eq!(u64::from(found), id.as_u64().unwrap());
        assert!(after.tokenizer.is_special(found));
    }
    let text = "  Some text,\n\twith blanks     and 維也納.";
    let ids = |file: &TokenizerFile| file.tokenizer.encode(text, true).unwrap();
    assert_eq!(ids(&before), ids(&after));
}

#[test]
fn a_tokenizer_that_has_them_stays_as_it_is() {
    let once = base().with_dolly_tokens(origin()).unwrap();
    let twice = once.clone().with_dolly_tokens(origin()).unwrap();
    assert_eq!(once.json, twice.json);
}

/// The published form of dolly-v2-3b, and a tokenizer that lacks one of the three.
#[test]
fn only_missing_tokens_are_added() {
    let mut tree: Value = serde_json::from_slice(&base().json).unwrap();
    let added = tree["added_tokens"].as_array_mut().unwrap();
    for (id, content) in [(50277, "### Response:"), (50278, "### End")] {
        added.push(json!({"id": id, "content": content, "special": true, "normalized": false}));
    }
    let file = TokenizerFile::new(serde_json::to_vec(&tree).unwrap(), origin()).unwrap();
    let file = file.with_dolly_tokens(origin()).unwrap();
    let prompt = DollyPrompt::new(&file.tokenizer);
    let ids = [prompt.response_id(), prompt.end_id(), prompt.instruction_id()];
    assert_eq!(ids, [Some(50277), Some(50278), Some(50279)]);
    assert_eq!(file.tokenizer.vocab_size(), 50280);
}

/// A key that is there as a token but not a special one becomes special and keeps its id.
#[test]
fn a_plain_token_becomes_special() {
    let mut tree: Value = serde_json::from_slice(&base().json).unwrap();
    let added = tree["added_tokens"].as_array_mut().unwrap();
    added.push(json!({"id": 50277, "content": "### Instruction:", "special": false}));
    let file = TokenizerFile::new(serde_json::to_vec(&tree).unwrap(), origin()).unwrap();
    let file = file.with_dolly_tokens(origin()).unwrap();
    let prompt = DollyPrompt::new(&file.tokenizer);
    let ids = [prompt.instruction_id(), prompt.end_id(), prompt.response_id()];
    assert_eq!(ids, [Some(50277), Some(50278), Some(50279)]);
}
