use proptest::prelude::*;
use rand_chacha::rand_core::RngCore;
use serde_json::Value;

use super::*;

const GOLDEN: &str = include_str!("../../../../tests/golden/sampler.json");
const PROCESSORS: &str = include_str!("../../../../tests/golden/processors.json");

/// Options that change nothing.
fn plain() -> GenerateOptions {
    GenerateOptions { top_p: 1.0, ..GenerateOptions::default() }
}

fn floats(value: &Value) -> Vec<f32> {
    let values = value.as_array().unwrap().iter();
    values.map(|v| v.as_f64().map_or(f32::NEG_INFINITY, |x| x as f32)).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

fn golden_options(value: &Value) -> GenerateOptions {
    let mut options = plain();
    for (name, value) in value.as_object().unwrap() {
        let number = value.as_f64().unwrap_or_default() as f32;
        let count = value.as_u64().unwrap_or_default() as usize;
        match name.as_str() {
            "do_sample" => options.do_sample = value.as_bool().unwrap(),
            "repetition_penalty" => options.repetition_penalty = number,
            "presence_penalty" => options.presence_penalty = number,
            "frequency_penalty" => options.frequency_penalty = number,
            "no_repeat_ngram" | "no_repeat_ngram_size" => options.no_repeat_ngram = count,
            "temperature" => options.temperature = number,
            "top_k" => options.top_k = count,
            "top_p" => options.top_p = number,
            "min_p" => options.min_p = number,
            "typical_p" => options.typical_p = number,
            "logit_bias" if value.is_object() => {
                let pairs = value.as_object().unwrap().iter();
                let pair = |(id, bias): (&String, &Value)| {
                    (id.parse().unwrap(), bias.as_f64().unwrap() as f32)
                };
                options.logit_bias = pairs.map(pair).collect();
            }
            "logit_bias" => {
                let pairs = value.as_array().unwrap().iter();
                options.logit_bias =
                    pairs.map(|pair| (pair[0].as_u64().unwrap() as u32, floats(pair)[1])).collect();
            }
            other => panic!("golden option {other}"),
        }
    }
    options
}

/// What `options` leave of `logits`, and the ids kept, ascending.
fn apply(
    options: &GenerateOptions,
    logits: &[f32],
    prompt: &[u32],
    generated: &[u32],
) -> (Vec<f32>, Vec<u32>) {
    let mut sampler = Sampler::new(options, 1, logits.len()).unwrap();
    let mut scores = logits.to_vec();
    sampler.processors.apply(&mut scores, prompt, generated).unwrap();
    if options.do_sample {
        scores.iter_mut().for_each(|score| *score /= options.temperature);
    } else {
        sampler.filters = Filters { top_k: 0, top_p: 1.0, min_p: 0.0, typical_p: 1.0 };
    }
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    sampler.selection.select(&scores, max, &sampler.filters).unwrap();
    (scores, sampler.selection.ids())
}

fn finite_ids(scores: &[f32]) -> Vec<u32> {
    (0u32..).zip(scores).filter(|(_, score)| score.is_finite()).map(|(id, _)| id).collect()
}

/// Kept tokens and probabilities equal transformers' own, and so does the greedy choice.
#[test]
fn agrees_with_transformers() {
    let golden: Value = serde_json::from_str(GOLDEN).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() > 80);
    for case in cases {
        let (prompt, generated) = (ids(&case["prompt"]), ids(&case["generated"]));
        let (logits, want) = (floats(&case["logits"]), floats(&case["scores"]));
        let options = golden_options(&case["options"]);
        let mut sampler = Sampler::new(&options, 1, logits.len()).unwrap();
        // A second pick must find its scratch clean.
        for _ in 0..2 {
            let picked = sampler.pick(&logits, &prompt, &generated).unwrap();
            assert!(want[picked.id as usize].is_finite(), "{}", case["options"]);
            if !options.do_sample {
                assert_eq!(u64::from(picked.id), case["argmax"].as_u64().unwrap());
            }
        }
        let (scores, kept) = apply(&options, &logits, &prompt, &generated);
        assert_eq!(kept, finite_ids(&want), "{}", case["options"]);
        let weight = |id: u32| libm::exp(f64::from(scores[id as usize]));
        let total: f64 = kept.iter().map(|id| weight(*id)).sum();
        for id in kept {
            let probability = case["probabilities"][id as usize].as_f64().unwrap();
            assert!((weight(id) / total - probability).abs() < 2e-6, "{}", case["options"]);
        }
    }
}

