use super::*;
use crate::dataset::ReadOptions;
use crate::train::network::Network;
use crate::train::{HistoryRow, LoraConfig, StopReason};
use crate::{Instruction, Pipeline};

mod crash;
#[cfg(feature = "candle")]
mod device;

/// A byte-level BPE of single characters.
fn tokenizer() -> Vec<u8> {
    let characters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:!?#'ĠĊ-";
    let words = characters.chars().enumerate();
    let mut vocab: serde_json::Map<String, serde_json::Value> =
        words.map(|(index, c)| (c.to_string(), (index + 1).into())).collect();
    vocab.insert("<|endoftext|>".to_owned(), 0.into());
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true
    });
    json!({
        "version": "1.0",
        "added_tokens": [{"id": 0, "content": "<|endoftext|>", "special": true}],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": byte_level, "post_processor": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []}
    })
    .to_string()
    .into_bytes()
}

fn config() -> Config {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.json");
    let fields = json!({
        "model_type": "gpt_neox", "vocab_size": 96, "hidden_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 32, "hidden_act": "gelu",
        "layer_norm_eps": 1e-5, "rotary_pct": 0.5, "rotary_emb_base": 10000,
        "max_position_embeddings": 320, "use_parallel_residual": true,
        "tie_word_embeddings": false, "bos_token_id": 0, "eos_token_id": 0,
    });
    std::fs::write(&file, fields.to_string()).unwrap();
    Config::from_json(&file).unwrap()
}

fn data() -> Dataset {
    let rows = (0..14).map(|n| {
        let row = Record::new(format!("Say {n}."), format!("{n}, {n} and {n} again!"));
        let row = if n % 2 == 0 { row.with_context("Numbers.") } else { row };
        row.with_category(if n % 3 == 0 { "saying" } else { "telling" })
    });
    Dataset::from_records(rows, "numbers", &ReadOptions::default()).unwrap()
}

fn options(steps: u64) -> TrainingOptions {
    TrainingOptions {
        max_steps: Some(steps),
        batch_size: 1,
        learning_rate: 0.01,
        eval_size: SplitSize::Rows(4),
        eval_steps: 0,
        save_steps: 0,
        threads: Some(1),
        ..TrainingOptions::default()
    }
}

/// A model of random weights, without Dolly's tokens, as a directory.
fn base() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let config = config();
    let options = NetworkOptions {
        threads: 1,
        gradient_checkpointing: false,
        dropout: 0.0,
        trained: Trained::All,
    };
    let start = Start::initialised(config, &options.trained, 5).unwrap();
    let network = Network::new(start, &options).unwrap();
    let sources: Vec<_> = network
        .parameters()
        .iter()
        .map(|p| (p, Values::of_tensor(&p.name, &p.shape, &p.values).unwrap()))
        .collect();
    let tensors: Vec<_> = sources
        .iter()
        .map(|(p, source)| TensorToWrite { name: &p.name, shape: &p.shape, source })
        .collect();
    let model = ModelToWrite {
        config: network.config(),
        tensors: &tensors,
        format: WeightFormat::F32,
        tokenizer: &tokenizer(),
        manifest: &Manifest::new("base", Kind::Model),
        shard_bytes: SHARD_BYTES,
    };
    write_model(directory.path(), &model).unwrap();
    directory
}

fn id(directory: &tempfile::TempDir) -> &str {
    directory.path().to_str().unwrap()
}

/// Losses and the bytes of the result's weights.
fn outcome(run: &TrainingRun) -> (Vec<u64>, Vec<u8>) {
    let names = ["model.safetensors", "adapter_model.safetensors"];
    let file = names.into_iter().map(|name| run.output_dir.join(name)).find(|file| file.is_file());
    let losses = run.history.iter().map(|row: &HistoryRow| row.loss.to_bits());
    (losses.collect(), std::fs::read(file.unwrap()).unwrap())
}

