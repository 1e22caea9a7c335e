//! Prefixes that were read before and drafts looked up in the prompt change the work, not a bit of
//! the result (on a device: nothing beyond rounding): every test compares with a pipeline that does
//! neither.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::sync::OnceLock;

use dolly_core::{
    Error, FinishReason, GenerateOptions, Generation, Instruction, Pipeline, Prompt, Usage,
};
use support::{goldens, on_kernels, parity_model, same};

/// dolly-nano with so many bytes for prefixes.
fn nano(prefix_cache: u64) -> Pipeline {
    support::builder("dolly-nano").prefix_cache(prefix_cache).build().unwrap()
}

/// Keeps nothing.
fn plain() -> &'static Pipeline {
    static PIPE: OnceLock<Pipeline> = OnceLock::new();
    PIPE.get_or_init(|| nano(0))
}

fn seeded(seed: u64) -> GenerateOptions {
    GenerateOptions {
        seed: Some(seed),
        max_new_tokens: 12,
        logprobs: Some(3),
        ..Default::default()
    }
}

/// All of an answer that options and prompt decide.
#[derive(Debug)]
struct Essence {
    text: (String, Vec<u32>, FinishReason, u64),
    tokens: (usize, usize),
    logprobs: Vec<f32>,
    /// The likeliest tokens; rounding may order them otherwise.
    top: Vec<u32>,
}

impl PartialEq for Essence {
    fn eq(&self, other: &Self) -> bool {
        (&self.text, self.tokens) == (&other.text, other.tokens)
            && same(&self.logprobs, &other.logprobs)
            && (self.top == other.top || !on_kernels())
    }
}

fn essence(answer: &Generation) -> Essence {
    let (mut logprobs, mut top) = (Vec::new(), Vec::new());
    for token in answer.logprobs.iter().flatten() {
        logprobs.push(token.logprob);
        logprobs.extend(token.top.iter().map(|(_, logprob)| *logprob));
        top.extend(token.top.iter().map(|(id, _)| *id));
    }
    let Usage { prompt_tokens, completion_tokens, .. } = answer.usage;
    let text = (answer.text.clone(), answer.token_ids.clone(), answer.finish_reason, answer.seed);
    Essence { text, tokens: (prompt_tokens, completion_tokens), logprobs, top }
}

fn prompts() -> Vec<Instruction> {
    let passage = "A camel stores fat in its hump. Sheep graze on the moor. ".repeat(12);
    let questions = ["Where do sheep graze?", "What does a camel store?", "Where do sheep live?"];
    let with_passage = questions.map(|question| Instruction::new(question).context(&passage));
    let alone = ["Where do sheep graze?", "Name three colours.", "Name three colours of the sea."];
    alone.map(Instruction::new).into_iter().chain(with_passage).collect()
}

#[test]
fn known_prefixes_change_no_bit() {
    let kept = nano(64 << 20);
    let tight = nano(kept.memory().cache_per_token * 60);
    let mut cached = 0;
    for round in 0..3 {
        for (index, prompt) in prompts().into_iter().enumerate() {
            let options = seeded(round);
            let expected = plain().generate(prompt.clone(), &options).unwrap();
            assert_eq!(expected.usage.cached_tokens, 0);
            for pipe in [&kept, &tight] {
                let answer = pipe.generate(prompt.clone(), &options).unwrap();
                assert_eq!(essence(&answer), essence(&expected), "round {round}, prompt {index}");
                let Usage { cached_tokens, prompt_tokens, .. } = answer.usage;
                assert!(cached_tokens < prompt_tokens);
                if round > 0 && std::ptr::eq(pipe, &kept) {
                    assert_eq!(cached_tokens, prompt_tokens - 1);
                }
                cached += cached_tokens;
            }
        }
    }
    assert!(cached > 0);
    assert_eq!(prefix_bytes(plain()), 0);
    assert!(prefix_bytes(&kept) > 0);
}

