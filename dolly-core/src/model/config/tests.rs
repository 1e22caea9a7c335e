use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::backend::RotaryTable;
use crate::error::Error;

/// Pythia-70m's configuration, the fields that matter.
fn pythia() -> Value {
    json!({
        "architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "eos_token_id": 0,
        "hidden_act": "gelu", "hidden_size": 512, "initializer_range": 0.02,
        "intermediate_size": 2048, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048,
        "model_type": "gpt_neox", "num_attention_heads": 8, "num_hidden_layers": 6,
        "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": false,
        "torch_dtype": "float16", "use_parallel_residual": true, "vocab_size": 50304,
    })
}

fn read(value: &Value) -> Result<Config> {
    Config::from_json_bytes(value.to_string().as_bytes(), "config.json".as_ref())
}

fn with(key: &str, value: Value) -> Value {
    let mut config = pythia();
    config[key] = value;
    config
}

#[test]
fn reads_pythia() {
    let config = read(&pythia()).unwrap();
    let expected = Config {
        vocab_size: 50304,
        hidden_size: 512,
        num_hidden_layers: 6,
        num_attention_heads: 8,
        intermediate_size: 2048,
        hidden_act: Activation::Gelu,
        layer_norm_eps: 1e-5,
        rotary_dims: 16,
        rotary_base: 10_000.0,
        rotary_scale: 1.0,
        max_position_embeddings: 2048,
        use_parallel_residual: true,
        attention_bias: true,
        tie_word_embeddings: false,
        bos_token_id: Some(0),
        eos_token_ids: vec![0],
        stored_format: WeightFormat::F16,
    };
    assert_eq!(config, expected);
    // EleutherAI's model card: 70,426,624 parameters.
    assert_eq!(config.parameters(), 70_426_624);
}

#[test]
fn agrees_with_transformers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/config/configs.json");
    let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    for case in golden["cases"].as_array().unwrap() {
        let config = read(&case["given"]).unwrap();
        let given = &case["given"];
        assert_eq!(config.rotary_dims as u64, case["rotary_dims"].as_u64().unwrap(), "{given}");
        assert_eq!(
            f64::from(config.layer_norm_eps) as f32,
            case["layer_norm_eps"].as_f64().unwrap() as f32
        );
        assert_eq!(config.use_parallel_residual, case["use_parallel_residual"]);
        assert_eq!(config.attention_bias, case["attention_bias"]);
        assert_eq!(config.tie_word_embeddings, case["tie_word_embeddings"]);
        assert_eq!(config.parameters(), case["parameters"].as_u64().unwrap(), "{given}");
        // At position 1 the angle is the frequency itself.
        let table = RotaryTable::new(&config, 2).unwrap();
        for (i, frequency) in case["inv_freq"].as_array().unwrap().iter().enumerate() {
            let angle = frequency.as_f64().unwrap();
            let sin = f64::from(table.sin[table.half + i]);
            assert!((sin - angle.sin()).abs() < 1e-6, "{given} {i}: {sin}");
        }
        let mut found: Vec<(String, Value)> = config
            .tensors()
            .unwrap()
            .into_iter()
            .map(|spec| (spec.name, json!(spec.shape)))
            .collect();
        found.sort_by(|a, b| a.0.cmp(&b.0));
        let expected = case["tensors"].as_object().unwrap().clone();
        let mut expected: Vec<(String, Value)> = expected.into_iter().collect();
        expected.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(found, expected, "{given}");
    }
}

#[test]
fn every_spelling_is_read() {
    let get = |key: &str, value: Value| read(&with(key, value)).unwrap();
    for (name, expected) in [
        ("gelu", Activation::Gelu),
        ("gelu_python", Activation::Gelu),
        ("gelu_new", Activation::GeluTanh),
        ("gelu_fast", Activation::GeluTanh),
        ("gelu_pytorch_tanh", Activation::GeluTanh),
        ("quick_gelu", Activation::QuickGelu),
        ("relu", Activation::Relu),
        ("silu", Activation::Silu),
        ("swish", Activation::Silu),
    ] {
        assert!(Activation::NAMES.contains(&name));
        assert_eq!(get("hidden_act", json!(name)).hidden_act, expected);
    }
    assert_eq!(get("eos_token_id", json!([0, 50277])).eos_token_ids, [0, 50277]);
    assert!(get("eos_token_id", Value::Null).eos_token_ids.is_empty());
    assert_eq!(get("bos_token_id", Value::Null).bos_token_id, None);
    assert_eq!(get("torch_dtype", json!("bfloat16")).stored_format, WeightFormat::Bf16);
    assert_eq!(get("dtype", json!("torch.float32")).stored_format, WeightFormat::F32);
    assert_eq!(get("torch_dtype", Value::Null).stored_format, WeightFormat::F32);
    assert_eq!(get("rope_scaling", json!({"type": "none"})).rotary_scale, 1.0);
    assert_eq!(get("rope_scaling", json!({})).rotary_scale, 1.0);
    let mut newer = pythia();
    let map = newer.as_object_mut().unwrap();
    for key in ["rotary_pct", "rotary_emb_base", "max_position_embeddings"] {
        map.remove(key);
    }
    map.insert("partial_rotary_factor".into(), json!(1.0));
    map.insert("rope_theta".into(), json!(500.0));
    map.insert("n_positions".into(), json!(77));
    let config = read(&newer).unwrap();
    assert_eq!((config.rotary_dims, config.rotary_base), (64, 500.0));
    assert_eq!(config.max_position_embeddings, 77);
}

