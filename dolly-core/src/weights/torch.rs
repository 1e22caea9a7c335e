//! `pytorch_model.bin`: a zip archive of a pickle and one entry per storage.
//!
//! The pickle is interpreted by [`pickle`](super::pickle), which executes nothing.

use std::collections::HashMap;

use super::checkpoint::RawTensor;
use super::file::{DataFile, check_overlap, elements};
use super::pickle::{self, PickledTensor};
use super::zip::Zip;
use crate::error::{Error, Result, try_vec};

/// Longest pickle program read.
const MAX_PROGRAM: u64 = 64 << 20;

/// The tensors of a state dict saved by `torch.save` (PyTorch 1.6 and later).
pub(crate) fn read(file: &DataFile) -> Result<Vec<RawTensor>> {
    let zip = Zip::read(file)?;
    let prefix = archive_prefix(file, &zip)?;
    check_byte_order(file, &zip, prefix)?;
    let name = format!("{prefix}/data.pkl");
    let entry = zip.get(&name).ok_or_else(|| Error::format(file.path(), "holds no data.pkl"))?;
    let offset = zip.data_offset(entry)?;
    let program = file.read_vec(offset, entry.size, MAX_PROGRAM, "data.pkl")?;
    let pickled = pickle::run(&program)
        .map_err(|reason| Error::format(file.path(), format!("data.pkl: {reason}")))?;

    let mut storages: HashMap<&str, (u64, u64)> = HashMap::new();
    let mut ranges = vec![(offset, offset + entry.size, "data.pkl")];
    let mut tensors = try_vec(pickled.len(), "tensors")?;
    for tensor in pickled {
        let key = tensor.storage.key;
        let (offset, size) = match storages.get(key) {
            Some(&place) => place,
            None => {
                let entry = zip.get(&format!("{prefix}/data/{key}")).ok_or_else(|| {
                    let reason = format!("its storage {key:?} is not in the archive");
                    Error::tensor(file.path(), tensor.name.as_str(), reason)
                })?;
                let place = (zip.data_offset(entry)?, entry.size);
                ranges.push((place.0, place.0 + place.1, key));
                storages.insert(key, place);
                place
            }
        };
        tensors.push(place_tensor(file, tensor, offset, size)?);
    }
    check_overlap(file.path(), &mut ranges)?;
    Ok(tensors)
}

/// The folder of the archive that holds everything.
fn archive_prefix<'a>(file: &DataFile, zip: &'a Zip<'_>) -> Result<&'a str> {
    let fail = |reason: &str| Err(Error::format(file.path(), reason));
    let mut prefixes = zip
        .entries()
        .iter()
        .filter_map(|entry| entry.name.strip_suffix("/data.pkl"))
        .filter(|prefix| !prefix.contains('/'));
    let Some(prefix) = prefixes.next() else {
        return fail("holds no data.pkl: not a file of torch.save");
    };
    if prefixes.next().is_some() {
        return fail("holds more than one data.pkl");
    }
    if zip.get(&format!("{prefix}/constants.pkl")).is_some() {
        return fail("is a TorchScript program, not a state dict");
    }
    Ok(prefix)
}

fn check_byte_order(file: &DataFile, zip: &Zip<'_>, prefix: &str) -> Result<()> {
    let Some(entry) = zip.get(&format!("{prefix}/byteorder")) else { return Ok(()) };
    let order = file.read_vec(zip.data_offset(entry)?, entry.size, 16, "byteorder")?;
    if order == b"little" {
        return Ok(());
    }
    let order = String::from_utf8_lossy(&order);
    Err(Error::format(file.path(), format!("byte order {order:?}; only \"little\" is supported")))
}

/// Checks a tensor against its storage, and the storage against its entry.
fn place_tensor(
    file: &DataFile,
    tensor: PickledTensor<'_>,
    entry_offset: u64,
    entry_size: u64,
) -> Result<RawTensor> {
    let PickledTensor { name, storage, offset, shape } = tensor;
    let fail = |reason: String| Err(Error::tensor(file.path(), name.as_str(), reason));
    let width = storage.width;
    let needed = storage.len.checked_mul(width);
    if needed.is_none_or(|needed| needed > entry_size) {
        return fail(format!(
            "its storage claims {} elements of {width} bytes; the archive holds {entry_size} bytes",
            storage.len
        ));
    }
    let Some(count) = elements(&shape) else {
        return fail(format!("the size of shape {shape:?} overflows"));
    };
    if offset.checked_add(count).is_none_or(|end| end > storage.len) {
        return fail(format!(
            "shape {shape:?} at element {offset} exceeds its storage of {} elements",
            storage.len
        ));
    }
    // No product overflows: offset + count <= storage.len, whose product with width was checked.
    let (offset, bytes) = (entry_offset + offset * width, count * width);
    Ok(RawTensor { name, stored: storage.stored, shape, offset, bytes })
}