#[test]
fn scores_and_logits_are_those_of_a_whole_run() {
    let kept = nano(64 << 20);
    for round in 0..2 {
        for prompt in prompts() {
            let expected = plain().score(prompt.clone(), "On the moor.").unwrap();
            let score = kept.score(prompt.clone(), "On the moor.").unwrap();
            assert!(same(&score.logprobs, &expected.logprobs), "round {round}");
            let answers = ["yes", "no", "on the moor"];
            let expected = plain().classify(prompt.clone(), &answers).unwrap();
            let classes = kept.classify(prompt, &answers).unwrap();
            for (a, b) in classes.iter().zip(&expected) {
                assert!(same(&[a.logprob as f32], &[b.logprob as f32]));
            }
        }
    }
    let ids = kept.tokenizer().encode("Where do sheep graze? Where do sheep live?", false).unwrap();
    kept.complete(Prompt::Ids(&ids), &seeded(1)).unwrap();
    assert!(same(&kept.logits(&ids).unwrap(), &plain().logits(&ids).unwrap()));
}

#[test]
fn requests_that_arrive_together_read_what_they_share_once() {
    let kept = nano(64 << 20);
    let prompt = prompts().remove(3);
    let options = GenerateOptions { num_return_sequences: 6, ..seeded(3) };
    let expected = plain().generate_many(prompt.clone(), &options).unwrap();
    let answers = kept.generate_many(prompt, &options).unwrap();
    let run = |answers: &[Generation]| -> usize {
        answers.iter().map(|one| one.usage.prompt_tokens - one.usage.cached_tokens).sum()
    };
    for (answer, expected) in answers.iter().zip(&expected) {
        assert_eq!(essence(answer), essence(expected));
    }
    let prompt = answers[0].usage.prompt_tokens;
    assert!(prompt > 256, "longer than a step takes: {prompt}");
    assert_eq!((run(&answers), run(&expected)), (prompt + 5, 6 * prompt));
}

#[test]
fn many_callers_share_prefixes_and_get_their_own_answers() {
    let tight = nano(plain().memory().cache_per_token * 100);
    let prompts = prompts();
    let expected: Vec<_> = prompts
        .iter()
        .map(|prompt| essence(&plain().generate(prompt.clone(), &seeded(5)).unwrap()))
        .collect();
    std::thread::scope(|scope| {
        for start in 0..4 {
            let (tight, prompts, expected) = (&tight, &prompts, &expected);
            scope.spawn(move || {
                for turn in 0..prompts.len() {
                    let at = (start + turn) % prompts.len();
                    let answer = tight.generate(prompts[at].clone(), &seeded(5)).unwrap();
                    assert_eq!(essence(&answer), expected[at]);
                }
            });
        }
    });
}

/// A golden model: small, and its ids are easy to make up.
fn golden_pipeline(prefix_cache: u64) -> (tempfile::TempDir, Pipeline) {
    let directory = parity_model("head_dim_80");
    let id = directory.path().to_str().unwrap();
    let pipe = support::builder(id).threads(1).prefix_cache(prefix_cache).build().unwrap();
    (directory, pipe)
}

/// Bytes of kept prefixes after all requests so far: the engine tells them after a step, which the
/// results do not wait for; the next request does.
fn prefix_bytes(pipe: &Pipeline) -> u64 {
    pipe.logits(&[1]).unwrap();
    pipe.memory().prefix_cache
}

fn complete(pipe: &Pipeline, ids: &[u32], tokens: usize) -> Generation {
    let options = GenerateOptions {
        max_new_tokens: tokens,
        ignore_end: true,
        logprobs: Some(2),
        seed: Some(1),
        ..GenerateOptions::greedy()
    };
    pipe.complete(Prompt::Ids(ids), &options).unwrap()
}