/// A second set of vectors, with each of transformers' processors called by itself.
#[test]
fn agrees_with_single_processors() {
    let golden: Value = serde_json::from_str(PROCESSORS).unwrap();
    let cases = |name: &str| golden[name].as_array().unwrap().clone();
    let mut compared = 0;
    for case in cases("cases").iter().chain(&cases("openai")) {
        let options = match case["options"].as_object() {
            Some(options) => golden_options(&Value::Object(options.clone())),
            None => {
                let steps = case["steps"].as_array().unwrap().iter();
                let named = steps.map(|step| (step[0].as_str().unwrap().into(), step[1].clone()));
                golden_options(&Value::Object(named.collect()))
            }
        };
        // transformers allows a min_p of 1, which leaves what top_k = 1 leaves.
        if options.validate().is_err() {
            assert_eq!(options.min_p, 1.0);
            continue;
        }
        let vector = &golden["vectors"][case["vector"].as_u64().unwrap() as usize];
        let (prompt, generated) = (ids(&vector["prompt_ids"]), ids(&vector["generated_ids"]));
        let want = floats(&case["expected"]);
        let (scores, kept) = apply(&options, &floats(&vector["logits"]), &prompt, &generated);
        match case["splits_tie"].as_bool() {
            Some(true) => assert_eq!(kept.len(), finite_ids(&want).len(), "{case}"),
            _ => {
                assert_eq!(kept, finite_ids(&want), "{case}");
                let close = |id: &u32| (scores[*id as usize] - want[*id as usize]).abs() < 1e-5;
                assert!(kept.iter().all(close), "{case}");
            }
        }
        compared += 1;
    }
    assert!(compared > 100, "{compared}");
}

/// The filters by a full sort in f64; `None` where a limit is met within rounding.
fn reference(scores: &[f32], filters: &Filters) -> Option<Vec<u32>> {
    let mut kept: Vec<(f64, u32)> = (0u32..)
        .zip(scores)
        .map(|(id, score)| (f64::from(*score), id))
        .filter(|(score, _)| score.is_finite())
        .collect();
    let by_score = |a: &(f64, u32), b: &(f64, u32)| b.partial_cmp(a).unwrap();
    kept.sort_by(by_score);
    let max = kept[0].0;
    let total = |kept: &[(f64, u32)]| kept.iter().map(|t| libm::exp(t.0 - max)).sum::<f64>();
    let close = |a: f64, b: f64| (a - b).abs() < 1e-11;
    if filters.top_k > 0 && filters.top_k < kept.len() {
        let threshold = kept[filters.top_k - 1].0;
        kept.retain(|t| t.0 >= threshold);
    }
    if filters.top_p < 1.0 {
        let (whole, mut before, mut count) = (total(&kept), 0.0, 0);
        for token in &kept {
            if close(before / whole, filters.top_p) {
                return None;
            }
            if before / whole < filters.top_p {
                count += 1;
            }
            before += libm::exp(token.0 - max);
        }
        kept.truncate(count);
    }
    if kept.iter().any(|t| close(libm::exp(t.0 - max), filters.min_p)) {
        return None;
    }
    kept.retain(|t| libm::exp(t.0 - max) >= filters.min_p);
    if filters.typical_p < 1.0 {
        let whole = total(&kept);
        let surprise = |t: &(f64, u32)| whole.ln() - (t.0 - max);
        let entropy: f64 = kept.iter().map(|t| surprise(t) * libm::exp(-surprise(t))).sum();
        let distance = |t: &(f64, u32)| (surprise(t) - entropy).abs();
        let mut order = kept.clone();
        order.sort_by(|a, b| distance(a).total_cmp(&distance(b)));
        let (mut mass, mut limit) = (0.0, f64::INFINITY);
        for token in &order {
            mass += libm::exp(-surprise(token));
            if close(mass, filters.typical_p) {
                return None;
            }
            if mass >= filters.typical_p {
                limit = distance(token);
                break;
            }
        }
        let doubtful =
            |t: &(f64, u32)| close(distance(t), limit) && distance(t).to_bits() != limit.to_bits();
        if kept.iter().any(doubtful) {
            return None;
        }
        kept.retain(|t| distance(t) <= limit);
    }
    let mut ids: Vec<u32> = kept.into_iter().map(|t| t.1).collect();
    ids.sort_unstable();
    Some(ids)
}

