use super::*;
use serde_json::Value;

/// Made by `tests/golden/make_trainer.py` with `torch.optim.AdamW`.
const GOLDEN: &str = include_str!("../../../../tests/golden/trainer/adamw.json");

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

fn start(golden: &Value) -> Vec<Parameter> {
    let mut parameters: Vec<Parameter> = ["matrix", "vector"]
        .map(|name| {
            let shape = golden["start"][name]["shape"].as_array().unwrap();
            Parameter {
                name: name.to_owned(),
                shape: shape.iter().map(|dim| dim.as_u64().unwrap() as usize).collect(),
                values: floats(&golden["start"][name]["values"]),
                gradient: Vec::new(),
                trainable: true,
            }
        })
        .into();
    let frozen = Parameter { name: "frozen".into(), trainable: false, ..parameters[0].clone() };
    parameters.insert(1, frozen);
    parameters
}

fn settings(case: &Value) -> AdamSettings {
    let number = |key: &str| case[key].as_f64().unwrap();
    AdamSettings {
        beta1: number("beta1"),
        beta2: number("beta2"),
        epsilon: number("epsilon"),
        weight_decay: number("decay"),
    }
}

/// Relative to the largest of the tensor's values: single ones pass through zero.
fn assert_close(found: &[f32], wanted: &[f32], what: &str) {
    assert_eq!(found.len(), wanted.len(), "{what}");
    let scale = wanted.iter().fold(0.0f32, |max, value| max.max(value.abs()));
    for (found, wanted) in found.iter().zip(wanted) {
        assert!((found - wanted).abs() <= 1e-6 * scale, "{what}: {found} for {wanted}");
    }
}

#[test]
fn steps_are_those_of_pytorch() {
    let golden: Value = serde_json::from_str(GOLDEN).unwrap();
    let pool = Pool::new(2).unwrap();
    for case in golden["cases"].as_array().unwrap() {
        let mut parameters = start(&golden);
        let frozen = parameters[1].values.clone();
        let mut adam = AdamW::new(settings(case), &parameters).unwrap();
        for (number, step) in case["steps"].as_array().unwrap().iter().enumerate() {
            for parameter in parameters.iter_mut().filter(|p| p.trainable) {
                parameter.gradient = floats(&step["gradients"][&parameter.name]);
            }
            let norm = gradient_norm(&parameters, &pool).unwrap();
            let wanted = step["norm"].as_f64().unwrap();
            assert!((norm - wanted).abs() <= 1e-6 * wanted, "norm {norm} for {wanted}");
            let clip = clip_scale(norm, case["clip"].as_f64().unwrap());
            adam.update(&mut parameters, &pool, step["rate"].as_f64().unwrap(), clip).unwrap();
            for parameter in parameters.iter().filter(|p| p.trainable) {
                let wanted = floats(&step["values"][&parameter.name]);
                assert_close(&parameter.values, &wanted, &format!("step {number}"));
            }
        }
        assert_eq!(parameters[1].values, frozen);
        assert_eq!(adam.moments[1], Moments::default());
        for index in [0, 2] {
            let name = &parameters[index].name;
            assert_close(&adam.moments[index].first, &floats(&case["first"][name]), "first");
            assert_close(&adam.moments[index].second, &floats(&case["second"][name]), "second");
        }
    }
}

/// Lengths around chunk and lane bounds; the bits must not depend on the number of threads.
#[test]
fn bits_do_not_depend_on_threads() {
    let run = |threads: usize| {
        let pool = Pool::new(threads).unwrap();
        let mut parameters: Vec<Parameter> = [1, LANES + 1, CHUNK - 1, CHUNK + 1, 3 * CHUNK + 5]
            .iter()
            .map(|len| Parameter {
                name: format!("p{len}"),
                shape: vec![1, *len],
                values: (0..*len).map(|i| (i as f32 * 0.37).sin()).collect(),
                gradient: (0..*len).map(|i| (i as f32 * 1.7).cos() * 3.0).collect(),
                trainable: true,
            })
            .collect();
        let settings = AdamSettings { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.1 };
        let mut adam = AdamW::new(settings, &parameters).unwrap();
        let mut norms = Vec::new();
        for _ in 0..3 {
            let norm = gradient_norm(&parameters, &pool).unwrap();
            adam.update(&mut parameters, &pool, 1e-3, clip_scale(norm, 1.0)).unwrap();
            norms.push(norm.to_bits());
        }
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        (norms, parameters.iter().map(|p| bits(&p.values)).collect::<Vec<_>>())
    };
    let one = run(1);
    assert!(one == run(2) && one == run(3));
}

#[test]
fn a_missing_gradient_is_an_error_that_names_it() {
    let golden: Value = serde_json::from_str(GOLDEN).unwrap();
    let pool = Pool::new(1).unwrap();
    let mut parameters = start(&golden);
    let settings = settings(&golden["cases"][0]);
    let mut adam = AdamW::new(settings, &parameters).unwrap();
    parameters[0].gradient = vec![0.0; parameters[0].values.len()];
    let before = parameters[0].values.clone();
    for error in [
        adam.update(&mut parameters, &pool, 1.0, 1.0).unwrap_err(),
        gradient_norm(&parameters, &pool).unwrap_err(),
    ] {
        assert!(error.to_string().contains("\"vector\""), "{error}");
    }
    assert_eq!((parameters[0].values.clone(), adam.updates), (before, 0));
}

#[test]
fn the_norm_tells_what_is_not_finite() {
    let pool = Pool::new(1).unwrap();
    let parameter = |gradient: Vec<f32>| Parameter {
        name: "p".into(),
        shape: vec![gradient.len()],
        values: vec![0.0; gradient.len()],
        gradient,
        trainable: true,
    };
    let norm = |gradient: Vec<f32>| gradient_norm(&[parameter(gradient)], &pool).unwrap();
    assert!(norm(vec![1.0, f32::NAN]).is_nan());
    assert!(norm(vec![f32::NEG_INFINITY]).is_infinite());
    // Squares that overflow f32 do not overflow the sum.
    assert!((norm(vec![3e38, 3e38]) / (3e38 * 2f64.sqrt()) - 1.0).abs() < 1e-6);
    assert_eq!((clip_scale(0.5, 1.0), clip_scale(9.0, 0.0)), (1.0, 1.0));
}
