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