fn any_scores() -> impl Strategy<Value = Vec<f32>> {
    let fine = prop::collection::vec(-12.0f32..6.0, 1..700);
    let flat = prop::collection::vec(-0.01f32..0.01, 1..700);
    let tied = prop::collection::vec((-9i8..9).prop_map(|n| f32::from(n) / 2.0), 1..200);
    let banned = prop::collection::vec(
        prop_oneof![3 => -5.0f32..5.0, 1 => Just(f32::NEG_INFINITY), 1 => Just(-0.0f32)],
        1..200,
    );
    prop_oneof![fine, flat, tied, banned]
        .prop_filter("a finite score", |scores| scores.iter().any(|score| score.is_finite()))
}

fn any_filters() -> impl Strategy<Value = Filters> {
    let off_or = |off: f64, range: std::ops::Range<f64>| prop_oneof![Just(off), range];
    (
        prop_oneof![Just(0usize), 1..700usize],
        prop_oneof![Just(1.0), 0.0001f64..1.0, 0.99f64..0.999_999],
        off_or(0.0, 0.000_01..0.99),
        off_or(1.0, 0.001..1.0),
    )
        .prop_map(|(top_k, top_p, min_p, typical_p)| Filters {
            top_k,
            top_p,
            min_p,
            typical_p,
        })
}

proptest! {
    #[test]
    fn selects_what_a_full_sort_selects(scores in any_scores(), filters in any_filters()) {
        let Some(want) = reference(&scores, &filters) else { return Ok(()) };
        let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut selection = Selection::default();
        selection.select(&scores, max, &filters).unwrap();
        prop_assert_eq!(selection.ids(), want);
    }

    #[test]
    fn exponential_is_within_two_ulp(x in -708.0f64..=0.0) {
        let (got, want) = (super::super::select::exp([x])[0], libm::exp(x));
        prop_assert!((got - want).abs() <= 2.0 * (want.next_up() - want), "{} {}", got, want);
    }

    /// Whatever the logits and options, a pick is an allowed token or a typed error.
    #[test]
    fn never_panics(
        logits in prop::collection::vec(any::<u32>().prop_map(f32::from_bits), 8),
        temperature in prop_oneof![Just(0.0f32), 1e-6f32..1e-4, 0.1f32..100.0],
        history in prop::collection::vec(any::<u32>().prop_map(|id| id % 10), 0..20),
        ngram in 0usize..4,
        penalty in prop_oneof![Just(1.0f32), Just(f32::MIN_POSITIVE), 0.1f32..100.0],
        bias in prop::collection::vec((0u32..8, prop_oneof![Just(f32::MAX), -9f32..9.0]), 0..4),
    ) {
        let options = GenerateOptions {
            temperature, no_repeat_ngram: ngram, repetition_penalty: penalty,
            presence_penalty: 0.5, logit_bias: bias, logprobs: Some(3), ..plain()
        };
        let mut sampler = Sampler::new(&options, 3, 8).unwrap();
        match sampler.pick(&logits, &history, &[]) {
            Ok(picked) => prop_assert!(logits[picked.id as usize].is_finite()),
            Err(error) => prop_assert!(matches!(error, Error::InvalidInput(_)), "{}", error),
        }
    }

    #[test]
    fn logprobs_are_the_log_softmax(logits in prop::collection::vec(-30f32..30.0, 3..300)) {
        let options = GenerateOptions { logprobs: Some(5), temperature: 2.0, ..plain() };
        let mut sampler = Sampler::new(&options, 3, logits.len()).unwrap();
        let picked = sampler.pick(&logits, &[], &[]).unwrap();
        let total: f64 = logits.iter().map(|x| libm::exp(f64::from(*x))).sum();
        let want = |id: u32| f64::from(logits[id as usize]) - total.ln();
        prop_assert!((f64::from(picked.logprob) - want(picked.id)).abs() < 1e-5);
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
        order.truncate(5);
        prop_assert_eq!(picked.top.iter().map(|t| t.0).collect::<Vec<_>>(), order);
        for (id, logprob) in picked.top {
            prop_assert!((f64::from(logprob) - want(id)).abs() < 1e-5);
        }
    }
}

