//! Which device tensors live on, and what its errors mean.

use candle_core::{DType, Device, Storage, Tensor};

use crate::error::{Error, Result, try_vec};

/// A GPU that answers, of a build with the feature `cuda`.
#[derive(Debug, Clone)]
pub(crate) struct Gpu {
    pub(crate) device: Device,
}

/// The error of a GPU that cannot be used.
fn unusable(index: usize, reason: impl Into<String>) -> Error {
    Error::Device { device: format!("cuda:{index}"), reason: reason.into() }
}

impl Gpu {
    /// The CPU in a GPU's place.
    pub(crate) fn stand_in() -> Self {
        Self { device: Device::Cpu }
    }
}

#[cfg(feature = "cuda")]
impl Gpu {
    /// Opens GPU `index`.
    ///
    /// # Errors
    /// [`Error::Device`] where no driver answers, there is no such GPU, or a library of CUDA is
    /// missing.
    pub(crate) fn open(index: usize) -> Result<Self> {
        // Bindings that load the driver themselves panic where it is missing.
        std::panic::catch_unwind(|| Self::probe(index))
            .unwrap_or_else(|_| Err(unusable(index, "the libraries of CUDA could not be loaded")))
    }

    fn probe(index: usize) -> Result<Self> {
        use candle_core::cuda_backend::cudarc::driver::CudaContext;
        let count = CudaContext::device_count()
            .map_err(|error| unusable(index, format!("no CUDA driver answers: {error}")))?;
        if i64::try_from(index).is_ok_and(|index| index >= i64::from(count)) {
            return Err(unusable(index, format!("the driver knows {count} GPUs")));
        }
        let device = Device::new_cuda(index).map_err(|error| unusable(index, error.to_string()))?;
        Ok(Self { device })
    }

    /// Bytes of the GPU's memory that nothing uses.
    pub(crate) fn free_bytes(&self) -> Result<u64> {
        if self.device.is_cpu() {
            return Ok(u64::MAX);
        }
        let stream = self.device.as_cuda_device()?.cuda_stream();
        let (free, _) = stream.context().mem_get_info().map_err(candle_core::Error::wrap)?;
        Ok(free as u64)
    }
}

#[cfg(not(feature = "cuda"))]
impl Gpu {
    /// No GPU can be opened.
    pub(crate) fn open(index: usize) -> Result<Self> {
        Err(unusable(index, crate::backend::NO_CUDA))
    }

    /// A stand-in's memory has no known end.
    pub(crate) fn free_bytes(&self) -> Result<u64> {
        Ok(u64::MAX)
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        match is_out_of_memory(&error) {
            true => Self::OutOfMemory { what: "a tensor on the device".to_owned(), bytes: 0 },
            false => Self::Device { device: "candle".to_owned(), reason: error.to_string() },
        }
    }
}

/// Copies a tensor's values, as f32 and in order, into `out`, which is resized to fit.
///
/// # Errors
/// [`Error::OutOfMemory`] that names `what`, where the host has no room for them.
pub(crate) fn fetch(x: &Tensor, what: &str, out: &mut Vec<f32>) -> Result<()> {
    let count = x.elem_count();
    out.clear();
    if out.capacity() < count {
        *out = try_vec(count, what)?;
    }
    let x = x.to_dtype(DType::F32)?.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    let range = layout.start_offset()..layout.start_offset() + count;
    match &*storage {
        Storage::Cpu(storage) => {
            let values = storage.as_slice::<f32>()?.get(range);
            out.extend_from_slice(values.ok_or_else(|| beyond(what))?);
        }
        #[cfg(feature = "cuda")]
        Storage::Cuda(storage) => {
            out.resize(count, 0.0);
            let values = storage.as_cuda_slice::<f32>()?.try_slice(range);
            let values = values.ok_or_else(|| beyond(what))?;
            storage.device.memcpy_dtoh(&values, out)?;
        }
        _ => return Err(Error::Internal(format!("{what} on a device that is not supported"))),
    }
    Ok(())
}

fn beyond(what: &str) -> Error {
    Error::Internal(format!("{what} lie beyond their storage"))
}

/// As the conversion of an error, with what was to be allocated where memory ran out.
pub(crate) fn allocating(what: &str, bytes: u64) -> impl Fn(candle_core::Error) -> Error {
    move |error| match is_out_of_memory(&error) {
        true => Error::OutOfMemory { what: what.to_owned(), bytes },
        false => error.into(),
    }
}

/// Whether the device's allocator said no.
fn is_out_of_memory(error: &candle_core::Error) -> bool {
    use candle_core::Error as E;
    match error {
        E::Context { inner, .. } | E::WithPath { inner, .. } | E::WithBacktrace { inner, .. } => {
            is_out_of_memory(inner)
        }
        E::Cuda(inner) => cuda_is_out_of_memory(&**inner),
        _ => false,
    }
}

#[cfg(feature = "cuda")]
fn cuda_is_out_of_memory(error: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    use candle_core::cuda_backend::CudaError;
    use candle_core::cuda_backend::cudarc::{cublas::sys::cublasStatus_t, driver::sys::CUresult};
    match error.downcast_ref::<CudaError>() {
        Some(CudaError::Cuda(error)) => error.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY,
        Some(CudaError::Cublas(error)) => error.0 == cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED,
        _ => false,
    }
}

#[cfg(not(feature = "cuda"))]
fn cuda_is_out_of_memory(_: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    false
}
