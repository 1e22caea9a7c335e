//! How a model is loaded: device, weight format, threads, limits, progress.

use std::ffi::{c_char, c_void};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use dolly_core::{CacheFormat, Device, PipelineBuilder, WeightFormat};

use crate::error::dolly_error;
use crate::guard::guard;
use crate::handle::{self, Handle};
use crate::pointers::{Out, owned, text};
use crate::status::{Failure, dolly_status};

/// Settings of dolly_pipeline_load. Freed with dolly_loader_free.
pub struct dolly_loader {
    _opaque: (),
}

impl Handle for dolly_loader {
    type Object = Mutex<Loader>;
    const TAG: u8 = 4;
    const NAME: &'static str = "dolly_loader";
}

/// Hears of every tensor loaded: weights so far, weights of the whole model, the tensor's name (not
/// NUL-terminated, valid during the call).
///
/// Called on the thread inside dolly_pipeline_load, which holds no lock: every function of this
/// library may be called from it. It must return: no longjmp, no C++ exception.
pub type dolly_progress_callback = Option<
    unsafe extern "C" fn(
        user_data: *mut c_void,
        loaded: u64,
        total: u64,
        tensor: *const c_char,
        tensor_len: usize,
    ),
>;

/// What stands behind a [`dolly_loader`].
#[derive(Clone, Default)]
pub(crate) struct Loader {
    device: Device,
    format: WeightFormat,
    threads: Option<usize>,
    context_length: Option<usize>,
    memory_limit: Option<u64>,
    max_batch: Option<usize>,
    kv_cache: Option<CacheFormat>,
    prefix_cache: Option<u64>,
    revision: Option<String>,
    offline: Option<bool>,
    bundled_dir: Option<PathBuf>,
    adapter: Option<PathBuf>,
    packed_weights: Option<PathBuf>,
    progress: Option<Progress>,
}

/// The caller's callback and its data.
#[derive(Clone, Copy)]
struct Progress {
    call: unsafe extern "C" fn(*mut c_void, u64, u64, *const c_char, usize),
    user_data: *mut c_void,
}

// SAFETY: the pointer is handed back to the caller's own callback and never read here; the callback
// runs on the thread that loads, as documented.
unsafe impl Send for Progress {}

impl Progress {
    fn report(self, progress: &dolly_core::LoadProgress) {
        let tensor = &progress.tensor;
        let (data, len) = (tensor.as_ptr().cast(), tensor.len());
        // SAFETY: the caller gave the callback with its data; the text is live during the call.
        unsafe { (self.call)(self.user_data, progress.loaded, progress.total, data, len) };
    }
}

impl Loader {
    /// Moves the settings into a builder of the core.
    pub fn apply(self, mut builder: PipelineBuilder) -> PipelineBuilder {
        builder = builder.device(self.device).weights(self.format);
        if let Some(threads) = self.threads {
            builder = builder.threads(threads);
        }
        if let Some(tokens) = self.context_length {
            builder = builder.context_length(tokens);
        }
        if let Some(bytes) = self.memory_limit {
            builder = builder.memory_limit(bytes);
        }
        if let Some(sequences) = self.max_batch {
            builder = builder.max_batch(sequences);
        }
        if let Some(format) = self.kv_cache {
            builder = builder.kv_cache(format);
        }
        if let Some(bytes) = self.prefix_cache {
            builder = builder.prefix_cache(bytes);
        }
        if let Some(revision) = self.revision {
            builder = builder.revision(revision);
        }
        if let Some(offline) = self.offline {
            builder = builder.offline(offline);
        }
        if let Some(directory) = self.bundled_dir {
            builder = builder.bundled_dir(directory);
        }
        if let Some(directory) = self.adapter {
            builder = builder.adapter(directory);
        }
        if let Some(directory) = self.packed_weights {
            builder = builder.packed_weights(directory);
        }
        if let Some(progress) = self.progress {
            builder = builder.on_progress(move |step| progress.report(&step));
        }
        builder
    }
}

/// Copies the settings out, so that no lock is held while loading.
pub(crate) fn settings(loader: *const dolly_loader) -> Result<Loader, Failure> {
    Ok(handle::get_optional(loader)?.map_or_else(Loader::default, |object| {
        object.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }))
}

fn change(loader: *mut dolly_loader, edit: impl FnOnce(&mut Loader)) -> Result<(), Failure> {
    let object = handle::get(loader)?;
    edit(&mut object.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(())
}

/// Makes settings with their defaults: device and format "auto", one thread per core, the
/// checkpoint's context length, no memory limit.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_loader_new(
    loader: *mut *mut dolly_loader,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: out-pointers are valid for writing by the header's contract.
    unsafe {
        guard(error, || {
            let loader = Out::new(loader, "loader")?;
            loader.write(handle::insert(Mutex::default())?);
            Ok(())
        })
    }
}

/// Where the network runs: "auto", "cpu", "cuda" or "cuda:N". A GPU needs a library built with CUDA
/// and a driver; "auto" takes it where both are.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_loader_set_device(
    loader: *mut dolly_loader,
    device: *const c_char,
    device_len: usize,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: pointers are valid for their lengths by the header's contract.
    unsafe {
        guard(error, || {
            handle::get(loader)?;
            let device = text(device, device_len, "device")?.parse()?;
            change(loader, |held| held.device = device)
        })
    }
}

/// How weights are held in memory: "auto" (as stored), "f32", "f16", "bf16", "q8_0", "q4_0", "q4_k"
/// or "q6_k"; GGUF's blocks of the last two are kept as they are.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_loader_set_format(
    loader: *mut dolly_loader,
    format: *const c_char,
    format_len: usize,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: pointers are valid for their lengths by the header's contract.
    unsafe {
        guard(error, || {
            handle::get(loader)?;
            let format = text(format, format_len, "format")?.parse()?;
            change(loader, |held| held.format = format)
        })
    }
}

