//! The C ABI tested from C and C++: built library, committed header, every program in `tests/c`
//! and `examples`, plain, under AddressSanitizer, under valgrind.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{header, torture};

/// How the programs are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// As they are.
    Plain,
    /// The C side compiled with AddressSanitizer and UBSan, leaks counted.
    Asan,
    /// Under valgrind, every leak an error.
    Valgrind,
}

const WARNINGS: [&str; 5] = ["-Wall", "-Wextra", "-Werror", "-pedantic", "-g"];
/// What the Rust standard library needs when linked statically on Linux.
const STATIC_LIBS: [&str; 4] = ["-lgcc_s", "-lpthread", "-lm", "-ldl"];

/// Compiles and runs everything against `lib_dir/libdolly.so` and `libdolly.a`, with the model in
/// the directory `model`.
pub fn run(root: &Path, lib_dir: &Path, model: &Path, mode: Mode) -> Result<(), String> {
    let tests = Tests::new(root, lib_dir, model, mode)?;
    if mode == Mode::Plain {
        tests.drift()?;
        tests.exports()?;
        tests.header_alone()?;
    } else {
        tests.instrumentation()?;
    }
    tests.torture()?;
    let sources = sources(&root.join("tests/c"), "c")?;
    // A sanitizer keeps freed memory back: what grows can be told in plain runs only.
    let measures = |source: &PathBuf| source.ends_with("test_growth.c");
    let wanted = sources.into_iter().filter(|source| mode == Mode::Plain || !measures(source));
    for source in wanted.chain(sources_of_examples(root)?) {
        tests.one(&source, &[])?;
    }
    for source in self::sources(&root.join("examples/cpp"), "cpp")? {
        match tests.has_cpp() {
            true => tests.one(&source, &[])?,
            false => eprintln!("!!! SKIPPED, no C++ compiler: {}", source.display()),
        }
    }
    tests.statically()
}

/// Compiles `tests/suite/route.c` against the library; gives the program.
pub fn build_suite(root: &Path, lib_dir: &Path) -> Result<PathBuf, String> {
    let tests = Tests::new(root, lib_dir, Path::new(""), Mode::Plain)?;
    let program = root.join("target/suite-c");
    tests.compile(&root.join("tests/suite/route.c"), &program, &tests.shared())?;
    Ok(program)
}

fn sources(directory: &Path, extension: &str) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(directory).map_err(|e| format!("{}: {e}", directory.display()))?;
    let files = entries.flatten().map(|entry| entry.path());
    let mut files: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
    files.sort();
    match files.is_empty() {
        true => Err(format!("{}: no .{extension} file", directory.display())),
        false => Ok(files),
    }
}

fn sources_of_examples(root: &Path) -> Result<Vec<PathBuf>, String> {
    sources(&root.join("examples/c"), "c")
}

struct Tests<'a> {
    root: &'a Path,
    lib_dir: &'a Path,
    model: &'a Path,
    mode: Mode,
    work: PathBuf,
}

impl<'a> Tests<'a> {
    fn new(root: &'a Path, lib_dir: &'a Path, model: &'a Path, mode: Mode) -> Result<Self, String> {
        let work = root.join(format!("target/ctests/{mode:?}").to_lowercase());
        fs::create_dir_all(&work).map_err(|e| format!("{}: {e}", work.display()))?;
        let tests = Self { root, lib_dir, model, mode, work };
        tests.link_soname()?;
        Ok(tests)
    }

    /// The build leaves `libdolly.so`; programs look for the name it carries inside.
    fn link_soname(&self) -> Result<(), String> {
        let library = fs::canonicalize(self.lib_dir.join("libdolly.so"))
            .map_err(|e| format!("{}/libdolly.so: {e}", self.lib_dir.display()))?;
        for name in ["libdolly.so".to_owned(), format!("libdolly.so.{}", MAJOR)] {
            let link = self.work.join(name);
            let _ = fs::remove_file(&link);
            symlink(&library, &link)?;
        }
        Ok(())
    }

    /// `include/dolly.h` must be what the sources give.
    fn drift(&self) -> Result<(), String> {
        let file = self.root.join("include/dolly.h");
        let committed =
            fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        match committed == header::generate(self.root)? {
            true => Ok(()),
            false => Err("include/dolly.h differs from the sources: cargo xtask header".to_owned()),
        }
    }

