//! A loaded model: load, ask what it is and costs, close, free.

use std::ffi::c_char;
use std::ptr::null_mut;

use dolly_core::Pipeline;

use crate::bundled;
use crate::error::dolly_error;
use crate::guard::guard;
use crate::handle::{self, Handle};
use crate::loader::{dolly_loader, settings};
use crate::pointers::{Out, owned, text};
use crate::status::dolly_status;
use crate::text::Text;

/// A loaded model; every call takes it from any thread, calls at the same time share its work.
/// Freed with dolly_pipeline_free.
pub struct dolly_pipeline {
    _opaque: (),
}

impl Handle for dolly_pipeline {
    type Object = Loaded;
    const TAG: u8 = 5;
    const NAME: &'static str = "dolly_pipeline";
}

/// What stands behind a [`dolly_pipeline`].
pub(crate) struct Loaded {
    pipeline: Pipeline,
    id: Text,
    format: Text,
}

impl std::ops::Deref for Loaded {
    type Target = Pipeline;

    fn deref(&self) -> &Pipeline {
        &self.pipeline
    }
}

/// Loads a model: a hub id ("databricks/dolly-v2-3b"), a directory, a .gguf file, or "dolly-nano",
/// the small model installed with the library.
///
/// loader may be NULL for the defaults. The call blocks until the model is in memory. It reads and
/// checks untrusted files: DOLLY_STATUS_NOT_FOUND, _IO, _FORMAT, _MEMORY, _DEVICE, _UNSUPPORTED,
/// _NETWORK and _INVALID_ARGUMENT say what is wrong, the error's message where.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_pipeline_load(
    model: *const c_char,
    model_len: usize,
    loader: *const dolly_loader,
    pipeline: *mut *mut dolly_pipeline,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: pointers are valid for their lengths by the header's contract.
    unsafe {
        guard(error, || {
            let settings = settings(loader)?;
            let (model, out) = (text(model, model_len, "model")?, Out::new(pipeline, "pipeline")?);
            let mut builder = settings.apply(Pipeline::builder(owned(model)?));
            for directory in bundled::directories() {
                builder = builder.bundled_dir(directory);
            }
            let pipeline = builder.build()?;
            let id = Text::new(pipeline.id().to_owned());
            let format = Text::new(pipeline.weight_format().name().to_owned());
            out.write(handle::insert(Loaded { pipeline, id, format })?);
            Ok(())
        })
    }
}

/// Ends every running request of the pipeline and frees its weights at once.
///
/// Running requests and later calls end with DOLLY_STATUS_CLOSED; what tells about the model
/// (config, tokenizer) stays. The handle must still be freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_pipeline_close(pipeline: *const dolly_pipeline) -> dolly_status {
    // SAFETY: NULL is allowed as the place of an error.
    unsafe {
        guard(null_mut(), || {
            handle::get(pipeline)?.close();
            Ok(())
        })
    }
}

/// Frees a pipeline; NULL is allowed.
///
/// Calls of other threads that are inside the library finish as if it still lived; streams that
/// are open end with DOLLY_STATUS_CLOSED once no such call is left.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_pipeline_free(pipeline: *mut dolly_pipeline) -> dolly_status {
    handle::free(pipeline)
}

/// What the model was called when it was loaded; valid until the pipeline is freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_pipeline_id(
    pipeline: *const dolly_pipeline,
    id: *mut *const c_char,
    id_len: *mut usize,
) -> dolly_status {
    // SAFETY: out-pointers are valid for writing by the header's contract.
    unsafe {
        guard(null_mut(), || {
            let pipe = handle::get(pipeline)?;
            let (id, len) = (Out::new(id, "id")?, Out::new(id_len, "id_len")?);
            id.write(pipe.id.as_ptr());
            len.write(pipe.id.len());
            Ok(())
        })
    }
}

/// The format the weights are held in, such as "q8_0"; valid until the pipeline is freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_pipeline_weight_format(
    pipeline: *const dolly_pipeline,
    format: *mut *const c_char,
    format_len: *mut usize,
) -> dolly_status {
    // SAFETY: out-pointers are valid for writing by the header's contract.
    unsafe {
        guard(null_mut(), || {
            let pipe = handle::get(pipeline)?;
            let (format, len) = (Out::new(format, "format")?, Out::new(format_len, "format_len")?);
            format.write(pipe.format.as_ptr());
            len.write(pipe.format.len());
            Ok(())
        })
    }
}