#[test]
fn exponential_at_its_ends() {
    let got = super::super::select::exp([0.0, -709.0, f64::NEG_INFINITY]);
    assert_eq!(got, [1.0, 0.0, 0.0]);
}

/// Draws follow the distribution: chi-square with 9 degrees of freedom, 99.9% quantile 27.88
/// (scipy.stats.chi2.ppf(0.999, 9)).
#[test]
fn draws_follow_the_probabilities() {
    let logits: Vec<f32> = (0..10).map(|i| (i as f32 * 0.37).sin() * 2.0).collect();
    let total: f64 = logits.iter().map(|x| libm::exp(f64::from(*x))).sum();
    for seed in [1, 2, 3] {
        let mut sampler = Sampler::new(&plain(), seed, 10).unwrap();
        let (draws, mut counts) = (100_000, [0.0f64; 10]);
        for _ in 0..draws {
            counts[sampler.pick(&logits, &[], &[]).unwrap().id as usize] += 1.0;
        }
        let expected = |x: &f32| libm::exp(f64::from(*x)) / total * f64::from(draws);
        let pairs = counts.iter().zip(&logits);
        let chi: f64 = pairs.map(|(n, x)| (n - expected(x)).powi(2) / expected(x)).sum();
        assert!(chi < 27.88, "seed {seed}: {chi}");
    }
}

/// The documented draw: one 53-bit uniform per token, inverse transform over ascending ids.
#[test]
fn draws_are_those_documented() {
    let logits: Vec<f32> = (0..300).map(|i| ((i * 7919) % 101) as f32 * 0.05).collect();
    let weights: Vec<f64> = logits.iter().map(|x| libm::exp(f64::from(*x) - 5.0)).collect();
    let total: f64 = weights.iter().sum();
    let mut sampler = Sampler::new(&plain(), 99, 300).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(99);
    for _ in 0..500 {
        let uniform = (rng.next_u64() >> 11) as f64 * 2f64.powi(-53);
        let mut sum = 0.0;
        let drawn = weights.iter().position(|w| {
            sum += w;
            sum > uniform * total
        });
        assert_eq!(sampler.pick(&logits, &[], &[]).unwrap().id, drawn.unwrap() as u32);
    }
}

#[test]
fn filters_do_not_shift_the_generator() {
    let logits: Vec<f32> = (0..50).map(|i| i as f32 * 0.1).collect();
    let narrow = GenerateOptions { top_k: 1, ..plain() };
    let (mut a, mut b) =
        (Sampler::new(&narrow, 5, 50).unwrap(), Sampler::new(&plain(), 5, 50).unwrap());
    a.pick(&logits, &[], &[]).unwrap();
    b.pick(&logits, &[], &[]).unwrap();
    assert_eq!(a.rng, b.rng);
}

#[test]
fn seeds_of_answers_differ() {
    let seeds: std::collections::HashSet<u64> = (0..1024).map(|i| derive_seed(7, i)).collect();
    assert_eq!((seeds.len(), derive_seed(7, 0)), (1024, 7));
    // SplitMix64 from state 1234567: first outputs of the authors' splitmix64.c.
    assert_eq!(derive_seed(1_234_567, 1), 6_457_827_717_110_365_317);
    assert_eq!(derive_seed(1_234_567, 2), 3_203_168_211_198_807_973);
    assert_ne!(fresh_seed(), fresh_seed());
}