fn resume_is_exact(stops: impl Iterator<Item = u64> + Clone, steps: u64) {
    let base = base();
    let lora = LoraConfig { rank: 2, dropout: 0.1, ..LoraConfig::default() };
    for (lora, accumulation) in [(None, 1), (Some(lora.clone()), 1), (None, 4), (Some(lora), 4)] {
        let options = TrainingOptions {
            lora,
            gradient_accumulation: accumulation,
            dropout: 0.1,
            ..options(steps)
        };
        let whole = tempfile::tempdir().unwrap();
        let run = Trainer::new(id(&base), options.clone()).unwrap().train(&data(), whole.path());
        let reference = outcome(&run.unwrap());
        for threads in [1, 2] {
            for stop in stops.clone() {
                let out = tempfile::tempdir().unwrap();
                let options = TrainingOptions { threads: Some(threads), ..options.clone() };
                let brake = |report: &StepReport| match report.row.step == stop {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                };
                let trainer = Trainer::new(id(&base), options.clone()).unwrap().on_step(brake);
                let run = trainer.train(&data(), out.path()).unwrap();
                assert_eq!(run.stopped, StopReason::Callback);
                let options = TrainingOptions { resume: true, ..options };
                let run = Trainer::new(id(&base), options).unwrap().train(&data(), out.path());
                let run = run.unwrap();
                assert_eq!(run.resumed_from, Some(stop));
                let what = format!("{accumulation} batches, {threads} threads, stopped at {stop}");
                assert!(outcome(&run) == reference, "{what}");
            }
        }
    }
}

/// Full and with adapters, with dropout, accumulation and threads.
#[test]
fn a_resumed_run_has_the_same_bits() {
    resume_is_exact([1, 4].into_iter(), 6);
}

#[test]
#[ignore = "long: 304 runs"]
fn a_run_resumed_at_any_step_has_the_same_bits() {
    resume_is_exact(1..20, 20);
}

/// The result is what was trained: the inference engine, which shares no code with the trainer's
/// network, finds the same loss.
#[test]
fn the_result_is_loaded_by_the_pipeline() {
    let (base, out) = (base(), tempfile::tempdir().unwrap());
    let options = TrainingOptions { batch_size: 4, ..options(30) };
    let run = Trainer::new(id(&base), options.clone()).unwrap().train(&data(), out.path()).unwrap();
    let (first, last) = (run.history[0].loss, run.history[29].loss);
    assert!(last < 0.8 * first, "{first} to {last}");
    assert_eq!((run.train_rows, run.eval_rows, run.dropped_rows), (10, 4, 0));
    let evaluation = run.evaluation.unwrap();
    assert_eq!(evaluation.by_category.values().map(|mean| mean.rows).sum::<u64>(), 4);
    let (_, eval) = data().split(SplitSize::Rows(4), options.seed).unwrap();
    let again = evaluate(id(&out), &eval, &TrainingOptions::default()).unwrap();
    assert_eq!(again, evaluation);
    let pipeline = Pipeline::from_pretrained(id(&out)).unwrap();
    assert_eq!(pipeline.tokenizer().vocab_size(), 73 + 3);
    assert_eq!(pipeline.config().vocab_size, 73 + 3);
    let (mut nats, mut tokens) = (0.0, 0);
    for row in eval.iter() {
        let instruction = Instruction::new(&row.instruction).context(&row.context);
        let score = pipeline.score(instruction, &row.response).unwrap();
        nats -= score.sum;
        tokens += score.token_ids.len();
    }
    assert_eq!(tokens as u64, evaluation.all.tokens);
    let mean = nats / tokens as f64;
    assert!((mean - evaluation.all.loss).abs() < 1e-4, "{mean} for {}", evaluation.all.loss);
}

#[test]
fn an_adapter_learns_beside_a_base_that_stays() {
    let (base, out) = (base(), tempfile::tempdir().unwrap());
    let options = TrainingOptions {
        lora: Some(LoraConfig { rank: 4, ..LoraConfig::default() }),
        batch_size: 4,
        learning_rate: 0.03,
        ..options(30)
    };
    let run = Trainer::new(id(&base), options.clone()).unwrap().train(&data(), out.path()).unwrap();
    let (first, last) = (run.history[0].loss, run.history[29].loss);
    assert!(last < first - 0.05, "{first} to {last}");
    assert!(!out.path().join("model.safetensors").exists());
    let (_, eval) = data().split(SplitSize::Rows(4), options.seed).unwrap();
    // Merged into the weights instead of beside them: not the same bits.
    let merged = evaluate(id(&out), &eval, &TrainingOptions::default()).unwrap().all;
    let beside = run.evaluation.unwrap().all;
    assert!((merged.loss - beside.loss).abs() < 1e-5, "{merged:?} for {beside:?}");
    let without = evaluate(id(&base), &eval, &TrainingOptions::default()).unwrap().all;
    assert!(without.loss > beside.loss + 0.01, "{without:?} for {beside:?}");
    Pipeline::builder(id(&base)).adapter(out.path()).build().unwrap();
}

