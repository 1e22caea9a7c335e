//! The README's own snippets, run as they stand.

use std::path::Path;
use std::process::Command;

use crate::cinstall;
use crate::command::{Outcome, run};
use crate::python::Venv;

/// Runs every `python` and `c` block of the README, and the command that does the main job.
///
/// Rust blocks are documentation tests of dolly-core. `artifacts` holds the libraries built.
pub fn check(root: &Path, venv: &Venv, artifacts: &Path) -> Outcome {
    let readme = std::fs::read_to_string(root.join("README.md")).map_err(|e| e.to_string())?;
    let python = blocks(&readme, "python");
    if python.is_empty() {
        return Err("the README has no Python block".to_owned());
    }
    for (index, block) in python.iter().enumerate() {
        let file = root.join(format!("target/readme-{index}.py"));
        std::fs::write(&file, block).map_err(|error| error.to_string())?;
        venv.python(&[&file.to_string_lossy()])?;
    }
    c(root, &readme, artifacts)?;
    let main_job = "cargo run --release --example generate";
    let commands = blocks(&readme, "sh").join("\n");
    let command = commands.lines().find(|line| line.starts_with(main_job));
    let command = command.ok_or("the README does not show the main job")?;
    run(Command::new("sh").current_dir(root).args(["-c", command]))
}

/// Compiles and runs the C blocks as a user would, against an installed library.
fn c(root: &Path, readme: &str, artifacts: &Path) -> Outcome {
    let prefix = root.join("target/readme-prefix");
    let libraries = cinstall::install(root, &prefix, artifacts)?;
    for (index, block) in blocks(readme, "c").iter().enumerate() {
        let program = root.join(format!("target/readme-{index}"));
        let source = program.with_extension("c");
        std::fs::write(&source, block).map_err(|error| error.to_string())?;
        let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
        let mut compile = Command::new(compiler);
        compile.args(["-Wall", "-Wextra", "-Werror", "-o"]).arg(&program).arg(&source);
        compile.arg("-I").arg(prefix.join("include")).arg("-L").arg(&libraries).arg("-ldolly");
        run(compile.arg(format!("-Wl,-rpath,{}", libraries.display())))?;
        run(&mut Command::new(&program))?;
    }
    Ok(())
}

/// The fenced blocks of one language, in order.
pub fn blocks(markdown: &str, language: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut open: Option<(bool, String)> = None;
    for line in markdown.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(tag)) => open = Some((tag.trim() == language, String::new())),
            (Some(_), Some(_)) => {
                if let Some((true, block)) = open.take() {
                    found.push(block);
                }
            }
            (Some((true, block)), None) => {
                block.push_str(line);
                block.push('\n');
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::blocks;

    #[test]
    fn finds_blocks_of_one_language() {
        let text = "a\n```sh\nls\n```\n```python\nx = 1\ny\n```\n```sh\npwd\n```\n";
        assert_eq!(blocks(text, "sh"), ["ls\n", "pwd\n"]);
        assert_eq!(blocks(text, "python"), ["x = 1\ny\n"]);
        assert!(blocks(text, "c").is_empty());
    }
}
