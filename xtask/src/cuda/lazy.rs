//! Stand-ins for CUDA's libraries that load them at the first call.
//!
//! candle links the driver and the libraries directly: a program built so does not start where one
//! is missing. Linked with these static libraries instead it starts everywhere, and a call without
//! the library returns that library's error code, which candle hands on as an error.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::{Outcome, cargo, output, program, run};

/// One library of CUDA 13.
struct Library {
    /// As linkers name it, and its directory in cudarc.
    name: &'static str,
    bindings: &'static str,
    soname: &'static str,
    /// The code that its functions return where it is missing: one of the library's own enumeration.
    missing: u32,
}

/// Codes: CUDA_ERROR_SHARED_OBJECT_INIT_FAILED, CUBLAS_STATUS_NOT_INITIALIZED,
/// CURAND_STATUS_INITIALIZATION_FAILED, NVRTC_ERROR_INTERNAL_ERROR.
const LIBRARIES: [Library; 5] = [
    Library { name: "cuda", bindings: "driver", soname: "libcuda.so.1", missing: 303 },
    Library { name: "cublas", bindings: "cublas", soname: "libcublas.so.13", missing: 1 },
    Library { name: "cublasLt", bindings: "cublaslt", soname: "libcublasLt.so.13", missing: 1 },
    Library { name: "curand", bindings: "curand", soname: "libcurand.so.10", missing: 203 },
    Library { name: "nvrtc", bindings: "nvrtc", soname: "libnvrtc.so.13", missing: 11 },
];

/// Registers that hold arguments, and the number of vector registers of a variadic call.
const REGISTERS: [&str; 7] = ["rdi", "rsi", "rdx", "rcx", "r8", "r9", "rax"];

/// Makes the stand-ins in `directory`.
pub fn make(root: &Path, directory: &Path) -> Outcome {
    let bindings = bindings(root)?;
    for library in &LIBRARIES {
        let file = bindings.join(library.bindings).join("sys/mod.rs");
        let text =
            std::fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        let functions = functions(&text);
        if functions.is_empty() {
            return Err(format!("{}: no functions found", file.display()));
        }
        compile(directory, library, &functions)?;
    }
    Ok(())
}

/// cudarc's sources, of the version in `Cargo.lock`.
fn bindings(root: &Path) -> Outcome<PathBuf> {
    let words = ["metadata", "--format-version", "1", "--features", "dolly-core/cuda"];
    let metadata = output(&mut cargo(root, &words))?;
    let metadata: serde_json::Value =
        serde_json::from_slice(&metadata).map_err(|e| format!("cargo metadata: {e}"))?;
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let mut found = packages.filter(|package| package["name"] == "cudarc");
    let manifest = found.next().and_then(|package| package["manifest_path"].as_str());
    let directory = manifest.and_then(|manifest| Path::new(manifest).parent());
    directory.map(|d| d.join("src")).ok_or_else(|| "cargo metadata knows no cudarc".to_owned())
}

/// The functions that bindings declare, each once, and whether they give a text.
fn functions(bindings: &str) -> Vec<(&str, bool)> {
    let mut functions: Vec<(&str, bool)> = Vec::new();
    let mut lines = bindings.lines();
    while let Some(line) = lines.next() {
        if line.trim() != "extern \"C\" {" {
            continue;
        }
        let Some(declared) = lines.next().and_then(|line| line.trim().strip_prefix("fn ")) else {
            continue;
        };
        let name = declared.split('(').next().unwrap_or_default();
        functions.push((name, declared.ends_with("-> *const ::core::ffi::c_char;")));
    }
    functions.sort_unstable();
    functions.dedup_by_key(|function| function.0);
    functions
}

