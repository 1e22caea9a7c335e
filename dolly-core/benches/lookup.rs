//! What drafts looked up in the prompt gain, and what they cost where nothing is quoted.
//!
//! `cargo bench -p dolly-core --bench lookup -- ROWS.jsonl FOLDER [FORMAT] [threads] [rows] [draft]`
//!
//! ROWS is databricks-dolly-15k. **Quoting**: rows of closed_qa, information_extraction and
//! summarization at least half of whose answer stands in their context, in runs of four tokens or more,
//! answered word for word by a model of Pythia 410M's shape. No weights that small quote so well, so
//! they are made to: branches add nothing (at full cost), every token of every text has an id of its
//! own, and the output layer maps each token's embedding to the token that comes next. What drafts
//! see is the quoting of the texts alone; chance repetitions are lost. **Elsewhere**: dolly-nano's own
//! greedy answers to rows of the other categories, whose small steps leave drafts the least to save.
//!
//! Each row is answered with and without drafts in turn, its prompt known beforehand; the time is that
//! after the first token, and the answers must be equal. One JSON line for each of both.
#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use dolly_core::weights::RowSource;
use dolly_core::{GenerateOptions, Generation, Pipeline, Prompt, Tokenizer};
use serde::Deserialize;
use serde_json::json;
use support::Noise;

mod support;

/// Shortest run of tokens that counts as a quotation.
const QUOTATION: usize = 4;
/// Tokens of an answer without which a row is left out.
const SHORTEST: usize = 32;
const LONGEST: usize = 1500;
const QUOTING: [&str; 3] = ["closed_qa", "information_extraction", "summarization"];

#[derive(Deserialize)]
struct Row {
    instruction: String,
    context: String,
    response: String,
    category: String,
}

/// Prompt and answer; every id is used once, but where the answer quotes.
struct Script {
    prompt: Vec<u32>,
    answer: Vec<u32>,
}

/// For each token of the answer, the place in the context that it quotes.
fn quoted(context: &[u32], answer: &[u32]) -> Vec<Option<usize>> {
    let mut found = vec![None; answer.len()];
    let mut used = vec![false; context.len()];
    let mut at = 0;
    while at < answer.len() {
        let run = |from: &usize| {
            let pairs = context[*from..].iter().zip(&answer[at..]).zip(&used[*from..]);
            pairs.take_while(|((a, b), used)| a == b && !**used).count()
        };
        let best = (0..context.len()).max_by_key(run).filter(|from| run(from) >= QUOTATION);
        let length = best.map_or(1, |from| run(&from));
        for i in 0..length {
            found[at + i] = best.map(|from| from + i);
            if let Some(from) = best {
                used[from + i] = true;
            }
        }
        at += length;
    }
    found
}

/// The rows that quote, in ids of their own.
fn scripts(rows: &[Row], tokenizer: &Tokenizer, most: usize) -> Vec<Script> {
    let mut next = 1;
    let mut fresh = |count: usize| -> Vec<u32> {
        next += count as u32;
        (next - count as u32..next).collect()
    };
    let mut found = Vec::new();
    for row in rows.iter().filter(|row| QUOTING.contains(&row.category.as_str())) {
        let encode = |text: &str| tokenizer.encode(text, false).unwrap();
        let (instruction, context) = (encode(&row.instruction), encode(&row.context));
        let answer = encode(&row.response);
        let long = instruction.len() + context.len() + answer.len();
        if found.len() == most || answer.len() < SHORTEST || long > LONGEST {
            continue;
        }
        let places = quoted(&context, &answer);
        if 2 * places.iter().flatten().count() < answer.len() {
            continue;
        }
        let (context, instruction) = (fresh(context.len()), fresh(instruction.len()));
        let answer = places.iter().map(|place| place.map_or_else(|| fresh(1)[0], |p| context[p]));
        let answer = answer.collect();
        found.push(Script { prompt: [context, instruction].concat(), answer });
    }
    found
}

/// The output layer: row `n` is the embedding of the token that `n` follows.
struct Follow {
    embedding: Noise,
    before: HashMap<u32, u32>,
    name: String,
}

impl RowSource for Follow {
    fn name(&self) -> &str {
        &self.name
    }

    fn shape(&self) -> (usize, usize) {
        self.embedding.shape
    }

    fn read_rows(&self, first: usize, out: &mut [f32]) -> dolly_core::Result<()> {
        let rows = out.chunks_exact_mut(self.embedding.shape.1);
        for (row, out) in (first..).zip(rows) {
            match self.before.get(&(row as u32)) {
                Some(before) => self.embedding.read_rows(*before as usize, out)?,
                None => out.fill(0.0),
            }
        }
        Ok(())
    }
}

/// A tensor of zeros or ones.
struct Constant(Noise, f32);

impl RowSource for Constant {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn shape(&self) -> (usize, usize) {
        self.0.shape
    }

    fn read_rows(&self, _: usize, out: &mut [f32]) -> dolly_core::Result<()> {
        out.fill(self.1);
        Ok(())
    }
}