unsafe fn size(
    pipeline: *const dolly_pipeline,
    out: *mut usize,
    read: impl FnOnce(&Pipeline) -> usize,
) -> dolly_status {
    // SAFETY: the out-pointer is valid for writing by the header's contract.
    unsafe {
        guard(null_mut(), || {
            let pipe = handle::get(pipeline)?;
            Out::new(out, "the place of the result")?.write(read(&pipe));
            Ok(())
        })
    }
}

/// Longest sequence in tokens, prompt and answer together.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_pipeline_context_length(
    pipeline: *const dolly_pipeline,
    tokens: *mut usize,
) -> dolly_status {
    // SAFETY: passed on.
    unsafe { size(pipeline, tokens, Pipeline::context_length) }
}

/// Rows of the embedding: the number of logits of each token.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_pipeline_vocab_size(
    pipeline: *const dolly_pipeline,
    ids: *mut usize,
) -> dolly_status {
    // SAFETY: passed on.
    unsafe { size(pipeline, ids, |pipe| pipe.config().vocab_size) }
}

/// Width of the network's residual stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_pipeline_hidden_size(
    pipeline: *const dolly_pipeline,
    width: *mut usize,
) -> dolly_status {
    // SAFETY: passed on.
    unsafe { size(pipeline, width, |pipe| pipe.config().hidden_size) }
}

/// Blocks of the network.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_pipeline_layers(
    pipeline: *const dolly_pipeline,
    layers: *mut usize,
) -> dolly_status {
    // SAFETY: passed on.
    unsafe { size(pipeline, layers, |pipe| pipe.config().num_hidden_layers) }
}

/// Attention heads of each block.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_pipeline_heads(
    pipeline: *const dolly_pipeline,
    heads: *mut usize,
) -> dolly_status {
    // SAFETY: passed on.
    unsafe { size(pipeline, heads, |pipe| pipe.config().num_attention_heads) }
}

/// Whether dolly_pipeline_close was called.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_pipeline_is_closed(
    pipeline: *const dolly_pipeline,
    closed: *mut bool,
) -> dolly_status {
    // SAFETY: out-pointers are valid for writing by the header's contract.
    unsafe {
        guard(null_mut(), || {
            let pipe = handle::get(pipeline)?;
            Out::new(closed, "closed")?.write(pipe.is_closed());
            Ok(())
        })
    }
}

/// What the pipeline holds, in bytes: weights, caches of running requests, buffers of a step, and
/// what one more token of one request adds to the caches.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_pipeline_memory(
    pipeline: *const dolly_pipeline,
    weights: *mut u64,
    cache: *mut u64,
    workspace: *mut u64,
    cache_per_token: *mut u64,
) -> dolly_status {
    // SAFETY: out-pointers are valid for writing by the header's contract.
    unsafe {
        guard(null_mut(), || {
            let pipe = handle::get(pipeline)?;
            let weights = Out::new(weights, "weights")?;
            let cache = Out::new(cache, "cache")?;
            let workspace = Out::new(workspace, "workspace")?;
            let per_token = Out::new(cache_per_token, "cache_per_token")?;
            let memory = pipe.memory();
            weights.write(memory.weights);
            cache.write(memory.cache);
            workspace.write(memory.workspace);
            per_token.write(memory.cache_per_token);
            Ok(())
        })
    }
}

/// Bytes of the rows of earlier prompts that are kept for requests that begin alike
/// (dolly_loader_set_prefix_cache); not part of what dolly_pipeline_memory tells.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_pipeline_prefix_cache(
    pipeline: *const dolly_pipeline,
    bytes: *mut u64,
) -> dolly_status {
    // SAFETY: out-pointers are valid for writing by the header's contract.
    unsafe {
        guard(null_mut(), || {
            let pipe = handle::get(pipeline)?;
            Out::new(bytes, "bytes")?.write(pipe.memory().prefix_cache);
            Ok(())
        })
    }
}
