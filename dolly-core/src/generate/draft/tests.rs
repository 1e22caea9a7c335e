use proptest::prelude::*;

use super::*;

fn drafter(most: usize) -> Drafter {
    Drafter::new(most, 1000).unwrap()
}

/// The definition: runs of three, then of two; of equal ones the latest.
fn follower_by_windows(history: &[u32]) -> Option<usize> {
    [3, 2].into_iter().find_map(|run| {
        let tail = history.get(history.len().checked_sub(run)?..)?;
        let before = history.get(..history.len() - 1)?;
        before.windows(run).rposition(|window| window == tail).map(|at| at + run)
    })
}

proptest! {
    #[test]
    fn the_latest_longest_run_is_found(history in prop::collection::vec(0u32..4, 0..40)) {
        prop_assert_eq!(follower(&history), follower_by_windows(&history));
    }

    /// Whatever the answer turns out to be: drafts have the room given and come from the history.
    #[test]
    fn drafts_stay_within_their_bounds(
        prompt in prop::collection::vec(0u32..5, 1..30),
        answer in prop::collection::vec(0u32..5, 1..60),
        most in 1usize..65,
        room in 0usize..20,
    ) {
        let mut drafter = drafter(most);
        let (mut at, mut steps, mut drafted) = (1, 1, 0);
        drafter.note_token();
        while at < answer.len() {
            let draft = drafter.draft(&prompt, &answer[..at], room).to_vec();
            prop_assert!(draft.len() <= room.min(most));
            prop_assert!(draft.iter().all(|id| prompt.contains(id) || answer[..at].contains(id)));
            drafted += draft.len();
            let held = draft.iter().zip(&answer[at..]).take_while(|(a, b)| a == b).count();
            let given = (held + 1).min(answer.len() - at);
            (0..given).for_each(|_| drafter.note_token());
            at += given;
            steps += 1;
        }
        prop_assert_eq!((drafter.drafted, drafter.accepted), (drafted, answer.len() - steps));
    }
}

#[test]
fn a_quote_is_foretold_from_its_third_token_on() {
    let prompt = [1, 2, 3, 4, 5, 6, 7, 8, 9];
    let mut drafter = drafter(8);
    drafter.note_token();
    assert!(drafter.draft(&prompt, &[3], 8).is_empty());
    drafter.note_token();
    assert_eq!(drafter.draft(&prompt, &[3, 4], 8), [5, 6, 7, 8]);
    (0..5).for_each(|_| drafter.note_token());
    // All held: the next draft may be twice as long, as far as there is anything to quote.
    assert_eq!(drafter.draft(&prompt, &[3, 4, 5, 6, 7, 8, 9], 8), [3, 4, 5, 6, 7, 8, 9, 3]);
    assert_eq!((drafter.drafted, drafter.accepted), (12, 4));
}

#[test]
fn a_repetition_goes_on_as_long_as_the_draft() {
    assert_eq!(drafter(6).draft(&[9], &[5, 6, 5, 6], 4), [5, 6, 5, 6]);
    assert_eq!(drafter(6).draft(&[9], &[7, 7, 7], 3), [7, 7, 7]);
    assert!(drafter(6).draft(&[9], &[7, 7], 3).is_empty());
}

#[test]
fn drafts_that_never_hold_become_rare() {
    // Every pair of tokens stood before, and what followed never comes.
    let mut answer = vec![1, 1, 1];
    let mut drafter = drafter(10);
    let (mut drafts, mut tokens) = (0, 0);
    for step in 0..1000 {
        let draft = drafter.draft(&[1, 1, 1, 2], &answer, 10).len();
        drafts += usize::from(draft > 0);
        tokens += draft;
        drafter.note_token();
        answer.extend([1000 + step, 1, 1, 1]);
    }
    assert!((60..75).contains(&drafts), "{drafts}");
    assert!(tokens <= drafts + 5, "{tokens}");
    assert_eq!((drafter.drafted, drafter.accepted), (tokens, 0));
}
