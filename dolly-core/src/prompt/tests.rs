use super::*;
use crate::tokenizer::tests::{dolly, neox_json};

/// The ids the original gives for "State the meaning of life.", second form of the response key.
const REFERENCE: [u32; 35] = [
    30003, 310, 271, 9775, 326, 8631, 247, 4836, 15, 19566, 247, 2380, 326, 20420, 29141, 253,
    2748, 15, 535, 50278, 187, 5443, 253, 4495, 273, 1495, 15, 535, 50279, 187, 0, 0, 0, 0, 0,
];

#[test]
fn reference_encoding_in_both_forms() {
    for (newline, len) in [(true, 29), (false, 30)] {
        let tokenizer = dolly(newline);
        let prompt = DollyPrompt::new(&tokenizer);
        assert_eq!(prompt.instruction_id(), Some(50278));
        assert_eq!(prompt.response_id(), Some(50279));
        assert_eq!(prompt.end_id(), Some(50277));
        for mode in [PromptMode::Safe, PromptMode::Hf] {
            let ids = prompt.encode(&tokenizer, &"State the meaning of life.".into(), mode);
            assert_eq!(ids.unwrap(), REFERENCE[..len], "{newline} {mode:?}");
        }
    }
}
