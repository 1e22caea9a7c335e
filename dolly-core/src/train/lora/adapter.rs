//! Adapters read from PEFT directories, and put beside the base they were made for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::config::{PeftConfig, Targets};
use super::{LoraConfig, PREFIX, kinds, unmatched};
use crate::error::{Error, Result};
use crate::model::Config;
use crate::source;
use crate::weights::{Checkpoint, LowRank, ModelFiles, TensorInfo, canonical_name};

/// Files that hold an adapter's weights, in the order of preference.
const WEIGHTS: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];
/// Most layers of one adapter: no model has more linear layers, see the limits of [`Config`].
const MAX_LAYERS: usize = 4096;

/// An adapter in memory: for each layer A, B and their scale.
///
/// ```no_run
/// use dolly_core::train::Adapter;
/// let adapter = Adapter::read("my-adapter".as_ref())?;
/// for layer in adapter.layers() {
///     println!("{}: rank {}, scale {}", layer.module, layer.rank, layer.scale);
/// }
/// # Ok::<(), dolly_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Adapter {
    /// Where the weights were read from, for errors.
    file: PathBuf,
    base: Option<String>,
    config: LoraConfig,
    targets: Targets,
    layers: BTreeMap<String, LowRank>,
}

/// One layer's adapter: `scale * B A` is added to its weight.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct AdapterLayer<'a> {
    /// The layer's name in the base's checkpoint, without `.weight`.
    pub module: &'a str,
    /// Rows of A, columns of B.
    pub rank: usize,
    /// `(rank, inputs)`, row-major.
    pub a: &'a [f32],
    /// `(outputs, rank)`, row-major.
    pub b: &'a [f32],
    /// What the product is multiplied with.
    pub scale: f32,
}

impl Adapter {
    /// Reads a directory as PEFT writes it: `adapter_config.json` and `adapter_model.safetensors`
    /// (or `.bin`), with their patterns of ranks and alphas and rank-stabilised scales.
    ///
    /// # Errors
    /// [`Error::ModelNotFound`] where there is no adapter; [`Error::Unsupported`] naming a setting
    /// that is not computed here (DoRA, biases, whole modules); [`Error::Config`],
    /// [`Error::Format`] and [`Error::Tensor`] for files that are malformed or disagree: half an
    /// adapter, another rank or shape, a target that matches no layer.
    pub fn read(dir: &Path) -> Result<Self> {
        let (config_file, file) = files(dir)?;
        let config = PeftConfig::read(&config_file)?;
        let checkpoint = Checkpoint::open(&ModelFiles::Directory {
            config: config_file.clone(),
            tokenizer: None,
            weights: vec![file.clone()],
            index: None,
        })?;
        let mut layers = BTreeMap::new();
        for (module, halves) in halves(&checkpoint, &file)? {
            let low_rank = halves.read(&checkpoint, &config_file, &config, &module)?;
            layers.insert(module, low_rank);
        }
        let PeftConfig { base, rank, alpha, dropout, targets, .. } = config;
        let names: Vec<&str> = layers.keys().map(String::as_str).collect();
        check_targets(&config_file, &targets, &names)?;
        let named = match &targets {
            Targets::Names(names) => names.clone(),
            _ => layers.keys().cloned().collect(),
        };
        let config = LoraConfig { rank, alpha: alpha as f32, dropout, targets: named };
        Ok(Self { file, base, config, targets, layers })
    }

    /// Rank, alpha, dropout and targets; single layers may have others by the file's patterns.
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// The base it was made for, by the name its maker gave it.
    pub fn base(&self) -> Option<&str> {
        self.base.as_deref()
    }

    /// The layers it changes, in the order of their names.
    pub fn layers(&self) -> impl ExactSizeIterator<Item = AdapterLayer<'_>> {
        self.layers.iter().map(|(module, low_rank)| AdapterLayer {
            module,
            rank: low_rank.rank(),
            a: low_rank.a(),
            b: low_rank.b(),
            scale: low_rank.scale(),
        })
    }

    /// Adds it to a base: from now on the checkpoint's readers give merged rows.
    ///
    /// Errors with [`Error::Tensor`] for a layer the base lacks or has in another shape, and for
    /// one that the targets cover and the adapter lacks.
    pub(crate) fn attach(self, checkpoint: &mut Checkpoint, config: &Config) -> Result<()> {
        let specs = config.tensors()?;
        let matrices = specs.iter().filter(|spec| spec.shape.len() == 2);
        let modules: Vec<&str> = matrices
            .filter_map(|spec| spec.name.strip_suffix(".weight"))
            .filter(|module| *module != "gpt_neox.embed_in")
            .collect();
        let fail = |module: &str, reason: String| {
            let base = self.base.as_deref().unwrap_or("an unnamed base");
            let place = checkpoint.path().display();
            let reason = format!("{reason} (adapter of {base:?}; the base is {place})");
            Err(Error::tensor(&self.file, module, reason))
        };
        for (module, low_rank) in &self.layers {
            if !modules.contains(&module.as_str()) {
                let there = format!("{} layers of {}", config.num_hidden_layers, kinds(&modules));
                return fail(module, format!("the base has no such layer; it has {there}"));
            }
            let found = &checkpoint.tensor(&format!("{module}.weight"))?.shape;
            let (rows, cols) = low_rank.shape();
            if *found != [rows, cols] {
                return fail(module, format!("is for [{rows}, {cols}]; the base has {found:?}"));
            }
        }
        let lacking =
            |module: &&&str| self.targets.covers(module) && !self.layers.contains_key(**module);
        if let Some(module) = modules.iter().find(lacking) {
            return fail(module, "the targets cover it, the adapter has nothing for it".to_owned());
        }
        for (module, low_rank) in self.layers {
            checkpoint.add(&format!("{module}.weight"), low_rank)?;
        }
        Ok(())
    }
}