    /// The shared library offers exactly what the header declares.
    fn exports(&self) -> Result<(), String> {
        let library = self.lib_dir.join("libdolly.so");
        let mut nm = Command::new("nm");
        let output = nm.args(["-D", "--defined-only", "--format=posix"]).arg(&library).output();
        let output = output.map_err(|e| format!("nm: {e}"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let mut offered: Vec<&str> =
            text.lines().filter_map(|line| line.split(' ').next()).collect();
        let header = header::generate(self.root)?;
        let declarations = header::declarations(&header);
        let head = |text: &str| text.split('(').next().unwrap_or_default().to_owned();
        let heads: Vec<String> = declarations.iter().map(|text| head(text)).collect();
        let mut declared: Vec<&str> =
            heads.iter().filter_map(|head| head.rsplit([' ', '*']).next()).collect();
        offered.sort_unstable();
        declared.sort_unstable();
        match offered == declared && !declared.is_empty() {
            true => Ok(()),
            false => {
                let file = library.display();
                Err(format!("{file} exports\n{offered:?}\nthe header declares\n{declared:?}"))
            }
        }
    }

    /// The header compiles alone, in every language it is for, and in two units of one program.
    fn header_alone(&self) -> Result<(), String> {
        let mut languages = vec![("cc", "c", "-std=c99"), ("cc", "c", "-std=c11")];
        if self.has_cpp() {
            languages.extend([("c++", "c++", "-std=c++11"), ("c++", "c++", "-std=c++17")]);
        }
        let unit = self.work.join("alone.h.c");
        write(&unit, "#include \"dolly.h\"\n#include \"dolly.h\"\nextern int dolly_alone;\n")?;
        for (compiler, language, standard) in languages {
            let mut command = Command::new(compiler);
            command.args(WARNINGS).args([standard, "-fsyntax-only", "-x", language]).arg(&unit);
            checked(command.arg("-I").arg(self.root.join("include")))?;
        }
        Ok(())
    }

    fn torture(&self) -> Result<(), String> {
        let file = self.root.join("include/dolly.h");
        let header = fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        let source = self.work.join("torture.c");
        write(&source, &torture::program(&header)?)?;
        let tests = self.root.join("tests/c");
        self.one(&source, &["-I".to_owned(), tests.display().to_string()])
    }

    /// Compiles one program and runs it.
    fn one(&self, source: &Path, flags: &[String]) -> Result<(), String> {
        let program = self.program(source);
        let flags: Vec<String> = flags.iter().cloned().chain(self.shared()).collect();
        self.compile(source, &program, &flags)?;
        self.execute(&program)
    }

    /// Two programs again, with the static library.
    fn statically(&self) -> Result<(), String> {
        let library = self.lib_dir.join("libdolly.a");
        let flags = std::iter::once(library.display().to_string());
        let flags: Vec<String> = flags.chain(STATIC_LIBS.map(str::to_owned)).collect();
        for name in ["test_version", "test_generate"] {
            let program = self.work.join(format!("{name}_static"));
            self.compile(&self.root.join(format!("tests/c/{name}.c")), &program, &flags)?;
            self.execute(&program)?;
        }
        Ok(())
    }

    fn program(&self, source: &Path) -> PathBuf {
        let language = source.extension().unwrap_or_default().to_string_lossy().into_owned();
        let stem = source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        self.work.join(format!("{stem}_{language}"))
    }

    fn shared(&self) -> Vec<String> {
        let work = self.work.display().to_string();
        let rpath = format!("-Wl,-rpath,{work}");
        ["-L", &work, &rpath, "-ldolly", "-pthread", "-lm"].map(str::to_owned).to_vec()
    }

    fn compile(&self, source: &Path, program: &Path, flags: &[String]) -> Result<(), String> {
        let cpp = source.extension().is_some_and(|extension| extension == "cpp");
        let mut command = Command::new(if cpp { "c++" } else { "cc" });
        command.args(WARNINGS).arg(if cpp { "-std=c++11" } else { "-std=c99" });
        command.arg(format!("-DPACKAGE_VERSION=\"{}\"", env!("CARGO_PKG_VERSION")));
        if self.mode == Mode::Asan {
            command.args(["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]);
        }
        command.arg("-I").arg(self.root.join("include")).arg(source).arg("-o").arg(program);
        checked(command.args(flags))
    }

    fn execute(&self, program: &Path) -> Result<(), String> {
        let mut command = match self.mode {
            Mode::Valgrind => {
                let mut command = Command::new("valgrind");
                command.args(["--quiet", "--error-exitcode=99", "--leak-check=full"]);
                command.args(["--errors-for-leak-kinds=definite,indirect", "--"]).arg(program);
                // valgrind knows no AVX-512, and reports what it does not know as a crash.
                command.env("DOLLY_FORCE_ISA", "portable");
                command
            }
            Mode::Plain | Mode::Asan => Command::new(program),
        };
        command.env("ASAN_OPTIONS", "detect_leaks=1:detect_stack_use_after_return=1");
        command.env("DOLLY_TEST_MODEL", self.model);
        checked(command.arg(self.model))
    }

    /// A program that leaks and one that reads freed memory must be found out, else the tool is
    /// not at work.
    fn instrumentation(&self) -> Result<(), String> {
        let leak = "volatile char *p = malloc(9); p[0] = 1; p = 0;";
        let freed = "volatile char *p = malloc(9); p[0] = 1; free((void *)p); return p[0];";
        for (name, body) in [("leak", leak), ("use_after_free", freed)] {
            let source = self.work.join(format!("canary_{name}.c"));
            let main = format!("int main(void) {{ {body} return 0; }}");
            write(&source, &format!("#include <stdlib.h>\n{main}\n"))?;
            let program = self.program(&source);
            let quiet = ["-O0", "-Wno-use-after-free"].map(str::to_owned);
            self.compile(&source, &program, &quiet)?;
            if self.execute(&program).is_ok() {
                return Err(format!("{:?} did not notice {name}: it is not at work", self.mode));
            }
        }
        Ok(())
    }

    fn has_cpp(&self) -> bool {
        Command::new("c++").arg("--version").output().is_ok_and(|output| output.status.success())
    }
}

const MAJOR: &str = env!("CARGO_PKG_VERSION_MAJOR");

fn write(file: &Path, text: &str) -> Result<(), String> {
    fs::write(file, text).map_err(|e| format!("{}: {e}", file.display()))
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> Result<(), String> {
    std::os::unix::fs::symlink(target, link).map_err(|e| format!("{}: {e}", link.display()))
}

#[cfg(not(unix))]
fn symlink(target: &Path, link: &Path) -> Result<(), String> {
    fs::copy(target, link).map(drop).map_err(|e| format!("{}: {e}", link.display()))
}

/// Runs quietly; what was written is shown only when it fails.
fn checked(command: &mut Command) -> Result<(), String> {
    let shown = format!("{command:?}");
    let output = command.output().map_err(|e| format!("{shown}: {e}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!(
            "{shown}: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )),
    }
}
