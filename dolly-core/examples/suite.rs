//! Answers the cases of a file with a model: the Rust route of `tests/suite`.
//!
//! `cargo run --release --example suite -- CASES MODEL > ANSWERS`

use std::error::Error;
use std::io::Write as _;

use dolly_core::{GenerateOptions, Instruction, Pipeline};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [cases, model] = arguments.as_slice() else { return Err("suite CASES MODEL".into()) };
    let pipe = Pipeline::from_pretrained(model.as_str())?;
    let data = std::fs::read_to_string(cases)?;
    let mut rest = data.as_str();
    let mut stdout = std::io::stdout().lock();
    while let Some((header, body)) = rest.split_once('\n') {
        let numbers: Vec<u64> = header.split(' ').map(str::parse).collect::<Result<_, _>>()?;
        let [instruction_bytes, context_bytes, seed] = numbers[..] else {
            return Err(format!("bad header {header:?}").into());
        };
        let (instruction, body) = body.split_at(instruction_bytes as usize);
        let (context, body) = body.split_at(context_bytes as usize);
        rest = body.strip_prefix('\n').unwrap_or(body);
        let options =
            GenerateOptions { seed: Some(seed), max_new_tokens: 64, ..Default::default() };
        let answer = pipe.generate(Instruction::new(instruction).context(context), &options)?;
        writeln!(stdout, "{}\n{}", answer.text.len(), answer.text)?;
    }
    Ok(())
}