#[test]
fn the_budget_is_kept_and_the_least_recently_used_goes() {
    let (_directory, off) = golden_pipeline(0);
    let row = off.memory().cache_per_token;
    // A prompt of 21 ids keeps 20 rows in room for 32, on a device for 64, and four bytes for each
    // of their ids.
    let one = if on_kernels() { 32 } else { 64 } * row + 20 * 4;
    let (_directory, pipe) = golden_pipeline(2 * one + row);
    let [a, b, c] = [3u32, 5, 7].map(|first| (first..first + 21).collect::<Vec<_>>());
    let cached = |ids: &[u32]| {
        let answer = complete(&pipe, ids, 2);
        assert_eq!(essence(&answer), essence(&complete(&off, ids, 2)));
        assert!(prefix_bytes(&pipe) <= 2 * one + row);
        answer.usage.cached_tokens
    };
    assert_eq!([&a, &b, &a, &c, &a, &c].map(|ids| cached(ids)), [0, 0, 20, 0, 20, 20]);
    assert_eq!(cached(&b), 0);
    // a was used before c, so a went.
    assert_eq!(cached(&c), 20);
    assert_eq!(prefix_bytes(&pipe), 2 * one);
    let longer: Vec<u32> = c.iter().copied().chain(40..60).collect();
    assert_eq!(cached(&longer), 20);
    assert_eq!(cached(&longer[..10]), 9);
    assert_eq!(cached(&c[..1]), 0);
}

#[test]
fn running_requests_come_before_kept_prefixes() {
    let (_directory, off) = golden_pipeline(0);
    let (weights, row) = (off.memory().weights, off.memory().cache_per_token);
    let directory = parity_model("head_dim_80");
    let id = directory.path().to_str().unwrap();
    let limit = weights + 64 * row;
    let pipe = support::builder(id).threads(1).memory_limit(limit).build().unwrap();
    let [a, b] = [3u32, 5].map(|first| (first..first + 40).collect::<Vec<_>>());
    for (ids, tokens) in [(&a, 4), (&b, 25), (&b, 2), (&a, 4), (&a, 4)] {
        let answer = complete(&pipe, ids, tokens);
        assert_eq!(essence(&answer), essence(&complete(&off, ids, tokens)));
        assert!(prefix_bytes(&pipe) <= 64 * row);
    }
    let all: Vec<u32> = (0..60).collect();
    assert!(same(&pipe.logits(&all).unwrap(), &off.logits(&all).unwrap()));
    let kept = prefix_bytes(&pipe);
    assert!(kept <= 4 * row, "{kept}");
}

#[test]
fn rows_from_elsewhere_equal_those_of_one_run_on_golden_models() {
    for golden in goldens("head_dim_80") {
        let (_directory, pipe) = golden_pipeline(1 << 24);
        for end in 1..=golden.ids.len().min(24) {
            complete(&pipe, &golden.ids[..end], 1);
        }
        let answer = complete(&pipe, &golden.ids, 64);
        assert_eq!(answer.token_ids, golden.greedy);
        assert!(answer.usage.cached_tokens > 0 || golden.ids.len() < 3);
    }
}

