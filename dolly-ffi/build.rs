//! Names the shared library for the dynamic linker and fills in the CMake package files.

use std::path::{Path, PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=cmake");
    let target = std::env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    let major = std::env::var("CARGO_PKG_VERSION_MAJOR").unwrap_or_default();
    if !matches!(target.as_str(), "macos" | "ios" | "windows") {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libdolly.so.{major}");
    }
    if let Err(error) = cmake_files() {
        println!("cargo:warning=CMake package files were not written: {error}");
    }
}

/// Writes `$OUT_DIR/cmake/*.cmake`, which `cargo cinstall` installs as generated data.
fn cmake_files() -> std::io::Result<()> {
    let var = |name| std::env::var(name).map_err(std::io::Error::other);
    let out: PathBuf = Path::new(&var("OUT_DIR")?).join("cmake");
    let version = var("CARGO_PKG_VERSION")?;
    std::fs::create_dir_all(&out)?;
    for name in ["dollyConfig.cmake", "dollyConfigVersion.cmake"] {
        let template = std::fs::read_to_string(format!("cmake/{name}.in"))?;
        std::fs::write(out.join(name), template.replace("@VERSION@", &version))?;
    }
    Ok(())
}