#[test]
fn bad_values_are_refused_by_field() {
    let table = [
        ("model_type", json!("llama")),
        ("model_type", Value::Null),
        ("model_type", json!(3)),
        ("hidden_size", Value::Null),
        ("hidden_size", json!(0)),
        ("hidden_size", json!(-512)),
        ("hidden_size", json!(512.5)),
        ("hidden_size", json!("512")),
        ("hidden_size", json!(1u64 << 40)),
        ("num_attention_heads", json!(7)),
        ("num_attention_heads", json!(0)),
        ("num_attention_heads", json!(1024)),
        ("num_hidden_layers", json!(513)),
        ("num_hidden_layers", json!(u64::MAX)),
        ("vocab_size", json!(1u64 << 32)),
        ("vocab_size", json!([50304])),
        ("intermediate_size", Value::Null),
        ("intermediate_size", json!(1u64 << 31)),
        ("max_position_embeddings", json!(0)),
        ("max_position_embeddings", json!(1e30)),
        ("hidden_act", json!("mish")),
        ("hidden_act", json!("gelu_10")),
        ("hidden_act", json!(["gelu"])),
        ("layer_norm_eps", json!(0.0)),
        ("layer_norm_eps", json!(-1e-5)),
        ("layer_norm_eps", json!(1e-300)),
        ("layer_norm_eps", json!(2.0)),
        ("layer_norm_eps", json!("1e-5")),
        ("rotary_pct", json!(1.5)),
        ("rotary_pct", json!(-0.25)),
        ("rotary_pct", json!(0.05)),
        ("rotary_pct", json!(true)),
        ("rotary_emb_base", json!(0)),
        ("rotary_emb_base", json!(-10000)),
        ("rotary_emb_base", json!(1e40)),
        ("rope_scaling", json!("linear")),
        ("rope_scaling.rope_type", json!("dynamic")),
        ("rope_scaling.rope_type", json!("yarn")),
        ("rope_scaling.rope_type", json!("llama3")),
        ("rope_scaling.rope_type", json!("longrope")),
        ("rope_scaling.type", json!("su")),
        ("rope_scaling.type", json!(7)),
        ("rope_scaling.factor", json!("linear")),
        ("rope_parameters.rope_type", json!("proportional")),
        ("rope_parameters.partial_rotary_factor", json!(9)),
        ("rope_parameters.rope_theta", json!("x")),
        ("use_parallel_residual", json!(1)),
        ("attention_bias", json!("yes")),
        ("tie_word_embeddings", json!(0)),
        ("eos_token_id", json!(-1)),
        ("eos_token_id", json!([0, "a"])),
        ("eos_token_id", json!(vec![0; 65])),
        ("bos_token_id", json!(1u64 << 33)),
        ("torch_dtype", json!("int8")),
        ("torch_dtype", json!(16)),
    ];
    for (field, value) in table {
        let config = match field.split_once('.') {
            Some((outer, "factor")) => with(outer, json!({"type": value})),
            Some((outer, inner)) => with(outer, json!({inner: value})),
            None => with(field, value.clone()),
        };
        match read(&config) {
            Err(Error::Config { file, field: found, reason }) => {
                assert_eq!(file, Path::new("config.json"));
                assert!(found.contains(field.rsplit('.').next().unwrap()), "{field}: {found}");
                assert!(!reason.is_empty() && reason.len() < 200, "{reason}");
            }
            other => panic!("{field} {value}: {other:?}"),
        }
    }
    let zero = with("rope_scaling", json!({"type": "linear", "factor": 0}));
    assert!(matches!(read(&zero), Err(Error::Config { .. })));
}