#[test]
fn greedy_where_nothing_can_be_drawn() {
    let logits = [1.0, 3.0, 3.0, 2.0];
    for temperature in [0.0, 1e-7] {
        let options = GenerateOptions { temperature, ..plain() };
        let mut sampler = Sampler::new(&options, 1, 4).unwrap();
        assert_eq!(sampler.pick(&logits, &[], &[]).unwrap().id, 1);
    }
    let options = GenerateOptions { temperature: 0.01, ..plain() };
    let mut sampler = Sampler::new(&options, 1, 3).unwrap();
    assert_eq!(sampler.pick(&[-1.0, 3e38, 1.0], &[], &[]).unwrap().id, 1);
    assert_eq!(sampler.pick(&[-3.2e38, f32::MIN, -3.1e38], &[], &[]).unwrap().id, 2);
}

fn refusal(options: GenerateOptions, logits: &[f32], history: &[u32]) -> String {
    let mut sampler = Sampler::new(&options, 1, logits.len()).unwrap();
    let error = sampler.pick(logits, &[], history).unwrap_err();
    assert!(matches!(error, Error::InvalidInput(_)));
    error.to_string()
}

#[test]
fn bad_logits_are_refused_by_name() {
    let none = f32::NEG_INFINITY;
    for greedy in [plain(), GenerateOptions::greedy()] {
        let text = refusal(greedy.clone(), &[0.0, f32::NAN, 1.0], &[4, 4]);
        assert!(text.contains("step 2") && text.contains("NaN at token 1"), "{text}");
        let text = refusal(greedy.clone(), &[0.0, 0.0, f32::INFINITY], &[]);
        assert!(text.contains("step 0") && text.contains("inf at token 2"), "{text}");
        let text = refusal(greedy, &[none; 20], &[]);
        assert!(text.contains("every one is negative infinity"), "{text}");
    }
    let banned = GenerateOptions { no_repeat_ngram: 1, ..plain() };
    let text = refusal(banned, &[0.0, 1.0], &[0, 1]);
    assert!(text.contains("after the options leave no token"), "{text}");
    let hidden = GenerateOptions { logit_bias: vec![(0, none)], ..plain() };
    assert!(refusal(hidden, &[f32::NAN, 1.0], &[]).contains("the model's logits hold NaN"));
    let mut sampler = Sampler::new(&plain(), 1, 3).unwrap();
    assert!(matches!(sampler.pick(&[0.0], &[], &[]), Err(Error::Internal(_))));
}

#[test]
fn bad_options_are_refused() {
    let biased = |id| GenerateOptions { logit_bias: vec![(id, 1.0)], ..plain() };
    assert!(Sampler::new(&biased(3), 1, 4).is_ok());
    let error = Sampler::new(&biased(4), 1, 4).unwrap_err();
    assert!(matches!(error, Error::InvalidOption { name: "logit_bias", .. }), "{error}");
    let error = Sampler::new(&GenerateOptions { top_p: 0.0, ..plain() }, 1, 4).unwrap_err();
    assert!(matches!(error, Error::InvalidOption { name: "top_p", .. }), "{error}");
    assert!(matches!(Sampler::new(&plain(), 1, 0), Err(Error::InvalidInput(_))));
}

/// Scratch is allocated by the first pick and reused by the others.
#[test]
fn scratch_is_reused() {
    let options = GenerateOptions { top_k: 40, no_repeat_ngram: 3, ..GenerateOptions::default() };
    let mut sampler = Sampler::new(&options, 1, 5000).unwrap();
    let logits: Vec<f32> = (0..5000).map(|i| ((i * 7919) % 4999) as f32 * 0.002).collect();
    sampler.pick(&logits, &[1; 100], &[]).unwrap();
    let scratch = |s: &Sampler| {
        (s.scores.as_ptr(), s.selection.keys().as_ptr(), s.selection.keys().capacity())
    };
    let first = scratch(&sampler);
    for step in 1..50 {
        sampler.pick(&logits, &[1; 100], &vec![2; step]).unwrap();
        assert_eq!(scratch(&sampler), first);
    }
}