/// From nothing on plain text, then on instructions: the tokens are there from the start.
#[test]
fn a_model_from_nothing() {
    let out = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let texts = (0..40).map(|n| format!("Sheep graze on moor {n}, all day long."));
    let corpus = TextCorpus::from_texts(texts, "sheep", &ReadOptions::default()).unwrap();
    let options = TrainingOptions {
        max_length: Some(32),
        batch_size: 8,
        eval_size: SplitSize::Fraction(0.1),
        ..options(20)
    };
    let trainer = Trainer::from_config(config(), tokenizer(), options.clone()).unwrap();
    let run = trainer.train_text(&corpus, out[0].path()).unwrap();
    let (first, last) = (run.history[0].loss, run.history[19].loss);
    // At first all of the 76 ids are about equally likely.
    assert!((first - 76f64.ln()).abs() < 0.2 && last < 0.8 * first, "{first} to {last}");
    let before = std::fs::read(out[0].path().join("tokenizer.json")).unwrap();
    let options = TrainingOptions { max_length: None, ..options };
    let trainer = Trainer::new(id(&out[0]), options).unwrap();
    trainer.train(&data(), out[1].path()).unwrap();
    assert_eq!(std::fs::read(out[1].path().join("tokenizer.json")).unwrap(), before);
    let manifest = Manifest::read(out[1].path()).unwrap();
    assert_eq!(manifest.record.data[0].name, "numbers");
    assert_eq!(manifest.ancestors.len(), 1);
}

#[test]
fn what_cannot_be_trained_is_refused() {
    let (base, out) = (base(), tempfile::tempdir().unwrap());
    let train = |options: TrainingOptions| {
        Trainer::new(id(&base), options).and_then(|trainer| trainer.train(&data(), out.path()))
    };
    let limit = TrainingOptions { memory_limit: Some(10_000), ..options(1) };
    assert!(matches!(train(limit), Err(Error::MemoryLimit { limit: 10_000, .. })));
    let targets = vec!["no_such_layer".to_owned()];
    let lora = Some(LoraConfig { targets, ..LoraConfig::default() });
    let error = train(TrainingOptions { lora, ..options(1) }).unwrap_err();
    assert!(error.to_string().contains("no_such_layer"), "{error}");
    let short = TrainingOptions { max_length: Some(9), ..options(1) };
    assert!(train(short).unwrap_err().to_string().contains("10 were too long"));
    let lora = TrainingOptions { lora: Some(LoraConfig::default()), ..options(1) };
    assert!(Trainer::from_config(config(), tokenizer(), lora).is_err());
    let source = SourceOptions { offline: true, ..SourceOptions::from_env() };
    let missing = Trainer::with_source("no/such-model-here", options(1), &source).map(|_| ());
    assert!(matches!(missing, Err(Error::ModelNotFound { .. })));
}

/// What is foreseen is what is checked, for full training and adapters; a longer batch needs more.
#[test]
fn the_memory_limit_counts_activations() {
    let base = base();
    let needed = |options: &TrainingOptions| {
        let options = TrainingOptions { memory_limit: Some(1), ..options.clone() };
        let out = tempfile::tempdir().unwrap();
        let error = Trainer::new(id(&base), options).unwrap().train(&data(), out.path());
        // Nothing was begun.
        assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
        match error {
            Err(Error::MemoryLimit { needed, limit: 1, .. }) => needed,
            other => panic!("{other:?}"),
        }
    };
    for lora in [None, Some(LoraConfig::default())] {
        let options = TrainingOptions { lora, ..options(1) };
        let one = needed(&options);
        let four = needed(&TrainingOptions { batch_size: 4, ..options.clone() });
        // Rows have 200 tokens, each with more than ten times the hidden size of f32.
        assert!(four > one + 3 * 200 * 10 * 16 * 4, "{four} after {one}");
        for (limit, fits) in [(one - 1, false), (one, true)] {
            let options = TrainingOptions { memory_limit: Some(limit), ..options.clone() };
            let out = tempfile::tempdir().unwrap();
            let run = Trainer::new(id(&base), options).unwrap().train(&data(), out.path());
            assert_eq!(run.is_ok(), fits, "{limit}");
        }
    }
}

#[test]
fn a_cancel_is_heard_before_the_first_step() {
    let (base, out) = (base(), tempfile::tempdir().unwrap());
    let token = crate::CancelToken::new();
    token.cancel();
    let options =
        TrainingOptions { cancel: Some(token), eval_size: SplitSize::Rows(0), ..options(1) };
    let trainer = || Trainer::new(id(&base), options.clone()).unwrap();
    let texts = ["Sheep graze.".repeat(50)];
    let corpus = TextCorpus::from_texts(texts, "sheep", &ReadOptions::default()).unwrap();
    let runs = [trainer().train(&data(), out.path()), trainer().train_text(&corpus, out.path())];
    for run in runs {
        assert!(matches!(run, Err(Error::Cancelled)), "{run:?}");
    }
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
}
