//! From a model's name and the caller's wishes to a loaded pipeline.

use std::ops::ControlFlow;
use std::path::PathBuf;

#[cfg(feature = "candle")]
use crate::backend::candle::{CandleBackend, Compute};
use crate::backend::cpu::{CpuBackend, CpuOptions};
use crate::backend::{Backend, CacheFormat};
use crate::error::{Error, Result};
use crate::generate::engine::{Engine, Limits};
use crate::model::{Config, LoadPlan, LoadProgress, load, main_format};
use crate::options::CancelToken;
use crate::pipeline::device::{Device, Gpu};
use crate::pipeline::opened::Opened;
use crate::pipeline::{Pipeline, PipelineParts};
use crate::prompt::DollyPrompt;
use crate::source::{self, DownloadProgress, SourceOptions};
use crate::train::Adapter;
use crate::weights::{Checkpoint, WeightFormat};

/// Prompt tokens run in one step: enough rows to use the caches, few enough to cancel quickly.
const PREFILL_CHUNK: usize = 256;
/// Bytes for kept prefixes unless set: this share of the weights, and at least so many.
const PREFIX_SHARE: u64 = 16;
const LEAST_PREFIX_BYTES: u64 = 64 << 20;
/// Tokens over which the bytes of one are averaged: a backend may round a cache up.
const PER_TOKEN: usize = 64;

/// As [`PREFILL_CHUNK`] on a GPU, where a few hundred rows only just hide the reading of the weights;
/// the scores of a chunk are held, so that more would cost memory.
#[cfg(feature = "candle")]
const GPU_PREFILL_CHUNK: usize = 512;
/// Of the memory of a GPU that is free, this share is left to the buffers of a step.
#[cfg(feature = "candle")]
const GPU_RESERVE: u64 = 10;

/// Settings of a [`Pipeline`] before it is loaded.
///
/// ```no_run
/// use dolly_core::{Pipeline, WeightFormat};
/// let pipe = Pipeline::builder("databricks/dolly-v2-3b")
///     .weights(WeightFormat::Q8_0)
///     .threads(4)
///     .memory_limit(4 << 30)
///     .build()?;
/// # Ok::<(), dolly_core::Error>(())
/// ```
#[must_use]
pub struct PipelineBuilder {
    id: String,
    device: Device,
    format: WeightFormat,
    threads: Option<usize>,
    context_length: Option<usize>,
    memory_limit: Option<u64>,
    max_batch: usize,
    prefill_chunk: usize,
    kv_cache: Option<CacheFormat>,
    prefix_cache: Option<u64>,
    reference: bool,
    #[cfg(feature = "candle")]
    as_on_gpu: bool,
    adapter: Option<PathBuf>,
    packed_weights: Option<PathBuf>,
    source: SourceOptions,
    cancel: CancelToken,
    on_progress: Option<Box<dyn FnMut(LoadProgress) + Send>>,
    on_download: Option<Box<OnDownload>>,
}