/// The configuration and the weights of an adapter's directory.
fn files(dir: &Path) -> Result<(PathBuf, PathBuf)> {
    let missing =
        |what: String| Error::ModelNotFound { id: dir.display().to_string(), reason: what };
    if !dir.is_dir() {
        return Err(missing("no such directory; an adapter is one as PEFT writes it".to_owned()));
    }
    let config = source::file_in(dir, "adapter_config.json")?;
    let config = config.ok_or_else(|| missing("it holds no adapter_config.json".to_owned()))?;
    for name in WEIGHTS {
        if let Some(file) = source::file_in(dir, name)? {
            return Ok((config, file));
        }
    }
    Err(missing(format!("it holds no adapter weights ({})", WEIGHTS.join(", "))))
}

/// The two matrices of one layer, as far as they were found.
#[derive(Default)]
struct Halves<'a> {
    a: Option<&'a TensorInfo>,
    b: Option<&'a TensorInfo>,
}

/// The tensors of an adapter by the module they belong to.
fn halves<'a>(checkpoint: &'a Checkpoint, file: &Path) -> Result<BTreeMap<String, Halves<'a>>> {
    let mut modules: BTreeMap<String, Halves<'a>> = BTreeMap::new();
    for info in checkpoint.tensors() {
        let fail = |reason: &str| Err(Error::tensor(file, info.name.as_str(), reason));
        let Some(name) = info.name.strip_prefix(PREFIX) else {
            return fail("expected names of the form base_model.model.LAYER.lora_A.weight");
        };
        let (module, is_a) = match (strip(name, "A"), strip(name, "B")) {
            (Some(module), _) => (module, true),
            (_, Some(module)) => (module, false),
            _ if !name.contains(".lora_") => {
                let what = "a whole layer beside the adapter (save_embedding_layers=False of \
                            PEFT's save_pretrained leaves it out)";
                let file = file.display();
                return Err(Error::Unsupported(format!("{file}: {:?}: {what}", info.name)));
            }
            _ => return fail("is neither lora_A.weight nor lora_B.weight of a layer"),
        };
        let Some(name) = canonical_name(&format!("{module}.weight")) else {
            return fail("belongs to a buffer, not to a layer");
        };
        let module = name.strip_suffix(".weight").unwrap_or(&name).to_owned();
        let halves = modules.entry(module).or_default();
        let half = if is_a { &mut halves.a } else { &mut halves.b };
        if half.replace(info).is_some() {
            return fail("stands twice, under two names of its layer");
        }
        if modules.len() > MAX_LAYERS {
            return Err(Error::format(file, format!("more than {MAX_LAYERS} layers")));
        }
    }
    Ok(modules)
}

fn strip<'n>(name: &'n str, half: &str) -> Option<&'n str> {
    name.strip_suffix(".weight")?.strip_suffix(half)?.strip_suffix(".lora_")
}

impl Halves<'_> {
    fn read(
        &self,
        checkpoint: &Checkpoint,
        config_file: &Path,
        config: &PeftConfig,
        module: &str,
    ) -> Result<LowRank> {
        let (a, b) = match (self.a, self.b) {
            (Some(a), Some(b)) => (a, b),
            (a, _) => {
                let lacking = if a.is_some() { "lora_B" } else { "lora_A" };
                let name = format!("{PREFIX}{module}.{lacking}.weight");
                let place = a.or(self.b).map_or(config_file, |info| checkpoint.file_of(info));
                return Err(Error::tensor(place, name, "is missing; its other half is there"));
            }
        };
        let (rank, scale) = config.rank_and_scale(config_file, module)?;
        let (a_name, b_name) = (a.name.as_str(), b.name.as_str());
        let fail = |info: &TensorInfo, reason: String| {
            Err(Error::tensor(checkpoint.file_of(info), info.name.as_str(), reason))
        };
        let [rows, inputs] = a.shape[..] else {
            return fail(a, format!("shape {:?}; expected [rank, inputs]", a.shape));
        };
        let [outputs, cols] = b.shape[..] else {
            return fail(b, format!("shape {:?}; expected [outputs, rank]", b.shape));
        };
        if rows != rank {
            return fail(a, format!("shape {:?}; the configuration says rank {rank}", a.shape));
        }
        if cols != rank {
            return fail(b, format!("shape {:?}; the configuration says rank {rank}", b.shape));
        }
        if !scale.is_finite() {
            return Err(Error::config(config_file, "lora_alpha", format!("scale {scale}")));
        }
        // Both products were checked against the file's size when it was opened.
        let a = checkpoint.read_vec(a_name, rank.saturating_mul(inputs))?;
        let b = checkpoint.read_vec(b_name, outputs.saturating_mul(rank))?;
        LowRank::new(rank, a, b, scale)
    }
}

/// Targets and layers must agree: each target is a layer's, each layer a target's.
fn check_targets(file: &Path, targets: &Targets, layers: &[&str]) -> Result<()> {
    let fail = |reason: String| Err(Error::config(file, "target_modules", reason));
    if layers.is_empty() {
        return fail("the adapter holds no layer".to_owned());
    }
    if let Targets::Names(names) = targets
        && let Some(target) = unmatched(names, layers)
    {
        let there = kinds(layers);
        return fail(format!("{target:?} matches no layer of the adapter, which has {there}"));
    }
    match layers.iter().find(|layer| !targets.covers(layer)) {
        Some(layer) => fail(format!("no target matches {layer:?}, which the adapter holds")),
        None => Ok(()),
    }
}