/// Threads of the pipeline, 1 to 1024 (checked when loading).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_loader_set_threads(
    loader: *mut dolly_loader,
    threads: usize,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: `error` is NULL or valid for writing by the header's contract.
    unsafe { guard(error, || change(loader, |held| held.threads = Some(threads))) }
}

/// Longest sequence in tokens, prompt and answer together (checked when loading).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_loader_set_context_length(
    loader: *mut dolly_loader,
    tokens: usize,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: `error` is NULL or valid for writing by the header's contract.
    unsafe { guard(error, || change(loader, |held| held.context_length = Some(tokens))) }
}

/// Bytes weights and caches may take together; a model beyond it is DOLLY_STATUS_MEMORY before
/// anything is allocated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_loader_set_memory_limit(
    loader: *mut dolly_loader,
    bytes: u64,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: `error` is NULL or valid for writing by the header's contract.
    unsafe { guard(error, || change(loader, |held| held.memory_limit = Some(bytes))) }
}

/// Most requests that share a step, 1 to 1024 (checked when loading); 64 unless set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_loader_set_max_batch(
    loader: *mut dolly_loader,
    sequences: usize,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: `error` is NULL or valid for writing by the header's contract.
    unsafe { guard(error, || change(loader, |held| held.max_batch = Some(sequences))) }
}

/// How keys and values of running sequences are held: "f32", "f16", "bf16" or "q8_0"; unless set,
/// "f32" with weights in f32, "f16" with f16, and with others "bf16" where the CPU multiplies bf16,
/// else "f16".
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_loader_set_kv_cache(
    loader: *mut dolly_loader,
    format: *const c_char,
    format_len: usize,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: pointers are valid for their lengths by the header's contract.
    unsafe {
        guard(error, || {
            handle::get(loader)?;
            let format: CacheFormat = text(format, format_len, "format")?.parse()?;
            change(loader, |held| held.kv_cache = Some(format))
        })
    }
}

/// Bytes for the cache rows of prompts that were read, from which requests that begin alike copy;
/// 0 is off; a sixteenth of the weights, at least 64 MiB, unless set. Results do not depend on it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_loader_set_prefix_cache(
    loader: *mut dolly_loader,
    bytes: u64,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: `error` is NULL or valid for writing by the header's contract.
    unsafe { guard(error, || change(loader, |held| held.prefix_cache = Some(bytes))) }
}

/// Branch, tag or commit of a hub id; "main" unless set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_loader_set_revision(
    loader: *mut dolly_loader,
    revision: *const c_char,
    revision_len: usize,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: pointers are valid for their lengths by the header's contract.
    unsafe {
        guard(error, || {
            handle::get(loader)?;
            let revision = owned(text(revision, revision_len, "revision")?)?;
            change(loader, |held| held.revision = Some(revision))
        })
    }
}

/// Whether the network is left alone; else it may be asked for files that are not on disk.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_loader_set_offline(
    loader: *mut dolly_loader,
    offline: bool,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: `error` is NULL or valid for writing by the header's contract.
    unsafe { guard(error, || change(loader, |held| held.offline = Some(offline))) }
}

/// A directory that holds dolly-nano/, looked in before the directories beside the library.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_loader_set_bundled_dir(
    loader: *mut dolly_loader,
    directory: *const c_char,
    directory_len: usize,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: pointers are valid for their lengths by the header's contract.
    unsafe {
        guard(error, || {
            handle::get(loader)?;
            let directory = owned(text(directory, directory_len, "directory")?)?;
            change(loader, |held| held.bundled_dir = Some(directory.into()))
        })
    }
}

/// A directory with a low-rank adapter as PEFT writes it, merged into the weights while loading.
///
/// It is read when loading: one that is malformed or does not fit the model is DOLLY_STATUS_FORMAT
/// there, a setting that is not computed (DoRA, biases) DOLLY_STATUS_UNSUPPORTED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_loader_set_adapter(
    loader: *mut dolly_loader,
    directory: *const c_char,
    directory_len: usize,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: pointers are valid for their lengths by the header's contract.
    unsafe {
        guard(error, || {
            handle::get(loader)?;
            let directory = owned(text(directory, directory_len, "directory")?)?;
            change(loader, |held| held.adapter = Some(directory.into()))
        })
    }
}

/// A directory for packed weights: the first load of a model in a format leaves a file there, as
/// large as the weights in memory, and later loads read that instead of converting.
///
/// It is checked against the model's files, and must be as trusted as they are. A directory that
/// cannot be written to is no error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_loader_set_packed_weights(
    loader: *mut dolly_loader,
    directory: *const c_char,
    directory_len: usize,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: pointers are valid for their lengths by the header's contract.
    unsafe {
        guard(error, || {
            handle::get(loader)?;
            let directory = owned(text(directory, directory_len, "directory")?)?;
            change(loader, |held| held.packed_weights = Some(directory.into()))
        })
    }
}

/// A callback for the progress of loading; NULL takes it away. user_data is given back to it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_loader_set_progress(
    loader: *mut dolly_loader,
    callback: dolly_progress_callback,
    user_data: *mut c_void,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: `error` is NULL or valid for writing by the header's contract.
    unsafe {
        guard(error, || {
            let progress = callback.map(|call| Progress { call, user_data });
            change(loader, |held| held.progress = progress)
        })
    }
}

/// Frees settings; NULL is allowed. Pipelines loaded with them are not affected.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_loader_free(loader: *mut dolly_loader) -> dolly_status {
    handle::free(loader)
}
