//! Installs the C library as `cargo cinstall` does, without cargo-c: libraries, header, pkg-config
//! and CMake packages, bundled model.
//!
//! ```text
//! include/dolly.h
//! lib/libdolly.so -> libdolly.so.0 -> libdolly.so.0.1.0    lib/libdolly.a
//! lib/pkgconfig/dolly.pc
//! share/dolly/cmake/dollyConfig.cmake, dollyConfigVersion.cmake
//! share/dolly/dolly-nano/
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const VERSION: &str = env!("CARGO_PKG_VERSION");
const MAJOR: &str = env!("CARGO_PKG_VERSION_MAJOR");
/// What a static libdolly needs beside itself.
const PRIVATE_LIBS: &str = "-lgcc_s -lutil -lrt -lpthread -lm -ldl -lc";

/// Installs what `cargo build -p dolly-ffi` left in `artifacts` under `prefix`; gives the directory
/// of the installed libraries.
pub fn install(root: &Path, prefix: &Path, artifacts: &Path) -> Result<PathBuf, String> {
    let prefix = std::path::absolute(prefix).map_err(|e| format!("{}: {e}", prefix.display()))?;
    let libraries = prefix.join("lib");
    shared(&artifacts.join("libdolly.so"), &libraries)?;
    copy(&artifacts.join("libdolly.a"), &libraries.join("libdolly.a"))?;
    copy(&root.join("include/dolly.h"), &prefix.join("include/dolly.h"))?;
    write(&libraries.join("pkgconfig/dolly.pc"), &pkg_config(&prefix))?;
    for name in ["dollyConfig.cmake", "dollyConfigVersion.cmake"] {
        let template = root.join(format!("dolly-ffi/cmake/{name}.in"));
        let text =
            fs::read_to_string(&template).map_err(|e| format!("{}: {e}", template.display()))?;
        let file = prefix.join("share/dolly/cmake").join(name);
        write(&file, &text.replace("@VERSION@", VERSION))?;
    }
    model(&root.join("models/dolly-nano"), &prefix.join("share/dolly/dolly-nano"))?;
    Ok(libraries)
}

/// The shared library under its full version, with the links the loader and the linker look for.
fn shared(library: &Path, libraries: &Path) -> Result<(), String> {
    let full = format!("libdolly.so.{VERSION}");
    copy(library, &libraries.join(&full))?;
    for name in [format!("libdolly.so.{MAJOR}"), "libdolly.so".to_owned()] {
        link(&full, &libraries.join(name))?;
    }
    Ok(())
}

/// The files of the bundled model; directories in it are not part of it.
fn model(from: &Path, to: &Path) -> Result<(), String> {
    let entries = fs::read_dir(from).map_err(|e| format!("{}: {e}", from.display()))?;
    for entry in entries {
        let path = entry.map_err(|e| format!("{}: {e}", from.display()))?.path();
        if let (true, Some(name)) = (path.is_file(), path.file_name()) {
            copy(&path, &to.join(name))?;
        }
    }
    Ok(())
}

fn pkg_config(prefix: &Path) -> String {
    format!(
        "prefix={}\nexec_prefix=${{prefix}}\nlibdir=${{exec_prefix}}/lib\n\
         includedir=${{prefix}}/include\n\nName: dolly\n\
         Description: Run Dolly 2.0 and other GPT-NeoX models from C and C++\n\
         Version: {VERSION}\nLibs: -L${{libdir}} -ldolly\nCflags: -I${{includedir}}\n\
         Libs.private: {PRIVATE_LIBS}\n",
        prefix.display()
    )
}

fn parent(file: &Path) -> Result<(), String> {
    let directory = file.parent().unwrap_or(file);
    fs::create_dir_all(directory).map_err(|e| format!("{}: {e}", directory.display()))
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    parent(to)?;
    // A library in use is replaced, not written over.
    let _ = fs::remove_file(to);
    let copied = fs::copy(from, to).map(drop);
    copied.map_err(|e| format!("{} to {}: {e}", from.display(), to.display()))
}

fn write(file: &Path, text: &str) -> Result<(), String> {
    parent(file)?;
    fs::write(file, text).map_err(|e| format!("{}: {e}", file.display()))
}

#[cfg(unix)]
fn link(target: &str, name: &Path) -> Result<(), String> {
    let _ = fs::remove_file(name);
    std::os::unix::fs::symlink(target, name).map_err(|e| format!("{}: {e}", name.display()))
}