fn compile(directory: &Path, library: &Library, functions: &[(&str, bool)]) -> Outcome {
    let source = directory.join(format!("{}.c", library.name));
    let object = directory.join(format!("{}.o", library.name));
    let archive = directory.join(format!("lib{}.a", library.name));
    let text = source_of(library, functions);
    std::fs::write(&source, text).map_err(|e| format!("{}: {e}", source.display()))?;
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    run(program(directory, compiler, &["-O2", "-fPIC", "-c", "-o"]).arg(&object).arg(&source))?;
    // An archive that is there is added to.
    let _ = std::fs::remove_file(&archive);
    run(Command::new("ar").arg("crs").arg(&archive).arg(&object))
}

/// C and assembly for x86-64 Linux: one jump for each function.
fn source_of(library: &Library, functions: &[(&str, bool)]) -> String {
    let Library { name, soname, missing, .. } = library;
    let names: Vec<String> = functions.iter().map(|(name, _)| format!("\"{name}\"")).collect();
    let texts: Vec<&str> = functions.iter().map(|(_, t)| if *t { "1" } else { "0" }).collect();
    let mut text = format!(
        "#define LIBRARY \"{soname}\"\n#define MISSING {missing}\n\
         #define RESOLVE dolly_lazy_{name}_resolve\n\
         #define NAMES {}\n#define TEXTS {}\n{}\n",
        names.join(", "),
        texts.join(", "),
        include_str!("lazy.c"),
    );
    let mut assembly = vec![
        ".local dolly_lazy_slots".to_owned(),
        format!(".comm dolly_lazy_slots, {}, 8", 8 * functions.len()),
        ".text".to_owned(),
    ];
    assembly.extend(entry(name));
    for (index, (function, _)) in functions.iter().enumerate() {
        assembly.extend([
            format!(".globl {function}"),
            format!(".hidden {function}"),
            format!(".type {function}, @function"),
            format!("{function}:"),
            format!("movq dolly_lazy_slots+{}(%rip), %r11", 8 * index),
            "testq %r11, %r11".to_owned(),
            "jz 1f".to_owned(),
            "jmp *%r11".to_owned(),
            format!("1: movl ${index}, %r11d"),
            "jmp dolly_lazy_entry".to_owned(),
        ]);
    }
    text.push_str("__asm__(\n");
    for line in assembly {
        let _ = writeln!(text, "\"{line}\\n\"");
    }
    text.push_str(");\n");
    text
}

/// Asks for the address of function r11 with all arguments saved, then goes there.
fn entry(name: &str) -> Vec<String> {
    let mut lines = vec!["dolly_lazy_entry:".to_owned()];
    lines.extend(REGISTERS.iter().map(|register| format!("pushq %{register}")));
    // Seven pushes and the return address: aligned to 16 again with 128 bytes of vectors.
    lines.push("subq $128, %rsp".to_owned());
    lines.extend((0..8).map(|i| format!("movups %xmm{i}, {}(%rsp)", 16 * i)));
    lines.push("leaq dolly_lazy_slots(%rip), %rdi".to_owned());
    lines.push("movl %r11d, %esi".to_owned());
    lines.push(format!("call dolly_lazy_{name}_resolve"));
    lines.push("movq %rax, %r11".to_owned());
    lines.extend((0..8).map(|i| format!("movups {}(%rsp), %xmm{i}", 16 * i)));
    lines.push("addq $128, %rsp".to_owned());
    lines.extend(REGISTERS.iter().rev().map(|register| format!("popq %{register}")));
    lines.push("jmp *%r11".to_owned());
    lines
}

#[cfg(test)]
mod tests {
    use super::functions;

    #[test]
    fn declared_functions_are_found_once() {
        let text = "pub unsafe fn b() -> R {\n    extern \"C\" {\n        fn b(x: u8) -> R;\n    }\n\
                    extern \"C\" {\n fn a() -> *const ::core::ffi::c_char;\n}\n\
                    extern \"C\" {\n fn b(x: u8) -> R;\n}\npub type T = unsafe extern \"C\" fn(u8);";
        assert_eq!(functions(text), [("a", true), ("b", false)]);
    }
}