#[test]
fn prompt_lookup_is_lossless_whatever_the_options() {
    let passage = "Sheep graze on the moor, and sheep sleep on the moor. ".repeat(3);
    let prompt = Instruction::new("Repeat: sheep graze on the moor.").context(passage);
    let base = || GenerateOptions { max_new_tokens: 40, logprobs: Some(1), ..Default::default() };
    let variants: Vec<GenerateOptions> = vec![
        GenerateOptions { do_sample: false, ..base() },
        GenerateOptions { do_sample: false, ignore_end: true, max_new_tokens: 97, ..base() },
        base(),
        GenerateOptions { temperature: 0.4, ignore_end: true, ..base() },
        GenerateOptions { temperature: 0.7, repetition_penalty: 1.3, ..base() },
        GenerateOptions { temperature: 0.5, no_repeat_ngram: 4, ignore_end: true, ..base() },
        GenerateOptions { presence_penalty: -1.0, frequency_penalty: -0.5, ..base() },
        GenerateOptions { top_k: 5, min_p: 0.05, typical_p: 0.9, ignore_end: true, ..base() },
        GenerateOptions { temperature: 0.3, stop: vec![" the".into(), ".".into()], ..base() },
        GenerateOptions { do_sample: false, stop: vec!["e".into()], ignore_end: true, ..base() },
        GenerateOptions { return_full_text: true, ..base() },
    ];
    let (mut drafted, mut accepted) = (0, 0);
    for (index, options) in variants.iter().enumerate() {
        let seeds = if options.do_sample { 4 } else { 1 };
        for seed in 0..seeds {
            let options = GenerateOptions { seed: Some(seed), ..options.clone() };
            let expected = plain().generate(prompt.clone(), &options).unwrap();
            assert_eq!((expected.usage.drafted_tokens, expected.usage.accepted_tokens), (0, 0));
            for most in [1, 10] {
                let options = GenerateOptions { prompt_lookup: Some(most), ..options.clone() };
                let mut stream = plain().stream(prompt.clone(), &options).unwrap();
                let pieces: String = stream.by_ref().map(|piece| piece.unwrap()).collect();
                let answer = stream.finish().unwrap();
                assert_eq!(essence(&answer), essence(&expected), "variant {index}, seed {seed}");
                assert_eq!(pieces, answer.text);
                assert_eq!(answer.timings.tokens.len(), answer.token_ids.len());
                assert!(answer.usage.accepted_tokens <= answer.usage.drafted_tokens);
                drafted += answer.usage.drafted_tokens;
                accepted += answer.usage.accepted_tokens;
            }
        }
    }
    assert!(drafted > accepted && accepted > 0, "{accepted} of {drafted} drafted tokens held");
}

/// Options under which the answer is `quote` over and over: biases order its ids, and each use
/// takes an id behind all the others.
fn quoting(quote: &[u32], tokens: usize) -> GenerateOptions {
    let bias = |rank: usize| 10_000.0 - 10.0 * rank as f32;
    GenerateOptions {
        logit_bias: quote.iter().enumerate().map(|(rank, id)| (*id, bias(rank))).collect(),
        frequency_penalty: 100.0,
        max_new_tokens: tokens,
        ignore_end: true,
        seed: Some(1),
        ..GenerateOptions::greedy()
    }
}

#[test]
fn an_answer_that_quotes_its_prompt_takes_few_steps() {
    let (_directory, pipe) = golden_pipeline(1 << 24);
    let quote = [11, 12, 13, 14, 15, 16, 17, 18, 19];
    let prompt = [[3, 4].as_slice(), &quote, &quote].concat();
    let run = |prompt_lookup| {
        let options = GenerateOptions { prompt_lookup, ..quoting(&quote, 41) };
        pipe.complete(Prompt::Ids(&prompt), &options).unwrap()
    };
    let expected = run(None);
    let cycle: Vec<u32> = quote.iter().copied().cycle().take(41).collect();
    assert_eq!(expected.token_ids, cycle);
    let steps = |most| {
        let answer = run(Some(most));
        assert_eq!(essence(&answer), essence(&expected));
        assert_eq!(answer.usage.drafted_tokens, answer.usage.accepted_tokens);
        answer.usage.completion_tokens - answer.usage.accepted_tokens
    };
    // One token of the prompt's step, then drafts of 4, 8, 16 and as many as are left.
    assert_eq!([steps(1), steps(10), steps(64)], [21, 6, 5]);
}

#[test]
fn drafts_end_where_the_answer_and_the_context_end() {
    let (_directory, pipe) = golden_pipeline(0);
    let quote = [11, 12, 13, 14];
    let context = pipe.context_length();
    for room in [1, 2, 3, 4, 5, 9] {
        let prompt: Vec<u32> = quote.iter().copied().cycle().take(context - room).collect();
        let options = GenerateOptions { prompt_lookup: Some(64), ..quoting(&quote, 100) };
        let answer = pipe.complete(Prompt::Ids(&prompt), &options).unwrap();
        let expected = GenerateOptions { prompt_lookup: None, ..options };
        let expected = pipe.complete(Prompt::Ids(&prompt), &expected).unwrap();
        assert_eq!(essence(&answer), essence(&expected), "room for {room}");
        assert_eq!((answer.token_ids.len(), answer.finish_reason), (room, FinishReason::Length));
    }
}

