//! Project tasks.

mod header;

fn main() -> Result<(), String> {
    let root = std::path::Path::new(".");
    std::fs::create_dir_all("include").map_err(|e| e.to_string())?;
    std::fs::write("include/dolly.h", header::generate(root)?).map_err(|e| e.to_string())
}
