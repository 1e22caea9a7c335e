//! Tokens that are chosen on the device are those that the host chooses of the whole row.

use dolly_core::{Error, GenerateOptions, Pipeline, Prompt, WeightFormat};
use safetensors::SafeTensors;

use crate::{Model, NANO, directory, on_cpu, on_device, path};

/// Options of which a few logits of a row may decide.
fn choices() -> [GenerateOptions; 5] {
    let options = |top_k| GenerateOptions {
        top_k,
        top_p: 1.0,
        seed: Some(5),
        max_new_tokens: 16,
        ignore_end: true,
        ..Default::default()
    };
    [
        GenerateOptions { do_sample: false, ..options(0) },
        options(1),
        GenerateOptions { temperature: 0.7, ..options(40) },
        GenerateOptions { top_p: 0.9, min_p: 0.01, ..options(50) },
        GenerateOptions { temperature: 1.4, typical_p: 0.9, ..options(200) },
    ]
}

#[test]
fn whole_rows_give_the_same_tokens() {
    let directory = directory(&NANO);
    for format in [WeightFormat::F32, WeightFormat::Bf16] {
        let pipe = on_device(path(&directory)).weights(format).prefix_cache(0).build().unwrap();
        for options in choices() {
            // Log-probabilities are of the whole row.
            let whole = GenerateOptions { logprobs: Some(1), ..options.clone() };
            for lookup in [None, Some(4)] {
                let tokens = |options: &GenerateOptions| {
                    let options = GenerateOptions { prompt_lookup: lookup, ..options.clone() };
                    pipe.generate("Name three colours.", &options).unwrap().token_ids
                };
                assert_eq!(tokens(&options), tokens(&whole), "{format}, {options:?}");
            }
        }
    }
}

#[test]
fn rows_of_a_batch_are_chosen_each_in_its_way() {
    let directory = directory(&NANO);
    let pipe = on_device(path(&directory)).weights(WeightFormat::F32).build().unwrap();
    let [greedy, ..] = choices();
    let mut all = choices().to_vec();
    // These look at all of a row.
    all.push(GenerateOptions { logprobs: Some(2), ..greedy.clone() });
    all.push(GenerateOptions { repetition_penalty: 1.3, ..greedy.clone() });
    all.push(GenerateOptions { top_p: 0.9, top_k: 0, do_sample: true, ..greedy });
    let streams: Vec<_> =
        all.iter().map(|options| pipe.stream("Why is the sky blue?", options).unwrap()).collect();
    for (stream, options) in streams.into_iter().zip(&all) {
        let expected = pipe.generate("Why is the sky blue?", options).unwrap();
        assert_eq!(stream.finish().unwrap().token_ids, expected.token_ids, "{options:?}");
    }
}

/// The golden model `standard` with one weight of the output layer replaced, for the token of its row.
fn with_weight(row: usize, value: f32) -> tempfile::TempDir {
    let model = Model::named("standard");
    let directory = model.directory();
    let mut bytes = model.weights.to_vec();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let tensor = metadata.info("embed_out.weight").unwrap();
    let at = header + tensor.data_offsets.0 + 4 * row * tensor.shape[1];
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    std::fs::write(directory.path().join("model.safetensors"), bytes).unwrap();
    directory
}

#[test]
fn logits_that_are_no_numbers_are_the_same_error() {
    let fail = |pipe: &Pipeline, options: &GenerateOptions| match pipe
        .complete(Prompt::Ids(&[1, 2, 3]), options)
    {
        Err(Error::InvalidInput(text)) => text,
        other => panic!("{other:?}"),
    };
    let directory = with_weight(17, f32::NAN);
    let [cpu, device] = [on_cpu(path(&directory)), on_device(path(&directory))]
        .map(|builder| builder.weights(WeightFormat::F32).build().unwrap());
    for options in choices() {
        let text = fail(&device, &options);
        assert_eq!(text, fail(&cpu, &options));
        assert!(text.contains("step 0") && text.contains("token 17"), "{text}");
    }
}
