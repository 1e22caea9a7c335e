//! Where the bundled model lies: beside the installed library or program.

use std::path::{Path, PathBuf};

/// Candidates `<prefix>/share/dolly`, the library's own prefix first; they need not exist.
///
/// The library may lie in `<prefix>/lib`, `<prefix>/lib64` or `<prefix>/lib/<architecture>`, a
/// program that holds it statically in `<prefix>/bin`: the two directories above its own are candidates.
pub(crate) fn directories() -> Vec<PathBuf> {
    let files = [library_file(), std::env::current_exe().ok()];
    let mut found = Vec::new();
    for file in files.into_iter().flatten() {
        // A link such as libdolly.so may point into another prefix: both are looked in.
        for file in [file.canonicalize().ok(), Some(file)].into_iter().flatten() {
            for directory in beside(&file) {
                if !found.contains(&directory) {
                    found.push(directory);
                }
            }
        }
    }
    found
}

/// `share/dolly` under the two directories above a file's own.
fn beside(file: &Path) -> impl Iterator<Item = PathBuf> {
    let above = file.ancestors().skip(2).take(2);
    above.map(|prefix| prefix.join("share").join("dolly"))
}

/// The file this code was loaded from, where the system tells.
#[cfg(unix)]
fn library_file() -> Option<PathBuf> {
    use std::ffi::{CStr, OsStr};
    use std::os::unix::ffi::OsStrExt;

    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    let symbol = crate::version::dolly_version as *const libc::c_void;
    // SAFETY: any address may be asked about; the place for the answer is a local.
    if unsafe { libc::dladdr(symbol, info.as_mut_ptr()) } == 0 {
        return None;
    }
    // SAFETY: dladdr filled the structure, which is valid when zeroed.
    let name = unsafe { info.assume_init() }.dli_fname;
    if name.is_null() {
        return None;
    }
    // SAFETY: dladdr gives a NUL-terminated name that lives as long as the object is loaded.
    let name = unsafe { CStr::from_ptr(name) };
    let path = Path::new(OsStr::from_bytes(name.to_bytes()));
    // For the program itself the name may be what it was started as, relative to anything.
    path.is_absolute().then(|| path.to_owned())
}

#[cfg(not(unix))]
fn library_file() -> Option<PathBuf> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_of_the_usual_layouts_are_found() {
        let cases = ["/p/lib/libdolly.so.0", "/p/lib64/libdolly.so", "/p/lib/x86_64/libdolly.so"];
        for file in cases.into_iter().chain(["/p/bin/app"]) {
            let found: Vec<_> = beside(Path::new(file)).collect();
            assert!(found.contains(&PathBuf::from("/p/share/dolly")), "{file}: {found:?}");
        }
    }

    #[test]
    fn this_test_program_is_where_its_code_lies() {
        let exe = std::env::current_exe().unwrap();
        let found = directories();
        assert!(found.iter().any(|directory| beside(&exe).any(|own| own == *directory)));
    }
}