#[test]
fn files_that_are_no_object_are_refused() {
    let long = format!("{{\"a\":\"{}\"}}", "x".repeat(1 << 20));
    let deep = "[".repeat(200_000);
    let twice =
        pythia().to_string().replacen("\"hidden_size\"", "\"hidden_size\":1,\"hidden_size\"", 1);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    for text in ["", "{", "[]", "null", "{}{}", "\u{feff}{}", &long, &deep, &twice] {
        std::fs::write(&path, text).unwrap();
        match Config::from_json(&path) {
            Err(Error::Format { file, .. }) => assert_eq!(file, path),
            other => panic!("{:.20}: {other:?}", text),
        }
    }
    let text = pythia().to_string();
    for len in 0..text.len() {
        assert!(Config::from_json_bytes(&text.as_bytes()[..len], &path).is_err());
    }
    assert!(matches!(Config::from_json(&dir.path().join("none")), Err(Error::Io { .. })));
}

proptest::proptest! {
    #[test]
    fn no_value_panics(key in 0..20usize, number: f64, integer: i64, text: String, kind in 0..6) {
        let config = pythia();
        let key = config.as_object().unwrap().keys().nth(key % 18).unwrap().clone();
        let value = match kind {
            0 => json!(number),
            1 => json!(integer),
            2 => json!(text),
            3 => json!([integer]),
            4 => json!(integer.unsigned_abs() % 70_000),
            _ => json!({"type": text, "factor": number}),
        };
        if let Ok(config) = read(&with(&key, value)) {
            config.parameters();
            proptest::prop_assert!(config.rotary_dims <= config.head_dim());
        }
    }
}

/// Metadata of a GGUF file made of Pythia-70m.
struct View(Value);

impl MetadataView for View {
    fn get_u32(&self, key: &str) -> Option<u32> {
        self.0[key].as_u64()?.try_into().ok()
    }
    fn get_f32(&self, key: &str) -> Option<f32> {
        self.0[key].as_f64().map(|value| value as f32)
    }
    fn get_bool(&self, key: &str) -> Option<bool> {
        self.0[key].as_bool()
    }
    fn get_str(&self, key: &str) -> Option<&str> {
        self.0[key].as_str()
    }
    fn array_len(&self, key: &str) -> Option<usize> {
        self.0[key].as_array().map(Vec::len)
    }
    fn has_tensor(&self, name: &str) -> bool {
        self.0["tensors"].as_array().unwrap().iter().any(|tensor| tensor == name)
    }
}

fn gguf() -> Value {
    json!({
        "general.architecture": "gptneox", "general.file_type": 1,
        "gptneox.context_length": 2048, "gptneox.embedding_length": 512,
        "gptneox.block_count": 6, "gptneox.feed_forward_length": 2048,
        "gptneox.rope.dimension_count": 16, "gptneox.attention.head_count": 8,
        "gptneox.use_parallel_residual": true, "gptneox.attention.layer_norm_epsilon": 1e-5,
        "tokenizer.ggml.tokens": vec![0; 50304], "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0, "tensors": ["output.weight", "blk.0.attn_qkv.bias"],
    })
}

#[test]
fn gguf_metadata_gives_the_same_configuration() {
    let read = |value| Config::from_gguf("a.gguf".as_ref(), &View(value));
    assert_eq!(read(gguf()).unwrap(), super::tests::read(&pythia()).unwrap());
    for (key, value) in [
        ("general.architecture", json!("llama")),
        ("gptneox.embedding_length", Value::Null),
        ("gptneox.attention.head_count", json!(0)),
        ("gptneox.block_count", json!(100_000)),
        ("gptneox.context_length", json!(0)),
        ("gptneox.feed_forward_length", json!("x")),
        ("tokenizer.ggml.tokens", Value::Null),
        ("gptneox.rope.scaling.type", json!("yarn")),
    ] {
        let mut bad = gguf();
        bad[key] = value;
        let error = read(bad).unwrap_err();
        assert!(matches!(&error, Error::Config { field, .. } if field == key), "{key}: {error}");
    }
    for (key, value) in [
        ("gptneox.rope.dimension_count", json!(15)),
        ("gptneox.rope.dimension_count", json!(u32::MAX)),
        ("gptneox.rope.freq_base", json!(0.0)),
        ("gptneox.attention.head_count", json!(7)),
        ("gptneox.attention.layer_norm_epsilon", json!(-1.0)),
    ] {
        let mut bad = gguf();
        bad[key] = value;
        assert!(matches!(read(bad), Err(Error::Config { .. })), "{key}");
    }
}