#[test]
fn mixed_requests_keep_their_answers() {
    let kept = nano(64 << 20);
    let work: Vec<_> = prompts()
        .into_iter()
        .flat_map(|prompt| [None, Some(3), Some(20)].map(|lookup| (prompt.clone(), lookup)))
        .collect();
    let options = |prompt_lookup: Option<usize>| GenerateOptions {
        temperature: 0.5,
        max_new_tokens: 10 + prompt_lookup.unwrap_or(6),
        prompt_lookup,
        ..seeded(11)
    };
    let alone = |(prompt, lookup): &(Instruction, Option<usize>)| {
        let options = GenerateOptions { prompt_lookup: None, ..options(*lookup) };
        essence(&plain().generate(prompt.clone(), &options).unwrap())
    };
    let expected: Vec<_> = work.iter().map(alone).collect();
    let streams: Vec<_> = work
        .iter()
        .map(|(prompt, lookup)| kept.stream(prompt.clone(), &options(*lookup)).unwrap())
        .collect();
    let scores = kept.classify("Do sheep graze?", &["yes", "no"]).unwrap();
    for (stream, expected) in streams.into_iter().zip(&expected) {
        assert_eq!(essence(&stream.finish().unwrap()), *expected);
    }
    let expected = plain().classify("Do sheep graze?", &["yes", "no"]).unwrap();
    assert!(same(&[scores[0].logprob as f32], &[expected[0].logprob as f32]));
}

#[test]
fn cancelled_drafts_leave_the_pipeline_usable() {
    let (_directory, pipe) = golden_pipeline(1 << 24);
    let quote = [11, 12, 13, 14, 15];
    let options = GenerateOptions { prompt_lookup: Some(8), ..quoting(&quote, 90) };
    let whole = pipe.complete(Prompt::Ids(&quote), &options).unwrap();
    let mut stream = pipe.complete_stream(Prompt::Ids(&quote), &options).unwrap();
    stream.next().unwrap().unwrap();
    stream.cancel();
    let cut = stream.finish().unwrap();
    assert!(whole.token_ids.starts_with(&cut.token_ids));
    drop(pipe.complete_stream(Prompt::Ids(&quote), &options).unwrap());
    assert_eq!(essence(&pipe.complete(Prompt::Ids(&quote), &options).unwrap()), essence(&whole));
}

#[test]
fn lengths_of_drafts_have_a_range() {
    for n in [0, 65, usize::MAX] {
        let options = GenerateOptions { prompt_lookup: Some(n), ..seeded(1) };
        match plain().generate("Hi", &options) {
            Err(Error::InvalidOption { name, .. }) => assert_eq!(name, "prompt_lookup"),
            other => panic!("{other:?}"),
        }
    }
}

#[cfg(feature = "candle")]
#[test]
fn the_reference_copies_and_drafts_too() {
    let directory = parity_model("head_dim_80");
    let id = directory.path().to_str().unwrap();
    let build = |bytes| support::builder(id).reference(true).prefix_cache(bytes).build().unwrap();
    let (off, kept) = (build(0), build(1 << 24));
    for golden in goldens("head_dim_80") {
        for prompt_lookup in [None, Some(8)] {
            let options = GenerateOptions {
                max_new_tokens: 64,
                ignore_end: true,
                prompt_lookup,
                ..GenerateOptions::greedy()
            };
            for pipe in [&off, &kept, &kept] {
                let answer = pipe.complete(Prompt::Ids(&golden.ids), &options).unwrap();
                assert_eq!(answer.token_ids, golden.greedy);
            }
        }
    }
}
