//! Which device a network runs on, by name.

#[cfg(feature = "candle")]
pub(crate) use crate::backend::candle::Gpu;
use crate::error::{Error, Result};

/// Where the network runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Device {
    /// A GPU where this build supports one and a driver answers, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of this index; an error where it cannot be used.
    Cuda(usize),
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl std::str::FromStr for Device {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let unknown = || Error::option("device", name, "auto, cpu, cuda or cuda:N");
        match name.split_once(':') {
            None if name == "auto" => Ok(Self::Auto),
            None if name == "cpu" => Ok(Self::Cpu),
            None if name == "cuda" => Ok(Self::Cuda(0)),
            Some(("cuda", index)) => index.parse().map(Self::Cuda).map_err(|_| unknown()),
            _ => Err(unknown()),
        }
    }
}

impl Device {
    /// The GPU that is asked for, or that answers where any device will do; `None` is the CPU.
    ///
    /// # Errors
    /// [`Error::Device`] where a GPU is asked for that cannot be used.
    pub(crate) fn gpu(self) -> Result<Option<Gpu>> {
        match self {
            Self::Cpu => Ok(None),
            Self::Cuda(index) => Gpu::open(index).map(Some),
            Self::Auto => match Gpu::open(0) {
                Ok(gpu) => Ok(Some(gpu)),
                Err(error) => {
                    tracing::debug!(%error, "no GPU is used");
                    Ok(None)
                }
            },
        }
    }
}

/// A GPU; a build without candle has none.
#[cfg(not(feature = "candle"))]
#[derive(Debug, Clone)]
pub(crate) enum Gpu {}

#[cfg(not(feature = "candle"))]
impl Gpu {
    fn open(index: usize) -> Result<Self> {
        let reason = crate::backend::NO_CUDA.to_owned();
        Err(Error::Device { device: Device::Cuda(index).to_string(), reason })
    }
}
