use super::*;

#[test]
fn defaults_are_valid() {
    TrainingOptions::default().validate().unwrap();
}

#[test]
fn every_option_out_of_range_is_named() {
    type Change = fn(&mut TrainingOptions);
    let cases: &[(&str, Change)] = &[
        ("epochs", |o| o.epochs = 0),
        ("max_steps", |o| o.max_steps = Some(0)),
        ("batch_size", |o| o.batch_size = 0),
        ("batch_size", |o| o.batch_size = usize::MAX),
        ("gradient_accumulation", |o| o.gradient_accumulation = 0),
        ("learning_rate", |o| o.learning_rate = f64::NAN),
        ("learning_rate", |o| o.learning_rate = f64::INFINITY),
        ("learning_rate", |o| o.learning_rate = -1e-9),
        ("max_length", |o| o.max_length = Some(1)),
        ("eval_size", |o| o.eval_size = SplitSize::Fraction(1.0)),
        ("eval_size", |o| o.eval_size = SplitSize::Fraction(f64::NAN)),
        ("save_total_limit", |o| o.save_total_limit = 0),
        ("logging_steps", |o| o.logging_steps = 0),
        ("threads", |o| o.threads = Some(0)),
        ("threads", |o| o.threads = Some(1025)),
        ("weight_decay", |o| o.weight_decay = f64::NAN),
        ("adam_beta1", |o| o.adam_beta1 = 1.0),
        ("adam_beta2", |o| o.adam_beta2 = -0.1),
        ("adam_epsilon", |o| o.adam_epsilon = 0.0),
        ("max_grad_norm", |o| o.max_grad_norm = f64::NAN),
        ("dropout", |o| o.dropout = 1.0),
        ("early_stopping_patience", |o| o.early_stopping_patience = Some(0)),
        ("lora.rank", |o| o.lora = Some(LoraConfig { rank: 0, ..LoraConfig::default() })),
    ];
    for (wanted, change) in cases {
        let mut options = TrainingOptions::default();
        change(&mut options);
        match options.validate() {
            Err(Error::InvalidOption { name, .. }) => assert_eq!(name, *wanted),
            other => panic!("{wanted}: {other:?}"),
        }
    }
}

#[test]
fn what_decides_the_weights_must_agree() {
    let base = TrainingOptions::default();
    let then = base.fingerprint();
    let free = TrainingOptions {
        threads: Some(2),
        gradient_checkpointing: false,
        epochs: 9,
        save_steps: 1,
        logging_steps: 1,
        device: Device::Cpu,
        ..base.clone()
    };
    check_fingerprint(&free.fingerprint(), &then).unwrap();
    // A checkpoint of the time before there was a choice was made in f32.
    let mut older = then.clone();
    older.remove("precision").unwrap();
    check_fingerprint(&then, &older).unwrap();
    let changed: [(&str, TrainingOptions); 6] = [
        ("precision", TrainingOptions { precision: Precision::Bf16, ..base.clone() }),
        ("seed", TrainingOptions { seed: 1, ..base.clone() }),
        ("batch_size", TrainingOptions { batch_size: 1, ..base.clone() }),
        ("lora", TrainingOptions { lora: Some(LoraConfig::default()), ..base.clone() }),
        ("learning_rate", TrainingOptions { learning_rate: 2e-5, ..base.clone() }),
        ("schedule", TrainingOptions { schedule: Schedule::Linear, ..base.clone() }),
    ];
    for (wanted, options) in changed {
        match check_fingerprint(&options.fingerprint(), &then) {
            Err(Error::InvalidOption { name, value, .. }) => {
                assert_eq!(name, wanted);
                assert!(value.contains("the checkpoint has"), "{value}");
            }
            other => panic!("{wanted}: {other:?}"),
        }
    }
    let linear = TrainingOptions { schedule: Schedule::Linear, ..base };
    let longer = TrainingOptions { epochs: 3, ..linear.clone() };
    let error = check_fingerprint(&longer.fingerprint(), &linear.fingerprint()).unwrap_err();
    assert!(error.to_string().contains("epochs"), "{error}");
}

#[test]
fn every_fingerprint_name_is_compared() {
    let all = TrainingOptions { schedule: Schedule::Linear, ..TrainingOptions::default() };
    let names: Vec<String> = all.fingerprint().into_keys().collect();
    assert_eq!(names.len(), NAMES.len());
    assert!(names.iter().all(|name| NAMES.contains(&name.as_str())));
}