#[cfg(not(unix))]
fn link(target: &str, name: &Path) -> Result<(), String> {
    copy(&name.with_file_name(target), name)
}

/// Installs into a directory of its own and builds the examples there as users would, by pkg-config
/// and by the CMake and ninja in `tools`; they must find the bundled model beside the library.
///
/// The directory lies outside the workspace, where nothing else could lead to the model.
pub fn check(root: &Path, artifacts: &Path, tools: &Path) -> Result<(), String> {
    let place = std::env::temp_dir().join(format!("dolly-install-{}", std::process::id()));
    let outcome = install(root, &place.join("prefix"), artifacts)
        .and_then(|_| check_installed(root, &place.join("prefix"), &place.join("work"), tools));
    let _ = fs::remove_dir_all(&place);
    outcome
}

fn check_installed(root: &Path, prefix: &Path, work: &Path, tools: &Path) -> Result<(), String> {
    fs::create_dir_all(work).map_err(|e| format!("{}: {e}", work.display()))?;
    let example = root.join("examples/c/generate.c");

    let flags = pkg_config_flags(prefix, &["--cflags", "--libs"])?;
    let rpath = format!("-Wl,-rpath,{}", prefix.join("lib").display());
    let program = work.join("generate");
    run(Command::new("cc").arg(&example).arg("-o").arg(&program).args(flags).arg(rpath))?;
    run(Command::new(&program).current_dir(work))?;

    // Statically: the program itself lies in the prefix and finds the model from there.
    let mut flags = pkg_config_flags(prefix, &["--static", "--cflags", "--libs"])?;
    flags.iter_mut().filter(|flag| *flag == "-ldolly").for_each(|flag| {
        *flag = prefix.join("lib/libdolly.a").display().to_string();
    });
    let program = prefix.join("bin/dolly-generate-example");
    parent(&program)?;
    run(Command::new("cc").arg(&example).arg("-o").arg(&program).args(flags))?;
    run(Command::new(&program).current_dir(work))?;
    cmake(prefix, &example, work, tools)
}

fn pkg_config_flags(prefix: &Path, arguments: &[&str]) -> Result<Vec<String>, String> {
    let mut command = Command::new("pkg-config");
    command.args(arguments).arg("dolly");
    let output = command.env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig")).output();
    let output = output.map_err(|e| format!("pkg-config: {e}"))?;
    match output.status.success() {
        true => {
            let flags = String::from_utf8_lossy(&output.stdout);
            Ok(flags.split_whitespace().map(str::to_owned).collect())
        }
        false => Err(format!("pkg-config: {}", String::from_utf8_lossy(&output.stderr))),
    }
}

/// A CMake project that asks for this very series of versions.
fn cmake(prefix: &Path, example: &Path, work: &Path, tools: &Path) -> Result<(), String> {
    let project = format!(
        "cmake_minimum_required(VERSION 3.15)\nproject(check C)\n\
         find_package(dolly {VERSION} REQUIRED)\n\
         add_executable(shared \"{0}\")\ntarget_link_libraries(shared PRIVATE dolly::dolly)\n\
         add_executable(static \"{0}\")\ntarget_link_libraries(static PRIVATE \
         dolly::dolly_static)\n",
        example.display()
    );
    write(&work.join("cmake/CMakeLists.txt"), &project)?;
    let build = work.join("cmake/build");
    let _ = fs::remove_dir_all(&build);
    let (cmake, ninja) = (tools.join("cmake"), tools.join("ninja"));
    let mut configure = Command::new(&cmake);
    configure.arg("-S").arg(work.join("cmake")).arg("-B").arg(&build).args(["-G", "Ninja"]);
    configure.arg(format!("-DCMAKE_MAKE_PROGRAM={}", ninja.display()));
    run(configure.arg(format!("-DCMAKE_PREFIX_PATH={}", prefix.display())))?;
    run(Command::new(&cmake).arg("--build").arg(&build))?;
    run(Command::new(build.join("shared")).current_dir(work))?;
    // This program lies in no prefix: the model is named.
    run(Command::new(build.join("static")).arg(prefix.join("share/dolly/dolly-nano")))
}

/// Runs quietly; what was written is shown only when it fails.
fn run(command: &mut Command) -> Result<(), String> {
    let shown = format!("{command:?}");
    let output = command.output().map_err(|e| format!("{shown}: {e}"))?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
            let (out, err) = (text(&output.stdout), text(&output.stderr));
            Err(format!("{shown}: {}\n{out}{err}", output.status))
        }
    }
}