type OnDownload = dyn FnMut(DownloadProgress<'_>) + Send;

impl PipelineBuilder {
    pub(super) fn new(id: String) -> Self {
        Self {
            id,
            device: Device::Auto,
            format: WeightFormat::Auto,
            threads: None,
            context_length: None,
            memory_limit: None,
            max_batch: 64,
            prefill_chunk: PREFILL_CHUNK,
            kv_cache: None,
            prefix_cache: None,
            reference: false,
            #[cfg(feature = "candle")]
            as_on_gpu: false,
            adapter: None,
            packed_weights: None,
            source: SourceOptions::from_env(),
            cancel: CancelToken::new(),
            on_progress: None,
            on_download: None,
        }
    }

    /// Where the network runs; [`Device::Auto`] unless set.
    ///
    /// A GPU needs a build with the feature `cuda`. On one, [`threads`](Self::threads) and
    /// [`packed_weights`](Self::packed_weights) have no meaning, and results equal the CPU's within
    /// rounding only.
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// How weights are held in memory; as stored unless set. Other formats are made while loading.
    pub fn weights(mut self, format: WeightFormat) -> Self {
        self.format = format;
        self
    }

    /// Threads of this pipeline, 1 to 1024; one per core unless set.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Longest sequence in tokens, prompt and answer together; the checkpoint's own unless set.
    pub fn context_length(mut self, tokens: usize) -> Self {
        self.context_length = Some(tokens);
        self
    }

    /// Bytes the weights and caches may take together; checked before anything is allocated. On a
    /// GPU, unless less is allowed, most of what is free there.
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.memory_limit = Some(bytes);
        self
    }

    /// Most requests that share a step, 1 to 1024; 64 unless set. Others wait in order.
    pub fn max_batch(mut self, sequences: usize) -> Self {
        self.max_batch = sequences;
        self
    }

    /// How keys and values of running sequences and kept prefixes are held; unless set,
    /// [`CacheFormat::F32`] with weights in f32, [`CacheFormat::F16`] with f16, and with others
    /// [`CacheFormat::Bf16`] where the CPU multiplies bf16, else [`CacheFormat::F16`]; on a GPU in bf16
    /// with weights in bf16, else as said. A GPU does not hold [`CacheFormat::Q8_0`]; the reference backend always
    /// holds f32.
    pub fn kv_cache(mut self, format: CacheFormat) -> Self {
        self.kv_cache = Some(format);
        self
    }

    /// Bytes for the cache rows of prompts that were read: a later request that begins with the same
    /// tokens copies their rows instead of computing them, with the same result bit for bit. 0 is
    /// off; a sixteenth of the weights, at least 64 MiB, unless set.
    ///
    /// A kept token takes [`MemoryUse::cache_per_token`](crate::MemoryUse::cache_per_token) bytes,
    /// less what it shares with others; the least recently used go first. The bytes count within
    /// [`memory_limit`](Self::memory_limit), where running requests come first.
    ///
    /// Time and [`Usage::cached_tokens`](crate::Usage::cached_tokens) of a request tell whether
    /// another one began alike: callers who must not learn that of each other need pipelines of
    /// their own, or 0.
    pub fn prefix_cache(mut self, bytes: u64) -> Self {
        self.prefix_cache = Some(bytes);
        self
    }

    /// The revision (branch, tag or commit) of a hub id; `main` unless set.
    pub fn revision(mut self, revision: impl Into<String>) -> Self {
        self.source.revision = Some(revision.into());
        self
    }

    /// Whether the network may be asked for files that are not on disk.
    pub fn offline(mut self, offline: bool) -> Self {
        self.source.offline = offline;
        self
    }

    /// A directory that holds `dolly-nano/`, looked in before the usual places.
    pub fn bundled_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.source.bundled_dirs.push(directory.into());
        self
    }

    /// A directory with a low-rank adapter, as PEFT writes it, that is merged into the weights
    /// while they are loaded: `W + scale * B A`, in f32, before they are packed or quantized.
    ///
    /// Errors of [`build`](Self::build) are then also those of
    /// [`Adapter::read`](crate::train::Adapter::read), and [`Error::Tensor`] for an adapter that
    /// does not fit the model.
    pub fn adapter(mut self, directory: impl Into<PathBuf>) -> Self {
        self.adapter = Some(directory.into());
        self
    }

    /// A directory for packed weights: the first load of a model in a format leaves a file there, as
    /// large as the weights in memory, and later loads read that instead of converting and packing.
    ///
    /// The file is tied to the model's files (their sizes, times and samples of their bytes), every
    /// piece has a checksum, and what does not hold is made anew from the model. A directory that
    /// cannot be written to is no error. The directory must be as trusted as the model.
    pub fn packed_weights(mut self, directory: impl Into<PathBuf>) -> Self {
        self.packed_weights = Some(directory.into());
        self
    }

    /// Runs the network on the candle reference backend; needs the feature `candle`.
    pub fn reference(mut self, reference: bool) -> Self {
        self.reference = reference;
        self
    }

    /// Runs the network on the CPU with the tensors and operations that a GPU gets; for tests.
    #[cfg(feature = "candle")]
    #[doc(hidden)]
    pub fn as_on_gpu(mut self, as_on_gpu: bool) -> Self {
        self.as_on_gpu = as_on_gpu;
        self
    }

    /// Called after every tensor, on the thread that calls [`build`](Self::build).
    pub fn on_progress(mut self, call: impl FnMut(LoadProgress) + Send + 'static) -> Self {
        self.on_progress = Some(Box::new(call));
        self
    }

    /// Called after every piece of a download, on the thread that calls [`build`](Self::build).
    pub fn on_download(mut self, call: impl FnMut(DownloadProgress<'_>) + Send + 'static) -> Self {
        self.on_download = Some(Box::new(call));
        self
    }

    /// Stops [`build`](Self::build) from another thread or from the progress callback, at the next
    /// tensor or piece of a download, with [`Error::Cancelled`].
    pub fn cancel(mut self, token: CancelToken) -> Self {
        self.cancel = token;
        self
    }

    /// Finds, checks and loads the model.
    ///
    /// Errors name what is wrong: [`Error::ModelNotFound`], the file errors, a plan beyond the
    /// memory limit, an option outside its range, or a device this build cannot use.
    pub fn build(mut self) -> Result<Pipeline> {
        self.validate()?;
        let gpu = self.gpu()?;
        let mut on_download = self.on_download.take();
        let mut watch = |progress: DownloadProgress<'_>| {
            if let Some(call) = &mut on_download {
                call(progress);
            }
            match self.cancel.is_cancelled() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        };
        let files = source::resolve_with(&self.id, &self.source, &mut watch)?;
        let mut checkpoint = Checkpoint::open(&files)?;
        let opened = Opened::new(&files, &checkpoint)?;
        if let Some(directory) = &self.adapter {
            Adapter::read(directory)?.attach(&mut checkpoint, &opened.config)?;
        }
        if self.reference {
            return self.build_reference(&checkpoint, opened);
        }
        let format = main_format(&checkpoint, &opened.config, self.format)?;
        if let Some(gpu) = gpu {
            return self.build_gpu(gpu, &checkpoint, opened, format);
        }
        let cache = self.kv_cache.unwrap_or_default();
        let backend = CpuBackend::new(CpuOptions { threads: self.threads, cache })?;
        let backend = match self.kv_cache {
            Some(_) => backend,
            None => backend.with_cache_beside(format),
        };
        if let Some(directory) = &self.packed_weights {
            checkpoint.use_packed(directory, &format!("{} as {format}", self.format));
        }
        let pipeline = self.finish(backend, &checkpoint, opened)?;
        checkpoint.finish_packed();
        Ok(pipeline)
    }

    /// The GPU that is asked for, or that answers where any device will do.
    fn gpu(&self) -> Result<Option<Gpu>> {
        #[cfg(feature = "candle")]
        if self.as_on_gpu {
            return Ok(Some(Gpu::stand_in()));
        }
        match self.reference {
            true => Ok(None),
            false => self.device.gpu(),
        }
    }

    #[cfg(not(feature = "candle"))]
    fn build_gpu(self, gpu: Gpu, _: &Checkpoint, _: Opened, _: WeightFormat) -> Result<Pipeline> {
        match gpu {}
    }

    #[cfg(feature = "candle")]
    fn build_gpu(
        mut self,
        gpu: Gpu,
        checkpoint: &Checkpoint,
        opened: Opened,
        format: WeightFormat,
    ) -> Result<Pipeline> {
        let compute = match self.kv_cache {
            Some(cache) => Compute::with_cache(cache)?,
            None => Compute::with_weights(format),
        };
        let free = gpu.free_bytes()?;
        // The rest is for the buffers of a step.
        let usable = free - free / GPU_RESERVE;
        self.memory_limit = Some(self.memory_limit.map_or(usable, |limit| limit.min(usable)));
        self.prefill_chunk = GPU_PREFILL_CHUNK;
        self.finish(CandleBackend::on(gpu, compute), checkpoint, opened)
    }

    #[cfg(feature = "candle")]
    fn build_reference(self, checkpoint: &Checkpoint, opened: Opened) -> Result<Pipeline> {
        self.finish(CandleBackend::cpu(), checkpoint, opened)
    }

    #[cfg(not(feature = "candle"))]
    fn build_reference(self, _: &Checkpoint, _: Opened) -> Result<Pipeline> {
        Err(Error::Unsupported("the reference backend: built without the feature `candle`".into()))
    }

    fn validate(&self) -> Result<()> {
        if let Some(threads) = self.threads.filter(|n| !(1..=1024).contains(n)) {
            return Err(Error::option("threads", threads, "1 to 1024"));
        }
        if !(1..=1024).contains(&self.max_batch) {
            return Err(Error::option("max_batch", self.max_batch, "1 to 1024"));
        }
        Ok(())
    }

    fn finish<B: Backend>(
        mut self,
        backend: B,
        checkpoint: &Checkpoint,
        opened: Opened,
    ) -> Result<Pipeline> {
        let Opened { config, tokenizer } = opened;
        let context_length = self.checked_context_length(&config)?;
        let asked = self.format;
        let format = main_format(checkpoint, &config, asked)?;
        let mut ignore = |_| ();
        let progress: &mut dyn FnMut(LoadProgress) = match &mut self.on_progress {
            Some(call) => &mut **call,
            None => &mut ignore,
        };
        let memory_limit = self.memory_limit;
        let cancel = self.cancel;
        let plan = LoadPlan { format: asked, context_length, memory_limit, progress, cancel };
        let model = load(backend, checkpoint, config.clone(), plan)?;
        let share = model.weight_bytes() / PREFIX_SHARE;
        let limits = Limits {
            max_batch: self.max_batch,
            prefill_chunk: self.prefill_chunk,
            cache_bytes: memory_limit.map(|limit| limit.saturating_sub(model.weight_bytes())),
            prefix_bytes: self.prefix_cache.unwrap_or_else(|| share.max(LEAST_PREFIX_BYTES)),
        };
        let parts = PipelineParts {
            id: self.id,
            prompt: DollyPrompt::new(&tokenizer),
            tokenizer,
            config,
            format,
            context_length,
            weight_bytes: model.weight_bytes(),
            cache_bytes_per_token: model.backend().cache_bytes(model.config(), PER_TOKEN)
                / PER_TOKEN as u64,
        };
        Ok(Pipeline::new(parts, Engine::start(model, limits)?))
    }

    fn checked_context_length(&self, config: &Config) -> Result<usize> {
        let longest = config.max_position_embeddings;
        match self.context_length {
            None => Ok(longest),
            Some(tokens) if (2..=longest).contains(&tokens) => Ok(tokens),
            Some(tokens) => Err(Error::option(
                "context_length",
                format!("{tokens} (the checkpoint's is {longest})"),
                "2 to the checkpoint's max_position_embeddings",
            )),
        }
    }
}
