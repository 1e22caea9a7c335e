//! What a pickle program may handle: the values, the functions it may name, and their checks.

use crate::weights::StoredType;

/// The result of a step; the error is what is wrong, without its place.
pub(super) type Step<T = ()> = Result<T, String>;

/// A tensor as the program describes it; its storage is an entry of the archive.
#[derive(Debug)]
pub(in crate::weights) struct PickledTensor<'a> {
    pub(in crate::weights) name: String,
    pub(in crate::weights) storage: Storage<'a>,
    /// First element within the storage.
    pub(in crate::weights) offset: u64,
    pub(in crate::weights) shape: Vec<usize>,
}

/// A typed run of elements in an entry of the archive.
#[derive(Debug, Clone, Copy)]
pub(in crate::weights) struct Storage<'a> {
    pub(in crate::weights) key: &'a str,
    pub(in crate::weights) stored: StoredType,
    /// Bytes of an element.
    pub(in crate::weights) width: u64,
    /// Elements.
    pub(in crate::weights) len: u64,
}

/// The functions and classes a state dict names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildTensorV2,
    RebuildParameter,
    StorageType(StoredType, u64),
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'a> {
    None,
    Bool,
    Int(i64),
    /// A value of no interest: floats, lists.
    Opaque,
    Str(&'a str),
    Tuple {
        start: usize,
        len: usize,
    },
    Dict(usize),
    Global(Global),
    Storage(Storage<'a>),
    Tensor(usize),
}

impl Value<'_> {
    /// What the value is, in words.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool => "a bool",
            Self::Int(_) => "an integer",
            Self::Opaque => "a list or number",
            Self::Str(_) => "a string",
            Self::Tuple { .. } => "a tuple",
            Self::Dict(_) => "a dict",
            Self::Global(_) => "a class or function",
            Self::Storage(_) => "a storage",
            Self::Tensor(_) => "a tensor",
        }
    }
}

pub(super) fn natural(value: Value<'_>) -> Step<u64> {
    match value {
        Value::Int(number) => {
            u64::try_from(number).map_err(|_| format!("{number} stands for a size"))
        }
        other => Err(format!("{} stands for a size", other.kind())),
    }
}

pub(super) fn to_usize(number: u64) -> Step<usize> {
    usize::try_from(number).map_err(|_| format!("size {number} is too large"))
}

/// Whether strides are those of a row-major tensor; dimensions of one element may have any.
pub(super) fn contiguous(shape: &[usize], stride: &[usize]) -> bool {
    if shape.len() != stride.len() {
        return false;
    }
    if shape.contains(&0) {
        return true;
    }
    let mut expected = Some(1usize);
    for (&size, &step) in shape.iter().zip(stride).rev() {
        if size != 1 && Some(step) != expected {
            return false;
        }
        expected = expected.and_then(|product| product.checked_mul(size));
    }
    true
}

/// A name from the file as it may stand in an error.
pub(super) fn clip(name: &str) -> String {
    name.chars().take(100).flat_map(char::escape_debug).collect()
}

pub(super) fn find_global(module: &str, name: &str) -> Option<Global> {
    match (module, name) {
        ("collections", "OrderedDict") => Some(Global::OrderedDict),
        ("torch._utils", "_rebuild_tensor") => Some(Global::RebuildTensor),
        ("torch._utils", "_rebuild_tensor_v2") => Some(Global::RebuildTensorV2),
        ("torch._utils", "_rebuild_parameter") => Some(Global::RebuildParameter),
        ("torch" | "torch.storage" | "torch.cuda", _) => {
            let (stored, width) = match name {
                "DoubleStorage" => (StoredType::F64, 8),
                "FloatStorage" => (StoredType::F32, 4),
                "HalfStorage" => (StoredType::F16, 2),
                "BFloat16Storage" => (StoredType::Bf16, 2),
                "LongStorage" => (StoredType::Other, 8),
                "IntStorage" => (StoredType::Other, 4),
                "ShortStorage" => (StoredType::Other, 2),
                "CharStorage" | "ByteStorage" | "BoolStorage" | "UntypedStorage" => {
                    (StoredType::Other, 1)
                }
                _ => return None,
            };
            Some(Global::StorageType(stored, width))
        }
        _ => None,
    }
}