fn write_model(directory: &Path, scripts: &[Script]) {
    let mut before = HashMap::new();
    for script in scripts {
        let last = script.prompt[script.prompt.len() - 1..].iter();
        for (a, b) in last.chain(&script.answer).zip(&script.answer) {
            assert_eq!(before.insert(*b, *a).unwrap_or(*a), *a, "two ways to one token");
        }
    }
    support::write_from(directory, "410m", |noise| match noise.name.as_str() {
        "embed_out.weight" => {
            let name = "gpt_neox.embed_in.weight".to_owned();
            let embedding = Noise { name, shape: noise.shape, centre: 0.0 };
            Box::new(Follow { embedding, before: before.clone(), name: noise.name })
        }
        name if name.contains("attention.dense") || name.contains("dense_4h_to_h") => {
            Box::new(Constant(noise, 0.0))
        }
        "gpt_neox.final_layer_norm.bias" => Box::new(Constant(noise, 0.0)),
        _ => Box::new(noise),
    });
}

/// Answers one row.
type Answer<'a> = &'a dyn Fn(&GenerateOptions) -> dolly_core::Result<Generation>;

/// Seconds after the first token, and the whole answer.
fn time(answer: Answer<'_>, options: &GenerateOptions) -> (f64, Generation) {
    let time = |max_new_tokens| {
        let options = GenerateOptions { max_new_tokens, ..options.clone() };
        let start = Instant::now();
        let answer = answer(&options).unwrap();
        (start.elapsed().as_secs_f64(), answer)
    };
    let first = time(1).0;
    let (whole, answer) = time(options.max_new_tokens);
    (whole - first, answer)
}

/// Totals of a set of rows.
#[derive(Default)]
struct Totals {
    rows: usize,
    tokens: usize,
    plain: f64,
    drafted: f64,
    guessed: usize,
    accepted: usize,
    ratios: Vec<f64>,
}

impl Totals {
    fn add(&mut self, answer: Answer<'_>, plain: &GenerateOptions, draft: usize) -> Vec<u32> {
        let drafts = GenerateOptions { prompt_lookup: Some(draft), ..plain.clone() };
        // So that the prompt is known to both.
        answer(&GenerateOptions { max_new_tokens: 2, ..plain.clone() }).unwrap();
        let ((alone, ids), (drafted, same)) = (time(answer, plain), time(answer, &drafts));
        let ids = ids.token_ids;
        assert_eq!(ids, same.token_ids, "drafts changed an answer");
        self.guessed += same.usage.drafted_tokens;
        self.accepted += same.usage.accepted_tokens;
        self.rows += 1;
        self.tokens += ids.len().saturating_sub(1);
        self.plain += alone;
        self.drafted += drafted;
        self.ratios.push(alone / drafted);
        ids
    }

    fn print(mut self, what: &str) {
        self.ratios.sort_by(f64::total_cmp);
        let (plain, drafted) = (self.tokens as f64 / self.plain, self.tokens as f64 / self.drafted);
        println!(
            "{}",
            json!({
                "rows": what, "count": self.rows, "tokens": self.tokens,
                "drafted": self.guessed, "accepted": self.accepted,
                "tokens_per_second": plain, "with_drafts": drafted, "ratio": drafted / plain,
                "row_ratio_lowest": self.ratios.first(),
                "row_ratio_median": self.ratios.get(self.ratios.len() / 2),
            })
        );
    }
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    // `cargo test --benches` runs it so: there is nothing to measure.
    let [data, folder, rest @ ..] = &words[..] else { return println!("ROWS.jsonl FOLDER ...") };
    let word = |i: usize, default: &'static str| rest.get(i).map_or(default, String::as_str);
    let format = word(0, "f16").parse().unwrap();
    let threads = word(1, "2").parse().unwrap();
    let most = word(2, "24").parse().unwrap();
    let draft = word(3, "10").parse().unwrap();
    let text = std::fs::read_to_string(data).unwrap();
    let rows: Vec<Row> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/dolly-nano");
    let nano = Pipeline::builder(nano.to_str().unwrap()).threads(threads).build().unwrap();

    let scripts = scripts(&rows, nano.tokenizer(), most);
    let folder = Path::new(folder);
    write_model(folder, &scripts);
    let pipe = Pipeline::builder(folder.to_str().unwrap()).weights(format).threads(threads);
    let pipe = pipe.prefix_cache(1 << 30).build().unwrap();
    let mut quoting = Totals::default();
    for script in &scripts {
        let max_new_tokens = script.answer.len();
        let plain =
            GenerateOptions { max_new_tokens, ignore_end: true, ..GenerateOptions::greedy() };
        let ids = quoting.add(
            &|options| pipe.complete(Prompt::Ids(&script.prompt), options),
            &plain,
            draft,
        );
        assert_eq!(ids, script.answer, "not the answer it was made for");
    }
    quoting.print("quoting");
    drop(pipe);

    let mut elsewhere = Totals::default();
    let others = rows.iter().filter(|row| row.context.is_empty());
    for row in others.take(most) {
        let plain = GenerateOptions { max_new_tokens: 128, ..GenerateOptions::greedy() };
        let instruction = row.instruction.as_str();
        elsewhere.add(&|options| nano.generate(instruction, options), &plain, draft);
    }
    elsewhere.print("elsewhere");
}
